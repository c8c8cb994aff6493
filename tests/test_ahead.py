import threading
import time
from contextlib import closing

import pytest

from sih.checkpoints.ahead import made_ahead


def run(make, ahead=1, keys=(0, 1, 2, 3), used=lambda key: None):
    return made_ahead(list(keys), make, ahead, used, threading.Event(), lambda key: None)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_in_order_and_never_further_ahead_than_told(ahead):
    in_use, most, lock = set(), 0, threading.Lock()

    def make(key):
        nonlocal most
        with lock:
            in_use.add(key)
            most = max(most, len(in_use))
        return key * 10

    def used(key):
        with lock:
            in_use.discard(key)

    got = []
    for key, item in run(make, ahead, used=used):
        time.sleep(0.02)
        got.append((key, item))
    assert got == [(0, 0), (1, 10), (2, 20), (3, 30)]
    assert most == 1 + ahead


def test_an_error_is_raised_at_its_item_and_the_thread_ends():
    def make(key):
        if key == 2:
            raise KeyError("broken")
        return key

    items = run(make, ahead=3)
    assert [next(items), next(items)] == [(0, 0), (1, 1)]
    with pytest.raises(KeyError, match="broken"):
        next(items)
    assert not [t for t in threading.enumerate() if t.name == "fetch-ahead"]


def test_leaving_early_stops_the_thread():
    made = []
    with closing(run(lambda key: made.append(key), ahead=1)) as items:
        next(items)
    time.sleep(0.05)
    assert set(made) <= {0, 1}
    assert not [t for t in threading.enumerate() if t.name == "fetch-ahead"]

"""Work ahead: a background thread makes items in order while the caller uses earlier ones."""

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")
_PATIENCE = 5.0  # seconds that an abandoned make() has to notice that it was stopped


def made_ahead(
    keys: list[Key],
    make: Callable[[Key], Item],
    ahead: int,
    used: Callable[[Key], None],
    stopped: threading.Event,
    waiting: Callable[[Key], None],
) -> Generator[tuple[Key, Item]]:
    """`(key, make(key))` in order, with at most `ahead` items made or in the making beyond the one in use.

    Args:
        used: called with each key when the caller asks for the next item, or leaves.
        stopped: set when the caller leaves; `make` should then end soon.
        waiting: called with a key a few times a second while waiting for its item.

    Raises:
        Whatever `make` raised, when its item is due.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue()
    places = threading.Semaphore(1 + ahead)

    def work() -> None:
        for key in keys:
            places.acquire()
            if stopped.is_set():
                return
            try:
                made.put((make(key), None))
            except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
                made.put((None, error))
                return

    worker = threading.Thread(target=work, daemon=True, name="fetch-ahead")
    worker.start()
    try:
        for key in keys:
            while True:
                try:
                    item, error = made.get(timeout=0.2)
                    break
                except queue.Empty:
                    waiting(key)
            if error is not None:
                raise error
            try:
                yield key, item  # type: ignore[misc]  # an item, since there was no error
            finally:
                used(key)
                places.release()
    finally:
        stopped.set()
        places.release()
        worker.join(_PATIENCE)

"""One holder per cell, whoever dies: with real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context

from sih.results.claims import Claims

CELL, OTHER = "step0000512.induction-0123456789ab", "step0001000.few_shot-0123456789ab"


def test_a_cell_has_one_holder_until_it_is_given_back(tmp_path):
    mine, other = Claims(tmp_path, 60), Claims(tmp_path, 60, job="17")
    assert mine.take(CELL)
    assert not other.take(CELL)
    assert other.take(OTHER)
    assert mine.living() == {CELL: mine.holder(CELL), OTHER: mine.holder(OTHER)}
    assert mine.holder(OTHER).endswith(", job 17")
    mine.close()
    assert other.take(CELL)
    other.close()
    assert mine.living() == {}


_HOLD = """
import sys, time
from pathlib import Path
from sih.results.claims import Claims
claims = Claims(Path(sys.argv[1]), float(sys.argv[2]))
print(claims.take(sys.argv[3]), flush=True)
time.sleep(60)
"""


def held_elsewhere(folder, stale_after: float):
    command = [sys.executable, "-c", _HOLD, str(folder), str(stale_after), CELL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"True\n"
    return process


def test_what_a_killed_process_held_is_free_at_once(tmp_path):
    process = held_elsewhere(tmp_path, 60)
    mine = Claims(tmp_path, 60)
    assert not mine.take(CELL)
    process.kill()
    process.wait()
    assert mine.holder(CELL) is None
    assert mine.take(CELL)
    mine.close()


def test_another_machine_s_claim_is_free_when_it_is_no_longer_touched(tmp_path, monkeypatch):
    """A stopped process stands for a dead machine: its number says nothing, its touches end."""
    process = held_elsewhere(tmp_path, 1.2)
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    mine = Claims(tmp_path, 0.1)  # the holder's own patience is what counts
    time.sleep(2)
    assert not mine.take(CELL)  # still touched
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    assert mine.take(CELL)
    mine.release(CELL)
    third = Claims(tmp_path, 60, job="third")
    assert third.take(CELL)
    mine.release(CELL)  # no longer its own
    assert third.holder(CELL).endswith("third")
    process.kill()
    process.wait()
    third.close()


def test_what_a_job_held_before_it_was_requeued_is_its_own_again(tmp_path):
    """At once, also on another machine, where the number of the process that held it says nothing."""
    before = Claims(tmp_path, 60, job="17")
    assert before.take(CELL)
    file = tmp_path / ".claims" / f"{CELL}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"host": "elsewhere"}))
    assert not Claims(tmp_path, 60, job="18", restart=1).take(CELL)
    assert not Claims(tmp_path, 60, job="17").take(CELL)  # its sibling in the same job
    after = Claims(tmp_path, 60, job="17", restart=1)
    assert after.take(CELL)
    after.close()
    before.close()


def test_a_claim_that_a_power_cut_emptied_is_nobody_s(tmp_path):
    (tmp_path / ".claims").mkdir()
    (tmp_path / ".claims" / f"{CELL}.json").touch()
    mine = Claims(tmp_path, 60)
    assert mine.holder(CELL) is None
    assert mine.take(CELL)
    mine.close()


def race(folder, together, won) -> None:
    claims = Claims(folder, 60)
    together.wait()
    won.put(sum(claims.take(f"step{step:07d}.induction-0123456789ab") for step in range(50)))
    together.wait()  # nobody is dead yet
    os._exit(0)  # like a kill: nothing is given back


def test_of_many_at_once_one_gets_each_cell_also_of_the_dead(tmp_path):
    """Twice: the second crowd takes over what the first, dead by then, held."""
    context = get_context("spawn")
    for _ in range(2):
        won, together = context.SimpleQueue(), context.Barrier(4)
        crowd = [context.Process(target=race, args=(tmp_path, together, won)) for _ in range(4)]
        for process in crowd:
            process.start()
        assert sum(won.get() for _ in crowd) == 50
        for process in crowd:
            process.join()
        assert not Claims(tmp_path, 60).living()

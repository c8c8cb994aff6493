"""The progress bar at the main use's size: a checkpoint of pythia-410m takes about 20 minutes."""

import pytest
from rich.console import Console
from rich.progress import Progress

from sih.running.bars import bar_of


class Clock:
    def __init__(self, bar: Progress) -> None:
        self.now, self.bar = 0.0, bar
        bar.get_time = lambda: self.now

    def line(self) -> str:
        console = self.bar.console
        with console.capture() as written:
            console.print(self.bar.get_renderable())
        return written.get().strip()


@pytest.mark.parametrize("width", [80, 50])
def test_time_left_at_a_pace_of_minutes_and_no_number_is_cut(width):
    bar = bar_of(Console(width=width, force_terminal=True, color_system=None))
    clock = Clock(bar)
    task = bar.add_task("preparing", total=154)
    assert clock.line().endswith("0/154 0:00:00 left -:--:--")
    for _ in range(2):
        clock.now += 20 * 60
        bar.advance(task)
        clock.line()  # a bar is drawn all the time
    bar.update(task, description="step 143000: function_vectors, fetching 412 of 911 MB")
    assert clock.line().endswith("2/154 0:40:00 left 50:40:00")  # 152 checkpoints of 20 minutes
    clock.now += 15 * 60
    line = clock.line()
    assert line.endswith("2/154 0:55:00 left 50:25:00")
    assert "…" in line
    assert len(line) <= width


def test_a_sweep_that_goes_on_tells_the_time_of_measured_checkpoints_and_the_bytes_to_fetch():
    bar = bar_of(Console(width=80, force_terminal=True, color_system=None))
    clock = Clock(bar)
    task = bar.add_task("preparing", total=100)
    bar.update(task, pace=20 * 60)
    assert clock.line().endswith("0/100 0:00:00 left 33:20:00")
    clock.now += 5 * 60
    bar.update(task, each=911e6, description="step 8: fetching 412 of 911 MB")
    assert clock.line().endswith("0/100 0:05:00 left 33:15:00, 91 GB")
    clock.now += 5 * 60
    bar.advance(task)
    assert clock.line().endswith("1/100 0:10:00 left 16:30:00, 90 GB")

"""The progress bar for everything that takes long."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text


class _What(ProgressColumn):
    """What is being done; in a narrow terminal this is cut, and no number is."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Left(ProgressColumn):
    """The time left at the pace of what is done: rich's own looks back 30 s, and a checkpoint may take half an hour.

    Of a task's fields, `pace` is the seconds that one takes, for as long as none is done, and `each` the bytes to fetch
    for one, which are told too.
    """

    def __init__(self, table_column: Column) -> None:
        super().__init__(table_column)
        self._done: dict[TaskID, tuple[float, float]] = {}  # how much, and after how many seconds

    def render(self, task: Task) -> Text:
        if self._done.get(task.id, (0,))[0] != task.completed:
            self._done[task.id] = task.completed, task.elapsed or 0.0
        done, after = self._done.get(task.id, (0, 0.0))
        pace, remaining = after / done if done else task.fields.get("pace"), task.remaining
        told = "-:--:--"
        if pace is not None and remaining is not None:
            minutes, seconds = divmod(max(0, round(pace * remaining - ((task.elapsed or 0.0) - after))), 60)
            told = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        if remaining and task.fields.get("each"):
            told += f", {task.fields['each'] * remaining / 1e9:,.0f} GB"
        return Text(told)


def bar_of(console: Console) -> Progress:
    """A progress bar that disappears when it is done."""

    def whole() -> Column:
        return Column(no_wrap=True)

    return Progress(
        _What(Column()),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=whole()),
        TimeElapsedColumn(whole()),
        TextColumn("left", table_column=whole()),
        _Left(whole()),
        console=console,
        transient=True,
    )

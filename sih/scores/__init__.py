"""What is measured, one file per score. This file is the contract that they share; it imports no torch.

A score is a dataclass whose fields are its options, which `conf/scores/` or the command line give by name. It does
three things: it draws, once, what is the same at every checkpoint; it measures one checkpoint into tables; and it
describes in plain values what its tables hold. That description is kept beside the results, so they can be read
without the score.

Letters: B texts or sequences, T positions, L layers, H heads, K d_head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sih.errors import SihError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

    from sih.checkpoints.corpus import Document
    from sih.models.model import Model

FEWEST_SETS = 19  # control sets, with which the largest of 20 costs has a rank p of .05; with fewer none has


@dataclass(frozen=True)
class Given:
    """What a score may draw from: the series' tokenizer, seed and shapes, and the score's own data files.

    `n_ids` is how many ids the tokenizer has; the embedding has `vocab_size` rows, and the padded ones are untrained.
    `start` is the id that every text begins with, as documents did in training, None where they began with none.
    `held_out(n)`: the first n held-out documents of the embedded series. Raises SihError for any other model.
    `followed`: the head series that the score follows, see `follows` below.
    """

    tokenizer: "PreTrainedTokenizerFast"
    n_ids: int
    vocab_size: int
    context: int
    seed: int
    files: Mapping[str, Path]
    held_out: "Callable[[int], list[Document]]"
    start: int | None = None
    followed: "Sequence[Series]" = ()


@dataclass(frozen=True)
class Drawn:
    """What a score measures on, the same at every checkpoint.

    inputs: for its own `measure`.
    files: the text of each file that is kept beside the results, by name.
    facts: plain values that `series` and `maps` need.
    told: a few words for the terminal, such as "288 episodes asked 6048 times".
    left_out: (source, reason, count) of data that was left out.
    """

    inputs: Any
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    told: str = ""
    left_out: Sequence[tuple[str, str, int]] = ()


@dataclass(frozen=True)
class Series:
    """One score over training: for in-context learning, the sum of `value` over documents / the sum of `count`; for
    heads, the mean over the chosen heads of each head's own such ratio.

    kind: `heads` (the table also has the columns layer and head), `icl`, in-context learning, or `effects`, what taking
        out the heads of the series `heads_of` does to in-context learning.
    table, value, count: the table by document and its columns; without a count each row counts once.
    where: only the rows whose columns have one of these values.
    pool: documents of the same name in one pool are the same, and are resampled together.
    sign: +1 when a larger value means more, -1 for losses.
    smallest_rise: the smallest rise that counts as emergence, in the series' unit.
    chance: the value of an untrained model; None where nulls give it.
    nulls: a stand-in for the score at the same events: columns of the null's value, of the score's own value at the
        events that have this null, and of their count. Figures show the largest.
    control: the null whose emerging heads are counted beside the score's own.
    heads_of: the head series whose chosen heads this one follows; None: it chooses its own.
    opportunities: name of a drawn .csv with all documents: `document`, `opportunities`, and the columns of `where`.
    share: whether each row is an answer, 0 or 1, so that intervals are those of shares.
    family: series of one family, such as one score on several tasks, are timed one by one; the family's onset is the
        median of theirs, and one that has not emerged counts as last.
    headline: whether it, or its family, is one of the few that answer the question.
    """

    name: str
    label: str
    kind: str
    table: str
    value: str
    unit: str
    pool: str
    smallest_rise: float
    count: str | None = None
    where: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    sign: int = 1
    chance: float | None = None
    nulls: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    control: str | None = None
    heads_of: str | None = None
    opportunities: str | None = None
    share: bool = False
    family: str | None = None
    headline: bool = True

    def columns(self) -> list[str]:
        """The columns of its table that it reads."""
        own = ["document", *(("layer", "head") if self.kind == "heads" else ()), *self.where, self.value]
        counts = [self.count] if self.count else []
        return list(dict.fromkeys([*own, *counts, *(c for pair in self.nulls.values() for c in pair)]))


@dataclass(frozen=True)
class HeadMap:
    """One number for every head at one checkpoint: the sum of the product of `total` / the sum of `over`.

    Sums are over the rows of a head that have the values of `where`. Without `over`: the mean of the rows.
    events: whether `over` counts events; a head with too few of them is not shown.
    summary: `mean` or `max` over heads, as one number per checkpoint; None for no such number.
    picture: whether the heatmaps show it.
    """

    name: str
    label: str
    table: str
    total: tuple[str, ...]
    over: str | None = None
    where: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    events: bool = False
    summary: str | None = None
    picture: bool = False

    def columns(self) -> list[str]:
        """The columns of its table that it reads."""
        return list(dict.fromkeys(["layer", "head", *self.where, *self.total, *([self.over] if self.over else [])]))


@dataclass(frozen=True)
class Curve:
    """One score over the context at each checkpoint, such as over the number of examples; for the figures.

    Each of the table's rows that have the values of `where` is one point: the columns `x`, `value`, `ci_low`,
    `ci_high` (95 %) and `chance`. Curves of one `figure` are its panels; those with the same `row` share a row.
    over_training: the name under which the dashboard shows the last point, that with the most context, over training.
    """

    figure: str
    row: str
    label: str
    table: str
    x: str
    x_label: str
    unit: str
    where: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    log_x: bool = False
    over_training: str | None = None

    def columns(self) -> list[str]:
        """The columns of its table that it reads."""
        return list(dict.fromkeys([*self.where, self.x, "value", "ci_low", "ci_high", "chance"]))


@dataclass(frozen=True)
class Effects:
    """Where a score keeps what taking sets of heads out does, for the figures and the answer.

    sets: the table with a row for each set and outcome, its effect and its place among its controls.
    controls: the table with a row for each control set and outcome. Both name heads as `L0H1 L3H5`.
    operation: what `sets` has control sets for. groups, outcomes: labels by name.
    less_is_more: the outcomes of which less is more in-context learning. main: those that the answer tells; shown:
        those of the figures, whose series are named `series` + group + `/` + outcome.
    """

    sets: str
    controls: str
    operation: str
    groups: Mapping[str, str]
    outcomes: Mapping[str, str]
    less_is_more: Sequence[str]
    main: Sequence[str]
    shown: Sequence[str]
    series: str


@dataclass(frozen=True)
class FirstOrder:
    """Where a score keeps the first-order effect of each head: `value` by `outcome`, `layer` and `head` in a table."""

    table: str
    value: str


@dataclass(frozen=True)
class Ranking:
    """How far every head stands above chance or its largest null in one head series, on the half of the documents that
    heads are chosen on: (L, H) arrays in the series' unit, NaN where a head has too few events.

    here: at the checkpoint that is measured. last: at the last one of the run.
    """

    here: "np.ndarray"
    last: "np.ndarray"


class Score(Protocol):
    """A dataclass of options.

    version: increased whenever the same weights and options would give different numbers.
    shown: options that change no measured number, such as the smallest rise that counts.
    tables: the columns of each table that `measure` returns, by table; more columns may follow them.
    """

    version: ClassVar[int]
    shown: ClassVar[Sequence[str]]
    tables: ClassVar[Mapping[str, Sequence[str]]]

    def draw(self, given: Given) -> Drawn:
        """Draw everything that is the same at every checkpoint. Raises SihError for data that cannot be used."""
        ...

    def measure(self, model: "Model", inputs: Any, batch_tokens: int) -> "Mapping[str, pa.Table]":
        """All tables of one checkpoint, by name, with about `batch_tokens` tokens in a forward pass.

        Raises:
            CheckpointError: this checkpoint cannot be scored, for instance because its losses are not finite.
        """
        ...

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """The trajectories that the tables hold."""
        ...

    # Optional, as are these:
    # files() -> dict[str, Path]          data files it reads, by role; fetches those that are missing
    # measured() -> dict[str, Any]        the options that its numbers depend on; without it, all but `shown`
    # maps(facts) -> Sequence[HeadMap]    numbers of every head for the heatmaps and the dashboard
    # curves(facts) -> Sequence[Curve]    scores over the context, for the figures
    # effects_kept(facts) -> Effects      where the effects of sets of heads are kept
    # first_order() -> FirstOrder         where the first-order effects of heads are kept
    # intervenes: ClassVar[bool]          whether it is measured only at the checkpoints of `interventions=`
    # follows() -> dict[str, list[str]]   by score, patterns of the head series that heads are chosen by. It is measured
    #                                     when these are, and `measure` is given a Ranking of each by name, as a fourth


_DEMANDED = ("version", "tables", "draw", "measure", "series")


def checked(name: str, score: Any) -> Any:
    """The score itself. Raises SihError when it lacks a part of the contract."""
    missing = [part for part in _DEMANDED if not hasattr(score, part)]
    if missing:
        raise SihError(
            f"scores.{name}: {type(score).__module__}.{type(score).__name__} has no {', '.join(missing)}; "
            "a score is a dataclass with version, tables, draw, measure and series, see sih/scores/__init__.py"
        )
    return score


def files_of(score: Any) -> dict[str, Path]:
    """The data files that a score reads, by role; those that are missing are fetched."""
    return dict(score.files()) if hasattr(score, "files") else {}


def measured_options(score: Any) -> dict[str, Any]:
    """The options that a score's numbers depend on, as plain values."""
    if hasattr(score, "measured"):
        return dict(score.measured())
    hidden = set(getattr(score, "shown", ()))
    return {f.name: plain(getattr(score, f.name)) for f in fields(score) if f.name not in hidden}


def followed_by(score: Any) -> dict[str, list[str]]:
    """Patterns of the head series that a score follows, by the score that offers them; empty for most scores."""
    return {name: list(patterns) for name, patterns in score.follows().items()} if hasattr(score, "follows") else {}


def plain(value: Any) -> Any:
    """The value as it is written to files: dataclasses become dictionaries, and tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def described(score: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept beside the results, as plain values, so that they can be read without the score."""
    maps = score.maps(facts) if hasattr(score, "maps") else ()
    curves = score.curves(facts) if hasattr(score, "curves") else ()
    return {
        "facts": dict(facts),
        "tables": {name: list(columns) for name, columns in score.tables.items()},
        "series": [asdict(s) for s in score.series(facts)],
        "maps": [asdict(m) for m in maps],
        "curves": [asdict(c) for c in curves],
        "effects": asdict(score.effects_kept(facts)) if hasattr(score, "effects_kept") else None,
        "first_order": asdict(score.first_order()) if hasattr(score, "first_order") else None,
    }

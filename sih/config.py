"""Typed schema of conf/, and checks that need no data.

Defaults live only in conf/, with their meanings and units; this file has their types.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from sih.errors import SihError


@dataclass
class TrainConfig:
    """How the embedded series is trained (model=tiny)."""

    steps: list[int] = MISSING  # optimiser steps after which a checkpoint is kept
    layers: int = MISSING
    heads: int = MISSING
    width: int = MISSING  # d_model
    rotary_share: float = MISSING  # share of each head's dimensions that rotary embedding turns
    context: int = MISSING  # tokens in a training sequence
    batch: int = MISSING  # sequences in a step
    learning_rate: float = MISSING  # at its peak
    initializer_range: float = MISSING  # standard deviation of the initial weights
    few_shot_lists: float = MISSING  # share of documents that are few-shot lists
    recitals: float = MISSING  # share of documents that repeat one verse


@dataclass
class ModelConfig:
    name: str | None = None  # names the results' folder
    source: str = MISSING  # tiny, local or hub
    path: str | None = None  # local: folder of checkpoint folders
    repo: str | None = None  # hub: owner/name; {seed} in it stands for the seed's name
    more_repos: list[str] | None = None  # hub: repositories with further checkpoints of the same run
    revisions: str = MISSING  # regular expression for branches, tags or folders, with the group step, perhaps seed
    main: Any = None  # hub: what main holds: `last` (the last step), a step, or null (it is not compared)
    recipe: str | None = None  # for families that were trained on several mixtures of data
    seed: int = 0  # tiny: training seed; hub: which of several runs
    seeds: list[int] | None = None  # values that `seed` may take; null: any
    seed_names: dict[int, str] | None = None  # what the names of repositories or revisions have for a seed
    tokens_per_step: int | None = None  # training tokens in one optimiser step; null: unknown
    context: int | None = None  # tokens in a training sequence
    grid: Any = None  # steps that are known to exist, and [first, last, every]; null: unknown
    licence: str | None = None
    citation: str | None = None
    notes: list[str] | None = None  # what is known or reported of the series that a reader should know
    document_start: str | None = None  # the token that documents began with in training; null: none
    default_steps: Any = "all"
    default_interventions: Any = MISSING
    layers: int | None = None  # expected shape; null: any
    heads: int | None = None
    width: int | None = None
    train: TrainConfig | None = None


@dataclass
class GeneratedConfig:
    enabled: bool = MISSING
    documents: int = MISSING


@dataclass
class AgendaConfig:
    enabled: bool = MISSING
    path: str | None = None
    drop_function_words: bool = MISSING
    both_ways: bool = MISSING
    function_words: list[str] = MISSING
    letters: str = MISSING


@dataclass
class TreebankConfig:
    enabled: bool = MISSING
    paths: list[str] | None = None
    relations: dict[str, list[str]] = MISSING


@dataclass
class CustomConfig:
    enabled: bool = MISSING
    path: str | None = None
    spacy_model: str = MISSING
    relations: dict[str, list[str]] = MISSING


@dataclass
class RelationsConfig:
    per_relation: int = MISSING
    max_tokens: int = MISSING
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    agenda: AgendaConfig = field(default_factory=AgendaConfig)
    treebank: TreebankConfig = field(default_factory=TreebankConfig)
    custom: CustomConfig = field(default_factory=CustomConfig)


@dataclass
class LossConfig:
    texts: str | None = None
    documents: int = MISSING
    windows: dict[str, list[int]] = MISSING
    context_gain: list[int] = MISSING


@dataclass
class TaskConfig:
    """Either `classes`, or `pairs`: related words, to be told apart from the same words paired differently."""

    # One label per class, or more, of which each episode draws its own; for `pairs`: related, unrelated.
    labels: list[str] = MISSING
    classes: list[list[str]] = field(default_factory=list)  # kinds of the first and second word, one pair per class
    pairs: list[str] = field(default_factory=list)  # "first second"


@dataclass
class FewShotConfig:
    shots: int = MISSING
    episodes: int = MISSING
    shots_from: int = MISSING
    template: str = MISSING  # of one example, with {first}, {second} and {label}
    separator: str = MISSING  # between examples
    before_label: str = MISSING  # what comes before a label inside its token
    words: dict[str, list[str]] = MISSING
    tasks: dict[str, TaskConfig] = MISSING


@dataclass
class EffectsConfig:
    """What interventions are measured on."""

    texts: str | None = None
    documents: int = MISSING  # texts that effects are measured on; as many others are the reference
    skip: int = MISSING  # held-out documents of the embedded series that come before, which other scores read
    late: list[int] = MISSING  # late start, late stop, short start, as context_gain has them
    sequences: int = MISSING
    length: int = MISSING
    episodes: int = MISSING
    asking: Any = MISSING  # a FewShotConfig
    fewest: int = MISSING  # heads in a group


@dataclass
class IclConfig:
    loss: LossConfig = field(default_factory=LossConfig)
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    effects: EffectsConfig = field(default_factory=EffectsConfig)


@dataclass
class EmergenceConfig:
    bootstrap: int = MISSING
    bandwidth_oct: float = MISSING
    top_heads: float = MISSING
    few_heads: int = MISSING
    min_events: int = MISSING
    delta: dict[str, float] | None = None


@dataclass
class DashboardConfig:
    name: str = MISSING
    panels: dict[str, dict[str, str]] = MISSING  # section -> title -> pattern of metric names
    figures: list[str] = MISSING
    heatmaps: list[str] = MISSING  # names of image metrics, each over training


@dataclass
class TrackerConfig:
    mode: str = MISSING
    project: str = MISSING
    entity: str | None = None
    init_timeout: int = MISSING
    finish_timeout: int = MISSING
    live: bool = MISSING
    dashboard: DashboardConfig = field(default_factory=DashboardConfig)


@dataclass
class CheckpointsConfig:
    disk_budget: str = MISSING
    ahead: int = MISSING
    attempts: int = MISSING
    first_wait: float = MISSING
    allow_suspect: bool = MISSING


@dataclass
class OwnConfig:
    heads: str | None = None
    icl: str | None = None


@dataclass
class LauncherConfig:
    kind: str = MISSING
    stale_after: float = MISSING
    parallel: int = MISSING
    chunk: int | None = None
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    gpus: int = MISSING
    cpus: int = MISSING
    memory: str | None = None
    minutes: int = MISSING
    signal_seconds: int = MISSING
    setup: list[str] = MISSING
    dry_run: bool = MISSING


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    scores: dict[str, Any] = field(default_factory=dict)
    relations: RelationsConfig = field(default_factory=RelationsConfig)
    icl: IclConfig = field(default_factory=IclConfig)
    interventions: Any = MISSING
    emergence: EmergenceConfig = field(default_factory=EmergenceConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    run: str | None = None
    name: str | None = None
    steps: Any = MISSING
    axis: str | None = None
    seed: int = MISSING
    force: bool = MISSING
    output: str = MISSING
    device: str = MISSING
    dtype: str = MISSING
    batch_tokens: int | None = None
    figures: bool = MISSING
    watch: bool = MISSING
    watch_until: int | None = None
    watch_every: float = MISSING
    models: list[str] | None = None
    model_seeds: Any = None
    own: OwnConfig = field(default_factory=OwnConfig)
    suggest: int = MISSING


ConfigStore.instance().store(name="schema", node=Config)


def check(config: Config) -> None:
    """Refuse contradictions before anything is fetched or trained. Raises SihError.

    A score checks its own options when it is made.
    """
    if config.tracker.mode not in ("offline", "online", "disabled"):
        raise SihError(f"tracker.mode={config.tracker.mode}; expected offline, online or disabled")
    if config.name is not None and not re.fullmatch(r"[\w][\w.-]*", config.name):
        raise SihError(f"name={config.name}: expected letters, digits, dots and dashes, since it names a folder")
    if config.run is not None and config.name is not None:
        raise SihError("run= and name= both name the folder of a run; give one of them")
    if config.axis not in (None, "steps", "tokens"):
        raise SihError(f"axis={config.axis}; expected steps, tokens or null")
    if config.emergence.bootstrap < 2:
        raise SihError(f"emergence.bootstrap={config.emergence.bootstrap}; expected at least 2")


def check_sweep(config: Config) -> None:
    """Further checks for a sweep or an audit, beyond `check`. Raises SihError."""
    _check_model(config.model)
    _check_launcher(config.launcher)
    bytes_of(config.checkpoints.disk_budget)
    if config.checkpoints.ahead < 0 or config.checkpoints.attempts < 1 or config.checkpoints.first_wait < 0:
        raise SihError("checkpoints: expected ahead of at least 0, attempts of at least 1, first_wait of at least 0")
    if config.dtype not in ("float32", "bfloat16"):
        raise SihError(f"dtype={config.dtype}; expected float32 or bfloat16 (float16 underflows at early checkpoints)")
    if config.batch_tokens is not None and config.batch_tokens < 2:
        raise SihError(f"batch_tokens={config.batch_tokens}; expected at least 2")
    if config.watch and (config.model.source, config.launcher.kind, config.steps) != ("local", "local", "all"):
        raise SihError(
            "watch=true measures every checkpoint that appears in a folder: it needs model=local, launcher=local and "
            "steps=all; model.revisions can narrow the choice"
        )
    if config.watch_until is not None and not config.watch:
        raise SihError(f"watch_until={config.watch_until} needs watch=true")
    if config.watch_every <= 0:
        raise SihError(f"watch_every={config.watch_every}; expected more than 0 seconds")
    if config.relations.generated.enabled and config.model.source != "tiny":
        raise SihError("relations=generated is the language of model=tiny only; use relations=real")
    if not config.scores:
        raise SihError("no score is chosen; leave out scores= for all of them, or name some of those in conf/scores/")


def _check_model(model: ModelConfig) -> None:
    if model.source not in ("tiny", "local", "hub"):
        raise SihError(f"model.source is {model.source!r}; expected tiny, local or hub")
    if model.source == "tiny" and not model.name:
        raise SihError("model has no name; choose one such as model=pythia-70m")
    if model.source == "hub" and not re.fullmatch(r"[^/]+/[^/]+", str(model.repo)):
        raise SihError(f"model.repo={model.repo}; expected a Hub repository, owner/name")
    if model.source == "local" and not Path(str(model.path)).is_dir():
        raise SihError(
            f"model.path={model.path} is no folder; expected a folder of checkpoint folders such as step512/ or "
            "checkpoint-512/, each with config.json and weights"
        )
    seeds = seeds_of(model)
    if seeds is not None and model.seed not in seeds:
        raise SihError(f"model.seed={model.seed}: {model.name} has the seeds {_ranges(seeds)}")
    if model.main not in (None, "last") and not isinstance(model.main, int):
        raise SihError(f"model.main={model.main}; expected last, a step, or null")
    if "-v0" in (model.repo or ""):
        raise SihError(f"{model.repo}: the -v0 models carry relabelled steps; use the models without -v0")


def _check_launcher(launcher: LauncherConfig) -> None:
    if launcher.kind not in ("local", "processes", "slurm"):
        raise SihError(f"launcher.kind={launcher.kind}; expected local, processes or slurm")
    for name, value in (("parallel", launcher.parallel), ("chunk", launcher.chunk)):
        if value is not None and value < 1:
            raise SihError(f"launcher.{name}={value}; expected at least 1")
    if launcher.stale_after <= 0:
        raise SihError(f"launcher.stale_after={launcher.stale_after}; expected more than 0 seconds")
    if launcher.dry_run and launcher.kind != "slurm":
        raise SihError(f"launcher.dry_run=true needs launcher=slurm; this is launcher={launcher.kind}")
    limit = launcher.minutes * 60
    most = int(min(limit / 2, max(limit / 5, 600)))  # warned earlier, submitit mistakes the time limit for preemption
    if launcher.signal_seconds > most:
        raise SihError(
            f"launcher.signal_seconds={launcher.signal_seconds}; expected at most {most} of the {limit} seconds that "
            f"launcher.minutes={launcher.minutes} gives"
        )


def bytes_of(size: str) -> int:
    """ "60GB" -> 60,000,000,000; KB, MB, GB and TB are powers of 1,000. Raises SihError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB)", str(size).strip(), re.IGNORECASE)
    if not found:
        raise SihError(f"checkpoints.disk_budget={size}; expected a size such as 60GB or 500MB")
    return int(float(found[1]) * 1000 ** ("B", "KB", "MB", "GB", "TB").index(found[2].upper()))


def readable_bytes(count: int) -> str:
    """60,000,000,000 -> "60GB", as `bytes_of` reads it; three digits."""
    size, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g}{unit}" if size < 999.5 else f"{size:.0f}{unit}"


def _ranges(values: list[int]) -> str:
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}-{values[-1]}"
    return ", ".join(map(str, values))


def seeds_of(model: ModelConfig) -> list[int] | None:
    """The seeds that a model has; None when any may be named."""
    return list(model.seed_names) if model.seed_names else model.seeds


def model_name(model: ModelConfig) -> str:
    """The name that results are filed under: `pythia-70m-seed3`; a local folder's own name, or a repository's."""
    return f"{series_name(model)}-seed{model.seed}" if model.seed else series_name(model)


def series_name(model: ModelConfig) -> str:
    """The model's name without its seed."""
    if model.name:
        return model.name
    if model.source == "local":
        return Path(str(model.path)).resolve().name
    return re.sub(r"[-_.]*\{seed\}", "", str(model.repo).split("/")[-1])


def folder_of(config: Config) -> Path:
    """A run's folder: run=DIR, or output/name, where the name is the model's unless name= gives another."""
    return Path(config.run) if config.run else Path(config.output) / (config.name or model_name(config.model))

"""Format compliance and pattern discovery: greedy answers in few-shot episodes, and the labels' odds [Ren §4.2-3].

One episode is asked with 0, 1, 2, ... examples before the question: those are its shots. With fewer shots than classes
the class asked for has not been shown, so no pattern can be discovered; the series of the pattern begin with as many
shots as classes.

Where the labels are drawn anew for each episode, an answer has the format if it is any label of the task, and the
classes to tell apart are those of the episode's own labels.

Letters: E episodes, S numbers of shots, N answers of all episodes, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sih.config import FewShotConfig, TaskConfig
from sih.errors import SihError
from sih.scores import Curve, Drawn, Given, Series
from sih.scores.asking import labels_of, read, task_labels_of
from sih.scores.tables import COLUMNS, clustered_share_row, mean_of_rows, mean_row, row, share_row
from sih.texts import episodes
from sih.texts.episodes import Episode
from sih.texts.written import jsonl

if TYPE_CHECKING:
    from sih.models.model import Model

SHARES = ("format_accuracy", "accuracy", "constrained_accuracy")  # 0 or 1 for each answer
ANSWERED = (*SHARES, "label_margin")
FORMAT = ("format_accuracy", "format_gained")  # need no example of each class
SCORES = ("format_accuracy", "format_gained", "accuracy", "accuracy_beyond_format", *ANSWERED[2:])
UNIT = "share of answers"
RELATIONS = "relations"  # the kind of tasks that ask whether two words are related; other kinds are `C classes`


@dataclass(frozen=True)
class Answers:
    """Per answer, (N,) each.

    format_accuracy: the greedy token is one of the task's labels. of_a_class: it is the label of one of the classes,
    the same unless labels are drawn. accuracy: it is the right one.
    constrained_accuracy: the right label has the largest logit of the classes' labels. All 0 or 1.
    label_margin: log-odds of the right label against the others, nats: its logit minus their logsumexp.
    """

    format_accuracy: np.ndarray
    of_a_class: np.ndarray
    accuracy: np.ndarray
    constrained_accuracy: np.ndarray
    label_margin: np.ndarray


def answer(model: "Model", asked: Sequence[Episode], batch_tokens: int) -> Answers:
    """The greedy token and the labels' odds wherever an episode is asked.

    Raises:
        CheckpointError: a logit that is not finite.
    """
    greedy_N, logit_NC = read(model, asked, batch_tokens)
    count_E = [len(e.asked) for e in asked]
    label_NC, task_label_NC = (np.repeat(of(asked), count_E, axis=0) for of in (labels_of, task_labels_of))
    classes_N = np.repeat([len(e.label_token_ids) for e in asked], count_E)
    gold_N = np.array([gold for e in asked for gold in e.gold])
    logit_NC[np.arange(logit_NC.shape[1]) >= classes_N[:, None]] = -np.inf
    return Answers(
        format_accuracy=(task_label_NC == greedy_N[:, None]).any(1).astype(float),
        of_a_class=(label_NC == greedy_N[:, None]).any(1).astype(float),
        accuracy=(label_NC[np.arange(len(gold_N)), gold_N] == greedy_N).astype(float),
        constrained_accuracy=(logit_NC.argmax(1) == gold_N).astype(float),
        label_margin=margins(logit_NC, gold_N),
    )


def margins(logit_NC: np.ndarray, gold_N: np.ndarray) -> np.ndarray:
    """Log-odds of the right class against all others, nats, (N,); classes of logit -inf do not count."""
    right_NC = np.arange(logit_NC.shape[1]) == gold_N[:, None]
    return logit_NC[right_NC] - np.logaddexp.reduce(np.where(right_NC, -np.inf, logit_NC), axis=1)


def shots_to(share_of_shots: Mapping[int, float], wanted: float = 0.8) -> float:
    """The fewest shots with a share of at least `wanted` [Ren App. C]; NaN when no number of shots has it."""
    return float(min((shots for shots, share in share_of_shots.items() if share >= wanted), default=np.nan))


@dataclass
class FewShot:
    """The score; conf/scores/few_shot.yaml and conf/icl/ have the meanings and defaults of its options."""

    shots: int
    episodes: int
    shots_from: int
    template: str
    separator: str
    before_label: str
    words: dict[str, list[str]]
    tasks: dict[str, TaskConfig]
    smallest_rise: float
    smallest_margin_rise: float
    smallest_fall_of_shots: float

    version = 4
    shown = ("smallest_rise", "smallest_margin_rise", "smallest_fall_of_shots")
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "few_shot": COLUMNS,
        "few_shot_documents": ("task", "document", "shots", *SCORES),
        "few_shot_episodes": ("task", "document", "first_in_format"),
    }

    def __post_init__(self) -> None:
        self.tasks = {n: t if isinstance(t, TaskConfig) else TaskConfig(**t) for n, t in self.tasks.items()}
        if not self.tasks or self.episodes < 1 or not 0 <= self.shots_from <= self.shots or self.shots < 1:
            raise SihError(
                f"scores.few_shot: {len(self.tasks)} tasks, episodes={self.episodes}, shots={self.shots}, "
                f"shots_from={self.shots_from}; expected a task, an episode, a shot, and shots_from of at most shots"
            )
        for name, task in self.tasks.items():
            where = f"scores.few_shot.tasks.{name}"
            if name == RELATIONS or " " in name:
                raise SihError(f"{where}: this may be the name of a kind of tasks; choose another, without spaces")
            if bool(task.classes) == bool(task.pairs):
                raise SihError(f"{where}: expected either classes or pairs")
            fewest = len(task.classes or "tf")
            few_or_many = len(task.labels) < fewest or (task.pairs and len(task.labels) > fewest)
            if few_or_many or len(set(task.labels)) != len(task.labels):
                raise SihError(
                    f"{where}: expected one distinct label for each class, two for pairs; "
                    "or more than there are classes, to be drawn anew for each episode"
                )
            if fewest < 2:
                raise SihError(f"{where}: expected at least two classes")
            if broken := [pair for pair in task.pairs if len(pair.split()) != 2]:
                raise SihError(f"{where}: {broken[0]!r} in pairs; expected two words")
            unknown = {kind for pair in task.classes for kind in pair} - set(self.words)
            if unknown:
                raise SihError(f"{where}: no word list for {sorted(unknown)} in scores.few_shot.words")

    def draw(self, given: Given) -> Drawn:
        """All episodes, the same at every checkpoint."""
        options = FewShotConfig(**{f.name: getattr(self, f.name) for f in fields(FewShotConfig)})
        asked, dropped = episodes.build(options, given.tokenizer, given.context, given.seed, given.start)
        text = jsonl(
            {
                "task": e.task,
                "episode": e.number,
                "token_ids": e.token_ids,
                "asked": e.asked,
                "gold_token_ids": [e.label_token_ids[gold] for gold in e.gold],
                "label_token_ids": e.label_token_ids,
            }
            for e in asked
        )
        facts = {
            e.task: {
                "classes": len(e.label_token_ids),
                "shots": len(e.asked) - 1,
                "chance": _chances(e, given.vocab_size),
            }
            for e in asked
        }
        return Drawn(
            asked,
            files={"episodes.jsonl": text},
            facts={"tasks": facts},
            told=f"{len(asked)} episodes asked {sum(len(e.asked) for e in asked)} times",
            left_out=dropped,
        )

    def measure(self, model: "Model", asked: list[Episode], batch_tokens: int) -> dict[str, pa.Table]:
        """Every score for each task and number of shots, pooled over shots and over tasks, and for every answer.

        Raises:
            CheckpointError: a logit that is not finite.
        """
        answers = answer(model, asked, batch_tokens)
        first_E = np.cumsum([0, *(len(e.asked) for e in asked)])
        rows: list[dict[str, Any]] = []
        documents, by_episode = [], []
        by_kind: dict[str, list[dict[tuple[str, int | None], dict[str, Any]]]] = {}
        for task in dict.fromkeys(e.task for e in asked):
            place_ES = np.stack([np.arange(first_E[n], first_E[n + 1]) for n, e in enumerate(asked) if e.task == task])
            first = next(e for e in asked if e.task == task)
            classes = len(first.label_token_ids)
            values = {score: getattr(answers, score)[place_ES] for score in ANSWERED}
            values["format_gained"] = values["format_accuracy"] - values["format_accuracy"][:, :1]
            by_chance_ES = answers.of_a_class[place_ES] / classes
            values["accuracy_beyond_format"] = values["accuracy"] - by_chance_ES
            of_task = self._rows(task, values, classes, _chances(first, model.vocab_size), by_chance_ES.mean(0))
            rows += of_task.values()
            by_kind.setdefault(self._kind(task, classes), []).append(of_task)
            format_S = dict(enumerate(values["format_accuracy"].mean(0)))
            rows.append(row("shots_to_format", task, None, len(place_ES), shots_to(format_S), *[float("nan")] * 3))
            documents.append(_documents(task, values))
            by_episode.append(_by_episode(task, values["format_accuracy"]))
        for kind, tasks in by_kind.items():
            # Only where every task has a row: otherwise the mean would change with the tasks that it is over.
            for score, shots in [key for key in tasks[0] if all(key in t for t in tasks)]:
                of_all = [t[score, shots] for t in tasks]
                chance = float(np.mean([r["chance"] for r in of_all]))
                rows.append(mean_of_rows(score, kind, shots, of_all, chance))
        return {
            "few_shot": pa.Table.from_pylist(rows),
            "few_shot_documents": pa.concat_tables(documents).unify_dictionaries(),
            "few_shot_episodes": pa.concat_tables(by_episode),
        }

    def _rows(
        self,
        task: str,
        values: Mapping[str, np.ndarray],
        classes: int,
        chances: Mapping[str, float],
        by_chance_S: np.ndarray,
    ) -> dict[tuple[str, int | None], dict[str, Any]]:
        """One task's rows by score and shots, None for those that its series pool; `values` are (E, S) each.

        by_chance_S: how often the greedy answer would be right by chance: as often as it is the label of a class at
            all, over the number of classes.
        """
        found: dict[tuple[str, int | None], dict[str, Any]] = {}
        for score in SCORES:
            value_ES = values[score]
            chance_S = by_chance_S if score == "accuracy" else np.full(value_ES.shape[1], chances[score])
            if score not in FORMAT:  # the class asked for is none of those shown
                chance_S = np.where(
                    (np.arange(len(chance_S)) == 0) | (np.arange(len(chance_S)) >= classes), chance_S, np.nan
                )
            one = share_row if score in SHARES else mean_row
            for shots, value_E in enumerate(value_ES.T):
                found[score, shots] = one(score, task, shots, value_E, float(chance_S[shots]))
            pooled = self._pooled(score, len(value_ES.T) - 1, classes)
            if not pooled:
                continue
            share_E, chance = value_ES[:, pooled].mean(1), float(chance_S[pooled].mean())
            if score in SHARES:
                answers_E = np.full(len(share_E), len(pooled))
                found[score, None] = clustered_share_row(score, task, None, share_E, answers_E, chance)
            else:
                found[score, None] = mean_row(score, task, None, share_E, chance)
        return found

    def _pooled(self, score: str, most: int, classes: int) -> list[int]:
        """The numbers of shots that a score's series pools; none where the context holds too few."""
        return list(range(max(self.shots_from, 1 if score in FORMAT else classes), most + 1))

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """Each task's scores, pooled over its answers with enough shots, and how many examples the format takes.

        A family holds the tasks of a kind: classification, or whether two words are related.
        """
        found = [
            Series(
                name=f"first_in_format/{task}",
                label=f"shots to the first answer in format, {_words(task)}",
                kind="icl",
                table="few_shot_episodes",
                value="first_in_format",
                where={"task": [task]},
                unit="examples",
                pool="episodes",
                sign=-1,
                smallest_rise=self.smallest_fall_of_shots,
                family="first_in_format (relations)" if self.tasks[task].pairs else "first_in_format",
                headline=False,
            )
            for task in facts["tasks"]
        ]
        for score, unit, rise, headline in (
            ("format_gained", UNIT, self.smallest_rise, True),
            ("constrained_accuracy", UNIT, self.smallest_rise, True),
            ("label_margin", "nats", self.smallest_margin_rise, False),
            ("accuracy_beyond_format", UNIT, self.smallest_rise, False),
        ):
            for task, of_task in facts["tasks"].items():
                shots = self._pooled(score, of_task["shots"], of_task["classes"])
                family = f"{score} (relations)" if self.tasks[task].pairs else score
                if shots:
                    found.append(
                        Series(
                            name=f"{score}/{task}",
                            label=f"{_words(score)}, {_words(task)}",
                            kind="icl",
                            table="few_shot_documents",
                            value=score,
                            where={"task": [task], "shots": shots},
                            unit=unit,
                            pool="episodes",
                            chance=of_task["chance"][score],
                            smallest_rise=rise,
                            share=score in SHARES,
                            family=family,
                            headline=headline,
                        )
                    )
        return found

    def curves(self, facts: Mapping[str, Any]) -> Sequence[Curve]:
        """Means over the tasks of a kind by the number of shots, for the pattern from as many shots as classes."""
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for task, of_task in facts["tasks"].items():
            kinds.setdefault(self._kind(task, of_task["classes"]), []).append(of_task)
        found = []
        for kind, tasks in kinds.items():
            most = min(of_task["shots"] for of_task in tasks)
            for score in ANSWERED:
                shots = range(0 if score in FORMAT else tasks[0]["classes"], most + 1)
                if shots:
                    found.append(
                        Curve(
                            figure="shots",
                            row=kind,
                            label=_words(score),
                            table="few_shot",
                            x="shots",
                            x_label="examples in the prompt",
                            unit=UNIT if score in SHARES else "nats",
                            where={"score": [score], "task": [kind], "shots": list(shots)},
                        )
                    )
        return found

    def _kind(self, task: str, classes: int) -> str:
        """Tasks of one kind have the same chance, so that their mean has one too."""
        return RELATIONS if self.tasks[task].pairs else f"{classes} classes"


def _documents(task: str, values: Mapping[str, np.ndarray]) -> pa.Table:
    """Each answer of a task as a row, in types that take little space; `values` are (E, S) each."""
    episodes_, shots = values["accuracy"].shape
    names = pa.array([f"{task}/episode-{e:03d}" for e in range(episodes_)])
    columns = {
        "task": pa.DictionaryArray.from_arrays(np.zeros(episodes_ * shots, np.int32), pa.array([task])),
        "document": pa.DictionaryArray.from_arrays(np.repeat(np.arange(episodes_, dtype=np.int32), shots), names),
        "shots": np.tile(np.arange(shots, dtype=np.int16), episodes_),
    }
    return pa.table(columns | {score: values[score].ravel().astype(np.float32) for score in SCORES})


def _by_episode(task: str, format_ES: np.ndarray) -> pa.Table:
    """The examples before an episode's first answer in the format; where none has it, one more than it has."""
    or_never_ES = np.append(format_ES, np.ones((len(format_ES), 1)), axis=1)
    names = [f"{task}/episode-{e:03d}" for e in range(len(format_ES))]
    return pa.table(
        {"task": [task] * len(names), "document": names, "first_in_format": or_never_ES.argmax(1).astype(np.int16)}
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _chances(episode: Episode, vocab_size: int) -> dict[str, float]:
    """What guessing gives: any token for the format, any label for the pattern. That of accuracy follows the format."""
    classes = len(episode.label_token_ids)
    return {
        "format_accuracy": len(episode.task_token_ids) / vocab_size,
        "constrained_accuracy": 1 / classes,
        "label_margin": -float(np.log(classes - 1)),
        "format_gained": 0.0,
        "accuracy_beyond_format": 0.0,
    }

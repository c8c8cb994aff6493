"""One checkpoint's measurements as tables: what the store keeps of it.

`prepare` draws everything that is the same at every checkpoint; `measure` reads one model.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy import special
from statsmodels.stats.proportion import proportion_confint
from transformers import PreTrainedTokenizerFast

from sih.config import Config
from sih.corpus import Document
from sih.heads import induction, relation_index
from sih.icl import few_shot, loss_reduction, prompts, texts
from sih.model import Model
from sih.relations import Example, Exclusions, agenda, balanced, custom, generated, treebank


@dataclass
class Inputs:
    """What a sweep measures on, the same at every checkpoint."""

    examples: list[Example]
    exclusions: list[tuple[str, str, int]]
    prompts: list[prompts.Prompt]
    loss_texts: list[tuple[str, list[int]]]
    random_tokens: induction.RandomTokens
    tokenizer_sha256: str  # of the tokenizer that all token ids here come from
    seed: int
    batch_tokens: int
    plan: relation_index.Plan = field(init=False)
    loss_ids_BT: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.loss_ids_BT = torch.tensor([ids for _, ids in self.loss_texts])
        self.plan = relation_index.plan(self.examples, self.seed, self.batch_tokens)

    def halved(self) -> "Inputs":
        """The same inputs in batches of half as many tokens."""
        return replace(self, batch_tokens=self.batch_tokens // 2)


def prepare(
    config: Config,
    files: dict[str, Path],
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_sha256: str,
    context: int,
    batch_tokens: int,
    held_out: list[Document] | None = None,
) -> Inputs:
    """Draw examples, prompts, texts and random tokens. `held_out`: documents of the embedded series.

    Raises:
        SihError: malformed data, nothing usable, or windows beyond the model's context.
    """
    loss = config.icl.loss
    loss_reduction.check_context(loss.windows, context)
    dropped = Exclusions()
    found = _examples(config, files, tokenizer, held_out, dropped)
    drawn = balanced(found, config.relations.per_relation, config.seed, dropped)
    asked, dropped_prompts = prompts.build(config.icl.few_shot, tokenizer, context, config.seed)
    long_texts = texts.read(files["loss_texts"]) if "loss_texts" in files else [_text(d) for d in held_out or []]
    return Inputs(
        examples=drawn,
        exclusions=dropped.rows() + dropped_prompts,
        prompts=asked,
        loss_texts=texts.cut(long_texts, tokenizer, loss_reduction.needed_length(loss.windows), loss.documents),
        random_tokens=induction.draw(
            len(tokenizer), config.heads.sequences, config.heads.length, config.heads.copying_tokens, config.seed
        ),
        tokenizer_sha256=tokenizer_sha256,
        seed=config.seed,
        batch_tokens=batch_tokens,
    )


def _text(document: Document) -> str:
    return " ".join(document.words)


def _examples(
    config: Config,
    files: dict[str, Path],
    tokenizer: PreTrainedTokenizerFast,
    held_out: list[Document] | None,
    dropped: Exclusions,
) -> list[Example]:
    relations, found = config.relations, []
    if relations.generated.enabled:
        found += generated.read((held_out or [])[: relations.generated.documents], tokenizer, dropped)
    if relations.agenda.enabled:
        ways = {relations.agenda.drop_function_words} | ({True, False} if relations.agenda.both_ways else set())
        for drop in sorted(ways, reverse=True):
            given = (files["agenda"], relations.agenda, drop, tokenizer, relations.max_tokens, config.seed, dropped)
            found += agenda.read(*given)
    for role in sorted(r for r in files if r.startswith("treebank")):
        found += treebank.read(files[role], relations.treebank.relations, tokenizer, relations.max_tokens, dropped)
    if relations.custom.enabled:
        found += custom.read(files["custom"], relations.custom, tokenizer, relations.max_tokens, dropped)
    return found


def measure(
    model: Model, inputs: Inputs, config: Config, say: Callable[[str], None]
) -> tuple[dict[str, pa.Table], dict[str, float]]:
    """All tables of one checkpoint, by file name, and the seconds of each phase; `say` hears which one runs.

    Raises:
        CheckpointError: losses or logits that are not finite.
    """
    tables: dict[str, pa.Table] = {}
    seconds: dict[str, float] = {}
    for phase, run in (("in-context learning", _icl), ("relation index", _relations), ("induction", _induction)):
        say(phase)
        started = time.perf_counter()
        tables |= run(model, inputs, config)
        seconds[phase] = round(time.perf_counter() - started, 3)
    return tables, seconds


def _relations(model: Model, inputs: Inputs, config: Config) -> dict[str, pa.Table]:
    taus = [config.relations.tau, *config.relations.more_taus]
    measured = relation_index.measure(model, inputs.plan, taus)
    names = relation_index.sums(taus)
    groups = inputs.plan.groups
    pooled: dict[tuple[str, str, str], list[int]] = {}
    for i, group in enumerate(groups):
        pooled.setdefault((group.source, group.relation, group.direction), []).append(i)
    keys = sorted(pooled)
    total_RLHS = np.stack([measured.sums_GLHS[pooled[key]].sum(0) for key in keys])
    # Everything below is flat: a row for each relation and head.
    relation, layer, head = (x.ravel() for x in np.indices(total_RLHS.shape[:3]))
    index = {"layer": layer, "head": head}
    index |= {
        what: np.array(of_keys, dtype=object)[relation]
        for what, of_keys in zip(("source", "relation", "direction"), zip(*keys, strict=True), strict=True)
    }
    total = dict(zip(names, total_RLHS.reshape(len(relation), -1).T, strict=True))
    opportunities = np.array([sum(groups[i].opportunities for i in pooled[key]) for key in keys])[relation]
    return {
        "relation_heads": pa.table(index | _default_variant(total, opportunities)),
        "relation_variants": _every_variant(index, total, taus),
        "relation_triplets": _best_heads(measured, inputs.plan, model.n_heads),
        "relation_documents": _by_document(measured.sums_GLHS, groups, names, taus),
    }


def _default_variant(total: dict[str, np.ndarray], opportunities: np.ndarray) -> dict[str, np.ndarray]:
    counts = {name: total[name].astype(np.int64) for name in total if name.endswith(("_events", "_scored"))}
    return {
        "opportunities": opportunities,
        "argmax_events": counts["argmax_events"],
        "argmax_scored": counts["argmax_scored"],
        "relation_index": _mean(total, "argmax"),
        "relation_index_per_opportunity": _ratio(total["argmax_sum"], opportunities),
        "strict_events": counts["strict_events"],
        "strict_scored": counts["strict_scored"],
        "relation_index_strict": _mean(total, "strict"),
        **{null: _mean(total, null) for null in relation_index.NULLS},
    }


def _every_variant(index: dict[str, np.ndarray], total: dict[str, np.ndarray], taus: list[float]) -> pa.Table:
    """Every variant of x_j under every gate; nulls beside the argmax gate, at whose events they are."""
    rows = []
    for variant in relation_index.VARIANTS:
        begin = relation_index.prefix(variant)
        for gate, tau in zip(relation_index.gates(taus), [np.nan, *taus], strict=True):
            events, scored = total[f"{gate}_events"], total[f"{begin}{gate}_scored"]
            row = {
                "variant": np.full(len(events), variant, dtype=object),
                "gate": np.full(len(events), gate.split("_")[0], dtype=object),
                "tau": np.full(len(events), tau),
                "events": events.astype(np.int64),
                "scored": scored.astype(np.int64),
                "undefined": (events - scored).astype(np.int64),
                "relation_index": _mean(total, f"{begin}{gate}"),
            }
            undefined = np.full(len(events), np.nan)
            for null in relation_index.NULLS:
                row[null] = _mean(total, f"{begin}{null}") if gate == "argmax" else undefined
            rows.append(row)
    repeated = {name: np.repeat(column, len(rows)) for name, column in index.items()}
    return pa.table(repeated | {name: np.stack([row[name] for row in rows], axis=1).ravel() for name in rows[0]})


def _best_heads(measured: relation_index.Measured, plan: relation_index.Plan, n_heads: int) -> pa.Table:
    """How many triplets each head raises most, of all heads, beside the same for a random seen token [Ren §5]."""
    keys = sorted(set(plan.triplets))
    place = {key: i for i, key in enumerate(keys)}
    key_R = np.array([place[triplet] for triplet in plan.triplets])
    pairs_R2 = [np.stack([key_R, best_R], axis=1) for best_R in (measured.best_R, measured.best_null_R)]
    found, row = np.unique(np.concatenate(pairs_R2), axis=0, return_inverse=True)
    counts = [np.bincount(part, minlength=len(found)) for part in np.split(row.ravel(), 2)]
    key, best = found.T
    columns = {what: [keys[k][i] for k in key] for i, what in enumerate(("source", "relation", "direction"))}
    where = {"layer": np.where(best < 0, -1, best // n_heads), "head": np.where(best < 0, -1, best % n_heads)}
    return pa.table(columns | where | {"triplets": counts[0], "triplets_null_random": counts[1]})


def _by_document(
    sums_GLHS: np.ndarray, groups: list[relation_index.Group], names: list[str], taus: list[float]
) -> pa.Table:
    """Sums of each document, wherever a head had an event: for resampling. The further taus are left out.

    Shares are summed in float64 and kept in float32, those of the further variants in float16 (four digits; their
    exact totals are in relation_variants): 154 checkpoints of pythia-410m stay under 2 GB.
    """
    g, layer, head = np.nonzero(sums_GLHS[..., 0])
    columns = {
        "document": _repeated([x.document for x in groups], g),
        "source": _repeated([x.source for x in groups], g),
        "relation": _repeated([x.relation for x in groups], g),
        "direction": _repeated([x.direction for x in groups], g),
        "layer": pa.array(layer.astype(np.int16)),
        "head": pa.array(head.astype(np.int16)),
    }
    further = tuple(f"strict_{tau:g}_" for tau in taus[1:])
    for s, name in enumerate(names):
        if name.removeprefix("attended_").removeprefix("contextual_").startswith(further):
            continue
        of_variant = name.startswith(("attended_", "contextual_"))
        kind = (np.float16 if of_variant else np.float32) if name.endswith("_sum") else np.int32
        columns[name] = pa.array(sums_GLHS[g, layer, head, s].astype(kind))
    return pa.table(columns)


def _mean(total: dict[str, np.ndarray], name: str) -> np.ndarray:
    return _ratio(total[f"{name}_sum"], total[f"{name}_scored"])


def _induction(model: Model, inputs: Inputs, config: Config) -> dict[str, pa.Table]:
    score_ABLH = induction.attention_scores(model, inputs.random_tokens, inputs.batch_tokens)
    copying_LH = induction.copying_score(model, inputs.random_tokens)
    layer, head = (x.ravel() for x in np.indices(copying_LH.shape))
    sequence, layer_B, head_B = (x.ravel() for x in np.indices(score_ABLH.shape[1:]))
    by_head = {"layer": layer, "head": head, "prefix_matching_score": None, "copying_score": copying_LH.ravel()}
    by_sequence = {
        "sequence": sequence.astype(np.int16),
        "layer": layer_B.astype(np.int16),
        "head": head_B.astype(np.int16),
    }
    for name, value_BLH in zip(induction.ATTENTION_SCORES, score_ABLH, strict=True):
        by_head[name] = value_BLH.mean(0).ravel()
        by_sequence[name] = value_BLH.ravel().astype(np.float32)
    return {"induction_heads": pa.table(by_head), "induction_documents": pa.table(by_sequence)}


def _icl(model: Model, inputs: Inputs, config: Config) -> dict[str, pa.Table]:
    rows: list[dict[str, object]] = []
    documents: list[dict[str, object]] = []
    positions = loss_reduction.positions_read(config.icl.loss.windows)
    loss_BT = loss_reduction.token_losses(model, inputs.loss_ids_BT, positions, inputs.batch_tokens)
    for name, window in config.icl.loss.windows.items():
        value_B = loss_reduction.loss_reduction(loss_BT, window)
        rows.append(_mean_row("loss_reduction", name, None, _by_text(inputs, value_B), chance=0.0))
        documents += [
            {"score": "loss_reduction", "task": name, "shots": None, "document": d, "value": float(v)}
            for (d, _), v in zip(inputs.loss_texts, value_B, strict=True)
        ]
    uniform = float(np.log(model.vocab_size))
    for t in loss_reduction.log_spaced_positions(loss_BT.shape[1]):
        rows.append(_mean_row("loss", f"position_{t}", None, _by_text(inputs, loss_BT[:, t]), chance=uniform))
    shares: dict[tuple[str, int, str], float] = {}
    answers = few_shot.answer(model, inputs.prompts, inputs.batch_tokens)
    for task, shots in dict.fromkeys((p.task, p.shots) for p in inputs.prompts):
        chosen = [n for n, p in enumerate(inputs.prompts) if (p.task, p.shots) == (task, shots)]
        labels = len(inputs.prompts[chosen[0]].label_token_ids)
        chance = {
            "format_accuracy": labels / model.vocab_size,
            "accuracy": 1 / labels,
            "constrained_accuracy": 1 / labels,
            "label_margin": -float(np.log(labels - 1)),
        }
        for score in few_shot.SCORES:
            value_N = getattr(answers, score)[chosen]
            row = _mean_row if score == "label_margin" else _share_row
            rows.append(row(score, task, shots, value_N, chance[score]))
            shares[task, shots, score] = float(value_N.mean())
            documents += [
                {
                    "score": score,
                    "task": task,
                    "shots": shots,
                    "document": f"query-{inputs.prompts[n].query:03d}",
                    "value": float(v),
                }
                for n, v in zip(chosen, value_N, strict=True)
            ]
    for task in dict.fromkeys(p.task for p in inputs.prompts):
        format_of = {shots: v for (t, shots, score), v in shares.items() if (t, score) == (task, "format_accuracy")}
        count = sum(p.task == task for p in inputs.prompts)
        rows.append(_row("shots_to_format", task, None, count, few_shot.shots_to(format_of), *[float("nan")] * 3))
    return {"icl": pa.Table.from_pylist(rows), "icl_documents": pa.Table.from_pylist(documents)}


def _by_text(inputs: Inputs, values_B: np.ndarray) -> np.ndarray:
    """Means over the pieces of each text: pieces of one text are not independent."""
    _, text_B = np.unique([name for name, _ in inputs.loss_texts], return_inverse=True)
    return np.bincount(text_B, values_B) / np.bincount(text_B)


def _mean_row(score: str, task: str, shots: int | None, values: np.ndarray, chance: float) -> dict[str, object]:
    """Mean over documents with Student's t interval; without one (NaN) where there is a single document."""
    mean, half = float(values.mean()), float("nan")
    if len(values) > 1:
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        half = float(special.stdtrit(len(values) - 1, 0.975)) * error
    return _row(score, task, shots, len(values), mean, mean - half, mean + half, chance)


def _share_row(score: str, task: str, shots: int | None, values: np.ndarray, chance: float) -> dict[str, object]:
    """Share of prompts with Wilson's interval."""
    low, high = _wilson(int(values.sum()), len(values))
    return _row(score, task, shots, len(values), float(values.mean()), low, high, chance)


@cache
def _wilson(count: int, n: int) -> tuple[float, float]:
    low, high = proportion_confint(count, n, method="wilson")
    return float(low), float(high)


def _row(
    score: str, task: str, shots: int | None, n: int, value: float, low: float, high: float, chance: float
) -> dict[str, object]:
    return {
        "score": score,
        "task": task,
        "shots": shots,
        "n": n,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "chance": chance,
    }


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count, NaN where nothing was counted."""
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _repeated(names: list[str], index: np.ndarray) -> pa.DictionaryArray:
    unique = list(dict.fromkeys(names))
    code = np.array([unique.index(n) for n in names], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(code[index]), pa.array(unique))

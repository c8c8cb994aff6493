"""In-context learning in the loss: what the far context gains, and late tokens against early ones [Ren §4.1; Olsson].

Late tokens of a text may be easier by themselves, so loss reduction says little without a control. Context gain is
that control: the same tokens, predicted with and without the text's beginning.

Every text begins with the id that documents began with in training. So prediction t, which reads ids 0..t and is
scored on id t + 1, is the loss of the text's token t, counted from 0. Where documents began with no such id,
prediction t is the loss of the text's token t + 1.

Letters: B documents, T positions, P positions whose loss is read, S positions of the short texts, D d_model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from sih.errors import CheckpointError, SihError
from sih.scores import Curve, Drawn, Given, Series
from sih.scores.tables import COLUMNS, mean_row
from sih.texts import long
from sih.texts.datafiles import located
from sih.texts.long import HELD_OUT, WIKITEXT, short_texts
from sih.texts.written import jsonl

if TYPE_CHECKING:
    from sih.models.model import Model


def needed_length(windows: Mapping[str, Sequence[int]], late: Sequence[int]) -> int:
    """Ids that a text must have: the last prediction of a window, or of the `late` stretch, needs the id after it."""
    return max(late[1], *(window[3] for window in windows.values())) + 1


def check_context(windows: Mapping[str, Sequence[int]], late: Sequence[int], context: int) -> None:
    """Raises SihError when a window or the `late` stretch reaches beyond the model's context."""
    stops = {f"windows.{name}": window[3] for name, window in windows.items()} | {"context_gain": late[1]}
    name = max(stops, key=lambda n: stops[n])
    if stops[name] + 1 > context:
        raise SihError(
            f"scores.loss_reduction.{name} needs {stops[name] + 1} tokens, but the model's context is {context}; "
            "name positions that fit, as conf/icl/generated.yaml does"
        )


def positions_read(windows: Mapping[str, Sequence[int]], late: Sequence[int]) -> list[int]:
    """Predictions that a window, the `late` stretch or the curve reads, increasing; others get no logits."""
    read = {*log_spaced_positions(needed_length(windows, late) - 1), *range(late[0], late[1])}
    for early, early_stop, late_start, late_stop in windows.values():
        read |= {*range(early, early_stop), *range(late_start, late_stop)}
    return sorted(read)


def token_losses(model: "Model", ids_BT: torch.Tensor, positions: Sequence[int], batch_tokens: int) -> np.ndarray:
    """Loss of predictions, nats, float64 (B, T - 1): entry t is -log p(token t + 1 | tokens 0..t).

    NaN wherever t is not in `positions`.

    Raises:
        CheckpointError: a loss that is not finite.
    """
    size = max(1, batch_tokens // ids_BT.shape[1])
    read_P = torch.tensor(positions)
    losses = []
    for chunk_BT in ids_BT.split(size):
        hidden_BPD = model.hidden(chunk_BT)[:, read_P.to(model.device)]
        target_BP = chunk_BT[:, read_P + 1].to(model.device)
        # One text's logits at a time: all of them, B x P x V, would be the largest tensor of the whole sweep.
        rows = [
            _losses(model.unembed(hidden_PD), target_P)
            for hidden_PD, target_P in zip(hidden_BPD, target_BP, strict=True)
        ]
        losses.append(torch.stack(rows).cpu().double())
    loss_BP = torch.cat(losses).numpy()
    if not np.isfinite(loss_BP).all():
        raise CheckpointError(f"{(~np.isfinite(loss_BP)).sum()} of {loss_BP.size} losses are NaN or infinite")
    loss_BT = np.full((len(ids_BT), ids_BT.shape[1] - 1), np.nan)
    loss_BT[:, positions] = loss_BP
    return loss_BT


@torch.inference_mode()
def _losses(logits_PV: torch.Tensor, target_P: torch.Tensor) -> torch.Tensor:
    """-log p of each target, (P,). Overwrites the logits, since a second tensor of their size would be slow."""
    torch.log_softmax(logits_PV, dim=1, out=logits_PV)
    return -logits_PV.gather(1, target_P[:, None])[:, 0]


def loss_reduction(loss_BT: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """Each document's mean loss in the late window minus that in the early one, nats, (B,).

    `window` is [early start, early stop, late start, late stop], 0-based predictions, half open. Negative values
    mean that later tokens are predicted better: more in-context learning.
    """
    early, early_stop, late, late_stop = window
    return loss_BT[:, late:late_stop].mean(1) - loss_BT[:, early:early_stop].mean(1)


def context_gain(loss_BT: np.ndarray, short_loss_BS: np.ndarray, late: Sequence[int], read: range) -> np.ndarray:
    """Each document's mean loss of its late tokens given the short text alone, minus that given everything, nats, (B,).

    `read` are the short texts' predictions of the same tokens. Positive values mean that what comes before the short
    text helps: more in-context learning. 0 for a model that does not look back beyond it.
    """
    return short_loss_BS[:, read].mean(1) - loss_BT[:, late[0] : late[1]].mean(1)


def log_spaced_positions(count: int) -> list[int]:
    """Predictions 0, 1, 3, 7, 15, ... and the last of `count`: where the loss curve is kept."""
    return sorted({2**k - 1 for k in range(count.bit_length()) if 2**k <= count} | {count - 1})


@dataclass(frozen=True)
class Inputs:
    """What is measured: pieces of the texts in `names`; pieces of one text are not independent.

    `short_BS` are the ends of `ids_BT` as texts of their own, whose predictions `short_read` are of the late tokens.
    `before` is how many of a text's tokens prediction 0 reads: 0 where it reads only the id that texts begin with.
    """

    names: list[str]
    ids_BT: torch.Tensor
    short_BS: torch.Tensor
    short_read: range
    before: int


@dataclass
class LossReduction:
    """The score; conf/scores/loss_reduction.yaml and conf/icl/ have the meanings and defaults of its options."""

    texts: str | None
    documents: int
    windows: dict[str, list[int]]
    context_gain: list[int]
    smallest_rise: float

    version = 3
    shown = ("smallest_rise",)
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "loss_reduction": COLUMNS,
        "loss_curve": ("position", "n", "value", "ci_low", "ci_high", "chance"),
        "loss_documents": ("score", "task", "document", "value"),
    }

    def __post_init__(self) -> None:
        if self.documents < 2:
            raise SihError(f"scores.loss_reduction.documents={self.documents}; expected at least 2")
        for name, window in self.windows.items():
            if len(window) != 4 or not 0 <= window[0] < window[1] <= window[2] < window[3]:
                raise SihError(
                    f"scores.loss_reduction.windows.{name}={list(window)}; "
                    "expected [early start, early stop, late start, late stop]"
                )
        late = self.context_gain
        if len(late) != 3 or not 0 <= late[2] < late[0] < late[1]:
            raise SihError(
                f"scores.loss_reduction.context_gain={list(late)}; expected [late start, late stop, short start], "
                "with the short start before the late start"
            )

    def files(self) -> dict[str, Path]:
        """The file of texts: your own, or raw WikiText-2; none for the embedded series' documents."""
        return {} if self.texts == HELD_OUT else {"loss_texts": located(WIKITEXT, self.texts)}

    def measured(self) -> dict[str, Any]:
        """The options that numbers depend on; of the texts' path, only the format."""
        kind = self.texts if self.texts in (None, HELD_OUT) else Path(self.texts).suffix
        return {
            "texts": kind,
            "documents": self.documents,
            "windows": {k: list(v) for k, v in self.windows.items()},
            "context_gain": list(self.context_gain),
        }

    def draw(self, given: Given) -> Drawn:
        """Pieces of one length, from as many different texts as possible."""
        check_context(self.windows, self.context_gain, given.context)
        texts = long.chosen(self.texts, given.files.get("loss_texts"), lambda: given.held_out(self.documents))
        length = needed_length(self.windows, self.context_gain)
        pieces = long.cut(texts, given.tokenizer, length, self.documents, given.start)
        ids_BT = torch.tensor([ids for _, ids in pieces])
        short_BS, short_read = short_texts(ids_BT, self.context_gain, given.start)
        return Drawn(
            Inputs([name for name, _ in pieces], ids_BT, short_BS, short_read, before=int(given.start is None)),
            files={"loss_texts.jsonl": jsonl({"document": d, "token_ids": ids} for d, ids in pieces)},
            told=f"{len(pieces)} texts for the loss",
        )

    def measure(self, model: "Model", inputs: Inputs, batch_tokens: int) -> dict[str, pa.Table]:
        """Context gain and every window's reduction, by text and on average, and the loss over the context.

        Raises:
            CheckpointError: a loss that is not finite.
        """
        loss_BT = token_losses(model, inputs.ids_BT, positions_read(self.windows, self.context_gain), batch_tokens)
        short_loss_BS = token_losses(model, inputs.short_BS, inputs.short_read, batch_tokens)
        found = {("context_gain", "late"): context_gain(loss_BT, short_loss_BS, self.context_gain, inputs.short_read)}
        found |= {("loss_reduction", name): loss_reduction(loss_BT, window) for name, window in self.windows.items()}
        rows, documents = [], []
        for (score, task), value_B in found.items():
            of_texts = _by_text(inputs, value_B)
            rows.append(mean_row(score, task, None, of_texts, chance=0.0))
            documents += [
                {"score": score, "task": task, "document": str(d), "value": float(v)}
                for d, v in zip(np.unique(inputs.names), of_texts, strict=True)
            ]
        return {
            "loss_reduction": pa.Table.from_pylist(rows),
            "loss_curve": pa.Table.from_pylist(_curve(inputs, loss_BT, float(np.log(model.vocab_size)))),
            "loss_documents": pa.Table.from_pylist(documents),
        }

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """Means over texts of context gain and of each window's reduction; a text is the mean of its pieces."""
        return [
            self._series("context_gain", "context gain", "context_gain", "late", sign=1, headline=True),
            *(
                self._series(
                    f"loss_reduction/{name}", f"loss reduction, {name.replace('_', ' ')}", "loss_reduction", name,
                    sign=-1, headline=False,
                )
                for name in self.windows
            ),
        ]  # fmt: skip

    def _series(self, name: str, label: str, score: str, task: str, sign: int, headline: bool) -> Series:
        return Series(
            name=name,
            label=label,
            kind="icl",
            table="loss_documents",
            value="value",
            where={"score": [score], "task": [task]},
            unit="nats",
            pool="texts",
            sign=sign,
            chance=0.0,
            smallest_rise=self.smallest_rise,
            headline=headline,
        )

    def curves(self, facts: Mapping[str, Any]) -> Sequence[Curve]:
        """The loss over the number of tokens before the predicted one."""
        return [
            Curve(
                figure="positions",
                row="loss",
                label="loss",
                table="loss_curve",
                x="position",
                x_label="tokens before",
                unit="nats",
                log_x=True,
                over_training="held_out_loss",
            )
        ]


def _curve(inputs: Inputs, loss_BT: np.ndarray, chance: float) -> list[dict[str, Any]]:
    """Mean loss at log-spaced positions, with `position` the number of the text's tokens before the predicted one."""
    rows = []
    for t in log_spaced_positions(loss_BT.shape[1]):
        mean = mean_row("loss", "", None, _by_text(inputs, loss_BT[:, t]), chance)
        kept = {column: mean[column] for column in ("n", "value", "ci_low", "ci_high", "chance")}
        rows.append({"position": t + inputs.before, **kept})
    return rows


def _by_text(inputs: Inputs, values_B: np.ndarray) -> np.ndarray:
    """Means over the pieces of each text."""
    _, text_B = np.unique(inputs.names, return_inverse=True)
    return np.bincount(text_B, values_B) / np.bincount(text_B)

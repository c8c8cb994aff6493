"""Loss reduction: how much better late tokens of a text are predicted than early ones [Ren §4.1; Olsson].

Letters: B documents, T positions, P positions whose loss is read, D d_model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from sih.errors import CheckpointError, SihError
from sih.scores import Drawn, Given, Series
from sih.scores.tables import COLUMNS, mean_row
from sih.texts import long
from sih.texts.datafiles import located
from sih.texts.written import jsonl

if TYPE_CHECKING:
    from sih.models.gpt_neox import Model

HELD_OUT = "held-out"  # as the value of the option `texts`: documents of the embedded series


def needed_length(windows: Mapping[str, Sequence[int]]) -> int:
    """Tokens that a text must have: the last prediction needs the token after it."""
    return max(window[3] for window in windows.values()) + 1


def check_context(windows: Mapping[str, Sequence[int]], context: int) -> None:
    """Raises SihError when a window reaches beyond the model's context."""
    if needed_length(windows) > context:
        name = max(windows, key=lambda n: windows[n][3])
        raise SihError(
            f"scores.loss_reduction.windows.{name} needs {windows[name][3] + 1} tokens, "
            f"but the model's context is {context}; "
            "name windows that fit, as conf/icl/generated.yaml does"
        )


def positions_read(windows: Mapping[str, Sequence[int]]) -> list[int]:
    """Predictions that a window or the loss curve reads, increasing; logits are computed only for these."""
    read = set(log_spaced_positions(needed_length(windows) - 1))
    for early, early_stop, late, late_stop in windows.values():
        read |= {*range(early, early_stop), *range(late, late_stop)}
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


def log_spaced_positions(count: int) -> list[int]:
    """Predictions 0, 1, 3, 7, 15, ... and the last of `count`: where the loss curve is kept."""
    return sorted({2**k - 1 for k in range(count.bit_length()) if 2**k <= count} | {count - 1})


@dataclass(frozen=True)
class Inputs:
    """`ids_BT` are pieces of the texts in `names`; pieces of one text are not independent."""

    names: list[str]
    ids_BT: torch.Tensor


@dataclass
class LossReduction:
    """The score; conf/scores/loss_reduction.yaml and conf/icl/ have the meanings and defaults of its options."""

    texts: str | None
    documents: int
    windows: dict[str, list[int]]
    headline: str
    smallest_rise: float

    version = 2
    shown = ("headline", "smallest_rise")
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "loss_reduction": COLUMNS,
        "loss_documents": ("score", "task", "document", "value"),
    }

    def __post_init__(self) -> None:
        if self.documents < 2:
            raise SihError(f"scores.loss_reduction.documents={self.documents}; expected at least 2")
        if self.headline not in self.windows:
            raise SihError(f"scores.loss_reduction.headline={self.headline}; expected one of {list(self.windows)}")
        for name, window in self.windows.items():
            if len(window) != 4 or not 0 <= window[0] < window[1] <= window[2] < window[3]:
                raise SihError(
                    f"scores.loss_reduction.windows.{name}={list(window)}; "
                    "expected [early start, early stop, late start, late stop]"
                )

    def files(self) -> dict[str, Path]:
        """The file of texts: your own, or WikiText-2; none for the embedded series' documents."""
        return {} if self.texts == HELD_OUT else {"loss_texts": located("wikitext2-test.txt", self.texts)}

    def measured(self) -> dict[str, Any]:
        """The options that numbers depend on; of the texts' path, only the format."""
        kind = self.texts if self.texts in (None, HELD_OUT) else Path(self.texts).suffix
        return {"texts": kind, "documents": self.documents, "windows": {k: list(v) for k, v in self.windows.items()}}

    def draw(self, given: Given) -> Drawn:
        """Pieces of one length, from as many different texts as possible."""
        check_context(self.windows, given.context)
        if self.texts == HELD_OUT:
            texts = [" ".join(document.words) for document in given.held_out(self.documents)]
        else:
            texts = long.read(given.files["loss_texts"])
        pieces = long.cut(texts, given.tokenizer, needed_length(self.windows), self.documents)
        return Drawn(
            Inputs([name for name, _ in pieces], torch.tensor([ids for _, ids in pieces])),
            files={"loss_texts.jsonl": jsonl({"document": d, "token_ids": ids} for d, ids in pieces)},
            told=f"{len(pieces)} texts for the loss",
        )

    def measure(self, model: "Model", inputs: Inputs, batch_tokens: int) -> dict[str, pa.Table]:
        """Every window's reduction, by document and on average, and the loss at log-spaced positions.

        Raises:
            CheckpointError: a loss that is not finite.
        """
        loss_BT = token_losses(model, inputs.ids_BT, positions_read(self.windows), batch_tokens)
        rows, documents = [], []
        for name, window in self.windows.items():
            value_B = loss_reduction(loss_BT, window)
            rows.append(mean_row("loss_reduction", name, None, _by_text(inputs, value_B), chance=0.0))
            documents += [
                {"score": "loss_reduction", "task": name, "document": d, "value": float(v)}
                for d, v in zip(inputs.names, value_B, strict=True)
            ]
        uniform = float(np.log(model.vocab_size))
        for t in log_spaced_positions(loss_BT.shape[1]):
            rows.append(mean_row("loss", f"position_{t}", None, _by_text(inputs, loss_BT[:, t]), chance=uniform))
        return {"loss_reduction": pa.Table.from_pylist(rows), "loss_documents": pa.Table.from_pylist(documents)}

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """Mean over texts of each window's reduction; pieces of one text are pooled."""
        return [
            Series(
                name=f"loss_reduction/{name}",
                label=f"loss reduction, {name.replace('_', ' ')}",
                kind="icl",
                table="loss_documents",
                value="value",
                where={"score": ["loss_reduction"], "task": [name]},
                unit="nats",
                pool="texts",
                sign=-1,
                chance=0.0,
                smallest_rise=self.smallest_rise,
                headline=name == self.headline,
            )
            for name in self.windows
        ]


def _by_text(inputs: Inputs, values_B: np.ndarray) -> np.ndarray:
    """Means over the pieces of each text."""
    _, text_B = np.unique(inputs.names, return_inverse=True)
    return np.bincount(text_B, values_B) / np.bincount(text_B)

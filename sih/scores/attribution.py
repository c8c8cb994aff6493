"""Attribution: what taking out each head would do to in-context learning, to first order, all heads at once.

For an outcome M, one forward and one backward pass give g[h, t] = dM / dz[h, t] for what every head puts out. With r in
its place, M changes by about sum over t >= 1 of <r - z[h, t], g[h, t]>; r is the head's mean over other texts
(`mean`), or 0 (`zero`). Effects of a set of heads are the sums of theirs. Beyond first order nothing is seen: neither
that a head makes up for another, nor an attention that is saturated. The knock-outs beside it are exact, for few sets.

Letters: B texts, T positions, L layers, H heads, K d_head, N outcomes, R references.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from sih.config import EffectsConfig
from sih.models.replacing import mean_outputs, outputs_through
from sih.scores import Drawn, FirstOrder, Given, HeadMap, Series, outcomes, plain
from sih.scores.outcomes import Inputs, Reading

if TYPE_CHECKING:
    from sih.models.model import Model

REFERENCES = ("mean", "zero")
_GRADED = 4  # times as much memory as a forward pass takes, so as many fewer tokens in one


def attributions(
    model: "Model",
    reading: Reading,
    mean_LHK: torch.Tensor,
    batch_tokens: int,
) -> dict[str, np.ndarray]:
    """First-order effects on each outcome of the reading, float64 (R, B, L, H) by outcome; accuracies have none.

    Raises:
        CheckpointError: an outcome that is not finite.
    """
    found: dict[str, list[np.ndarray]] = {}
    for batch in reading.batches(batch_tokens // _GRADED):
        for name, effect_RBLH in _of_batch(model, batch, mean_LHK).items():
            found.setdefault(name, []).append(effect_RBLH)
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


def _of_batch(model: "Model", batch: Reading, mean_LHK: torch.Tensor) -> dict[str, np.ndarray]:
    shape = (len(REFERENCES), len(batch.ids_BT), model.n_layers, model.n_heads)
    effect_RBLH = torch.zeros(shape, device=model.device)

    def watch(layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def watched(z_BTHK: torch.Tensor) -> torch.Tensor:
            if not z_BTHK.requires_grad:
                z_BTHK = z_BTHK.detach().requires_grad_()
            own_BTHK = z_BTHK.detach()

            def add(g_BTHK: torch.Tensor) -> None:
                g_BTHK = g_BTHK[:, 1:].float()
                minus_z_BH = -(own_BTHK[:, 1:] * g_BTHK).sum((1, 3))
                effect_RBLH[1, :, layer] = minus_z_BH
                effect_RBLH[0, :, layer] = minus_z_BH + torch.einsum("bhk,hk->bh", g_BTHK.sum(1), mean_LHK[layer])

            z_BTHK.register_hook(add)
            return z_BTHK

        return watched

    with outputs_through(model, {n: watch(n) for n in range(model.n_layers)}):
        hidden_BTD = model.hidden(batch.ids_BT, gradients=True)
    with torch.enable_grad():
        value_NB = outcomes.read(model, batch, hidden_BTD)
    graded = [n for n, name in enumerate(batch.names) if not name.startswith(outcomes.ANSWERED[-1])]
    found = {}
    for n in graded:
        value_NB[n].sum().backward(retain_graph=n != graded[-1])
        found[batch.names[n]] = effect_RBLH.cpu().double().numpy().copy()
    return found


@dataclass
class Attribution:
    """The score; conf/scores/attribution.yaml and conf/_icl.yaml have the meanings and defaults of its options."""

    effects: EffectsConfig
    smallest_rise: float

    version = 1
    shown = ("smallest_rise",)
    intervenes = True
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "attribution_heads": ("outcome", "layer", "head", *REFERENCES),
        "attribution_documents": ("outcome", "document", "layer", "head", *REFERENCES),
    }

    def files(self) -> dict[str, Path]:
        """The file of texts, if there is one."""
        return outcomes.files(self.effects)

    def measured(self) -> dict[str, Any]:
        """All options but the file's path."""
        return outcomes.measured(self.effects, plain(self.effects))

    def draw(self, given: Given) -> Drawn:
        """Texts, sequences and episodes; half of the texts are the reference."""
        inputs, text = outcomes.draw(self.effects, given)
        names = [n for n in inputs.names if not n.startswith(outcomes.ANSWERED[-1])]
        return Drawn(inputs, files={"effect_inputs.jsonl": text}, facts={"outcomes": names})

    def measure(self, model: "Model", inputs: Inputs, batch_tokens: int) -> dict[str, pa.Table]:
        """First-order effects of every head, by document and on average.

        Raises:
            CheckpointError: an outcome that is not finite.
        """
        mean_LHK = mean_outputs(model, inputs.reference_BT, batch_tokens)
        by_name: dict[str, np.ndarray] = {}
        documents: dict[str, tuple[str, ...]] = {}
        for reading in inputs.by_gradient:
            of_reading = attributions(model, reading, mean_LHK, batch_tokens)
            by_name |= of_reading
            documents |= dict.fromkeys(of_reading, reading.documents)
        by_name = outcomes.with_differences(by_name)
        documents |= {name: documents[of] for name, (of, _) in outcomes.DIFFERENCES.items()}
        return {
            "attribution_heads": pa.concat_tables(
                [_table(name, None, effect_RBLH.mean(1)[:, None]) for name, effect_RBLH in by_name.items()]
            ),
            "attribution_documents": pa.concat_tables(
                [_table(name, documents[name], effect_RBLH) for name, effect_RBLH in by_name.items()]
            ).unify_dictionaries(),
        }

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """None: over training, single heads are read from the maps, and sets from the knock-outs."""
        return []

    def first_order(self) -> FirstOrder:
        """Effects of mean ablation."""
        return FirstOrder("attribution_heads", REFERENCES[0])

    def maps(self, facts: Mapping[str, Any]) -> Sequence[HeadMap]:
        """The first-order effect of mean ablation on each outcome, for every head."""
        return [
            HeadMap(f"attribution of {name}", f"attribution, {outcomes.labelled(name)}", "attribution_heads", ("mean",),
                    where={"outcome": [name]})
            for name in facts.get("outcomes", ())
        ]  # fmt: skip


def _table(name: str, documents: Sequence[str] | None, effect_RBLH: np.ndarray) -> pa.Table:
    """Rows for an outcome, a document and a head, in types that take little space."""
    rows, layer, head = (x.ravel() for x in np.indices(effect_RBLH.shape[1:]))

    def repeated(values: Sequence[str], index: np.ndarray) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(list(values)))

    columns: dict[str, Any] = {"outcome": repeated([name], np.zeros(len(rows)))}
    if documents is not None:
        columns["document"] = repeated(documents, rows)
    columns |= {"layer": layer.astype(np.int16), "head": head.astype(np.int16)}
    columns |= {r: effect.ravel().astype(np.float32) for r, effect in zip(REFERENCES, effect_RBLH, strict=True)}
    return pa.table(columns)

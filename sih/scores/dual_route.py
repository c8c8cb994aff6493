"""Token and concept copying: heads that carry an entity's next token, and heads that carry its later ones.

The causal scores of Feucht et al. 2025 (arXiv 2504.03022, section 2). A prompt says random tokens r and an entity e,
and after a newline the same again up to the entity's first token; in the corrupted prompt other random tokens s stand
before the newline:

    clean      start r1 ... rk e1 e2 ... en newline r1 ... rk e1
    corrupted  start s1 ... .. .. .. ... sm newline r1 ... rk e1

What one head puts out at the last rk of the corrupted prompt is replaced by what it puts out there in the clean one.

- Token copying: by how much that raises the logit of e1 there. Entities are random tokens.
- Concept copying: by how much it raises the logit of e2 one place later, where e1 is said. Entities are those of texts,
  of 2 to 5 tokens. The head has to carry more than the next token.

Two deviations. Logits are above their mean over the vocabulary, since a shift of all logits changes no prediction. And
they, not probabilities, are the score: these are about 0 at early checkpoints whatever a head does, and stand beside.

Letters: B prompts, T positions, L layers, H heads, K d_head, N heads and none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from sih.config import AgendaConfig
from sih.errors import CheckpointError, SihError
from sih.models.replacing import at_the_end, outputs
from sih.scores import Drawn, Given, HeadMap, Series
from sih.texts import agenda
from sih.texts.datafiles import located, read_lines
from sih.texts.written import jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sih.models.model import Model

LENGTHS = (2, 3, 4, 5)  # tokens of an entity
TOKENS, CONCEPTS = "random tokens", "entities"
CHANGES = ("next_logit", "later_logit", "next_prob", "later_prob")
_AT_ONCE = 256  # heads in a pass


@dataclass(frozen=True)
class Prompt:
    """A clean and a corrupted prompt of the same length, both up to the entity's first token.

    kind: `random tokens` or `entities`. next, later: the entity's first and second token.
    """

    kind: str
    document: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    next: int
    later: int


@torch.inference_mode()
def changes(model: "Model", prompts: Sequence[Prompt]) -> np.ndarray:
    """CHANGES of every head on prompts of one length, float64 (4, B, L, H), in their order.

    Each is with the head's clean output minus without, so what a head carries is positive: of logits above their mean
    over the vocabulary, and of probabilities; of the entity's first token (next) and, one place later, its second.

    Raises:
        CheckpointError: a logit that is not finite.
    """
    clean_BT, corrupted_BT = (torch.tensor([getattr(p, which) for p in prompts]) for which in ("clean", "corrupted"))
    # What comes after the replaced position changes nothing there.
    own = {layer: z_BTHK[:, -1] for layer, z_BTHK in outputs(model, clean_BT[:, :-1]).items()}
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    hidden_NBTD = at_the_end(model, corrupted_BT, heads, own, _AT_ONCE, following=1)
    found_4NB = []
    wanted_2B = torch.tensor([[p.next for p in prompts], [p.later for p in prompts]], device=model.device)
    for hidden_BTD in hidden_NBTD:
        logits_2BV = model.unembed(hidden_BTD).float().transpose(0, 1)
        logit_2B = logits_2BV.gather(2, wanted_2B[:, :, None])[..., 0]
        prob_2B = (logit_2B - logits_2BV.logsumexp(-1)).exp()
        found_4NB.append(torch.cat([logit_2B - logits_2BV.mean(-1), prob_2B]))
    value_4NB = torch.stack(found_4NB, 1).cpu().double().numpy()
    if not np.isfinite(value_4NB).all():
        raise CheckpointError("logits of copied tokens are NaN or infinite")
    change_4NB = value_4NB[:, 1:] - value_4NB[:, :1]
    return change_4NB.transpose(0, 2, 1).reshape(4, len(prompts), model.n_layers, model.n_heads)


@dataclass
class DualRoute:
    """The score; conf/scores/dual_route.yaml has the meanings and defaults of its options."""

    prompts: int
    length: int
    newline: str
    texts: AgendaConfig
    entities: str | None
    smallest_rise: float

    version = 1
    shown = ("smallest_rise",)
    intervenes = True
    tables = {  # noqa: RUF012  how the contract says which columns there are
        "dual_route_heads": ("kind", "layer", "head", *CHANGES),
        "dual_route_documents": ("kind", "document", "layer", "head", *CHANGES),
    }

    def __post_init__(self) -> None:
        if self.prompts < len(LENGTHS) or self.length <= max(LENGTHS):
            raise SihError(
                f"scores.dual_route: expected prompts of at least {len(LENGTHS)}, and length above {max(LENGTHS)}"
            )

    def files(self) -> dict[str, Path]:
        """One's own entities, or AGENDA if its relations are measured: other texts name none."""
        if self.entities:
            if not (path := Path(self.entities).expanduser()).is_file():
                raise SihError(f"scores.dual_route.entities={path}: no such file; expected a text, an entity a line")
            return {"entities": path}
        return {"agenda": located("agenda-test.tsv", self.texts.path)} if self.texts.enabled else {}

    def measured(self) -> dict[str, Any]:
        """All options but how results are shown."""
        names = ("prompts", "length", "newline")
        return {name: getattr(self, name) for name in names} | {
            "entities": "own" if self.entities else self.texts.enabled
        }

    def draw(self, given: Given) -> Drawn:
        """Prompts with random tokens as entities, and with one's own or AGENDA's, if any; as many of each length.

        Raises:
            SihError: the newline is no token, a prompt is longer than the context, or too few ids or entities.
        """
        newline = given.tokenizer(self.newline.strip(" "), add_special_tokens=False).input_ids[-1:]
        if not newline:
            raise SihError(f"scores.dual_route.newline={self.newline!r} is no token of this tokenizer")
        longest = 2 * self.length + 2 + (given.start is not None)
        if longest > given.context:
            raise SihError(
                f"scores.dual_route.length={self.length} needs {longest} tokens; the context has {given.context}"
            )
        rng = np.random.default_rng([given.seed, *b"dual route"])
        ids = np.array([i for i in range(given.n_ids) if i not in (given.start, *newline)])
        if len(ids) < 2 * self.length:
            raise SihError(f"scores.dual_route.length={self.length} needs {2 * self.length} different tokens")
        each = self.prompts // len(LENGTHS)
        chosen = {TOKENS: [tuple(map(int, rng.choice(ids, n, replace=False))) for n in LENGTHS for _ in range(each)]}
        if given.files:
            own = given.files.get("entities")
            named = agenda.entities(given.files["agenda"]) if own is None else read_lines(own)
            of_length: dict[int, list[tuple[int, ...]]] = {}
            for entity in dict.fromkeys(filter(None, map(str.strip, named))):
                of = _within_text(given.tokenizer, entity)
                if len({*of}) == len(of):  # else its first token does not tell which comes next
                    of_length.setdefault(len(of), []).append(of)
            if short := [n for n in LENGTHS if len(of_length.get(n, ())) < each]:
                raise SihError(
                    f"scores.dual_route.prompts={self.prompts}: fewer than {each} entities of {short} tokens; lower "
                    "prompts, or name more with scores.dual_route.entities=FILE"
                )
            chosen[CONCEPTS] = [of_length[n][i] for n in LENGTHS for i in rng.permutation(len(of_length[n]))[:each]]
        begin = [] if given.start is None else [given.start]
        found = []
        for kind, entities in chosen.items():
            for number, said in enumerate(entities):
                others = rng.permutation(ids[~np.isin(ids, said)])[: 2 * self.length].tolist()
                context, other = others[: self.length - len(said)], others[-self.length :]
                end = [*newline, *context, said[0]]
                clean, corrupted = ((*begin, *first, *end) for first in ((*context, *said), other))
                found.append(Prompt(kind, f"{kind}-{number:03d}", clean, corrupted, said[0], said[1]))
        return Drawn(
            found,
            files={"prompts.jsonl": jsonl({"document": p.document, "clean": p.clean, "corrupted": p.corrupted,
                                           "next": p.next, "later": p.later} for p in found)},
            facts={"kinds": list(chosen)},
            told=f"{len(found)} prompts with a repeated entity",
        )  # fmt: skip

    def measure(self, model: "Model", prompts: list[Prompt], batch_tokens: int) -> dict[str, pa.Table]:
        """CHANGES of every head, by prompt and on average.

        Raises:
            CheckpointError: a logit that is not finite.
        """
        parts: dict[str, list[tuple[Prompt, np.ndarray]]] = {}
        by_length: dict[int, list[Prompt]] = {}
        for p in prompts:
            by_length.setdefault(len(p.clean), []).append(p)
        for width, of_width in sorted(by_length.items()):
            size = max(1, batch_tokens // (width + 2 * min(model.n_layers * model.n_heads, _AT_ONCE)))
            for begin in range(0, len(of_width), size):
                part = of_width[begin : begin + size]
                change_4BLH = changes(model, part)
                for b, p in enumerate(part):
                    parts.setdefault(p.kind, []).append((p, change_4BLH[:, b]))
        heads, documents = [], []
        for kind, found in parts.items():
            change_4BLH = np.stack([x for _, x in found], 1)
            documents.append(_table(kind, [p.document for p, _ in found], change_4BLH))
            heads.append(_table(kind, None, change_4BLH.mean(1, keepdims=True)))
        return {
            "dual_route_heads": pa.concat_tables(heads).unify_dictionaries(),
            "dual_route_documents": pa.concat_tables(documents).unify_dictionaries(),
        }

    def series(self, facts: Mapping[str, Any]) -> Sequence[Series]:
        """Token copying on random tokens, and concept copying on entities."""
        return [
            Series(
                name=name,
                label=name.replace("_", " "),
                kind="heads",
                table="dual_route_documents",
                value=column,
                where={"kind": [kind]},
                unit="logit",
                pool=kind,
                smallest_rise=self.smallest_rise,
                chance=0.0,
                headline=False,
            )
            for name, kind, column in (
                ("token_copying", TOKENS, "next_logit"),
                ("concept_copying", CONCEPTS, "later_logit"),
            )
            if kind in facts.get("kinds", ())
        ]

    def maps(self, facts: Mapping[str, Any]) -> Sequence[HeadMap]:
        """Both scores of every head."""
        return [
            HeadMap(f"{s.label} (causal)", f"{s.label} (causal)", "dual_route_heads", (s.value,), where=s.where)
            for s in self.series(facts)
        ]


def _within_text(tokenizer: "PreTrainedTokenizerFast", entity: str) -> tuple[int, ...]:
    """The entity's tokens behind another word; none where one is a bare space, which would come first in all."""
    text = f"{entity} {entity}"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mine = [(i, text[a:b].strip()) for i, (a, b) in zip(encoded.input_ids, encoded["offset_mapping"], strict=True)
            if b > len(entity)]  # fmt: skip
    return tuple(i for i, _ in mine) if all(piece for _, piece in mine) else ()


def _table(kind: str, documents: Sequence[str] | None, change_4BLH: np.ndarray) -> pa.Table:
    """A row for each prompt and head, in types that take little space."""
    prompt, layer, head = (x.ravel() for x in np.indices(change_4BLH.shape[1:]))
    columns: dict[str, Any] = {
        "kind": pa.DictionaryArray.from_arrays(np.zeros(len(prompt), np.int32), pa.array([kind]))
    }
    if documents is not None:
        columns["document"] = pa.DictionaryArray.from_arrays(prompt.astype(np.int32), pa.array(list(documents)))
    columns |= {"layer": layer.astype(np.int16), "head": head.astype(np.int16)}
    return pa.table(columns | {n: x.ravel().astype(np.float32) for n, x in zip(CHANGES, change_4BLH, strict=True)})

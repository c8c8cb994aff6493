"""What every score draws for a Pythia model from the real data (SIH_DATA, the cache, or fetched)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from sih.config import Config
from sih.models.tokenizer import start_id
from sih.scores import Given, files_of, induction, loss_reduction
from sih.scores.making import made
from sih.texts.datafiles import located
from sih.texts.episodes import Episode
from sih.texts.relations import Example

VOCABULARY, CONTEXT = 50304, 2048  # the same for every Pythia


@dataclass(frozen=True)
class Inputs:
    """The scores, and what each is measured on."""

    scores: Mapping[str, Any]
    of_score: Mapping[str, Any]

    @property
    def examples(self) -> list[Example]:
        return self.of_score["relation_index"].examples

    @property
    def random_tokens(self) -> induction.RandomTokens:
        return self.of_score["induction"]

    @property
    def loss_passes(self) -> list[tuple[torch.Tensor, list[int]]]:
        """The ids (B, T) of each pass over the loss texts, and the predictions whose loss is read."""
        score, found = self.scores["loss_reduction"], self.of_score["loss_reduction"]
        read = loss_reduction.positions_read(score.windows, score.context_gain)
        return [(found.ids_BT, read), (found.short_BS, list(found.short_read))]

    @property
    def episodes(self) -> list[Episode]:
        return self.of_score["few_shot"]

    def tokens(self) -> dict[str, int]:
        """Tokens that pass through the blocks, by score."""
        return {
            "relation_index": sum(len(e.token_ids) for e in self.examples),
            "induction": self.random_tokens.repeated_BT.numel(),
            "loss_reduction": sum(ids_BT.numel() for ids_BT, _ in self.loss_passes),
            "few_shot": sum(len(e.token_ids) for e in self.episodes),
        }

    def positions(self) -> dict[str, int]:
        """Positions whose hidden states pass through the unembedding, by score."""
        return {
            "relation_index": 0,
            "induction": 0,
            "loss_reduction": sum(len(ids_BT) * len(read) for ids_BT, read in self.loss_passes),
            "few_shot": sum(len(e.asked) for e in self.episodes),
        }


def drawn(config: Config) -> Inputs:
    """Draw what the configured scores are measured on."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(located("pythia-tokenizer.json")))
    scores = made(config.scores)
    of_score = {}
    for name, score in scores.items():
        start = start_id(tokenizer, config.model.document_start)
        given = Given(tokenizer, len(tokenizer), VOCABULARY, CONTEXT, config.seed, files_of(score), _no_held_out, start)
        of_score[name] = score.draw(given).inputs
    return Inputs(scores, of_score)


def _no_held_out(count: int) -> list:
    raise AssertionError("a Pythia model has no held-out documents")

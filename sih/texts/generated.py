"""Held-out documents of the embedded series' language, with their gold triplets."""

from typing import TYPE_CHECKING

from sih.checkpoints import corpus
from sih.errors import SihError
from sih.texts.alignment import align
from sih.texts.relations import Candidate, Example, Exclusions, checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FACTS, SYNTAX = "facts", "syntax"  # semantic and syntactic relations, as two sources


def read(documents: list[corpus.Document], tokenizer: "PreTrainedTokenizerFast", out: Exclusions) -> list[Example]:
    """Documents with triplets: one example for a document's facts and one for its syntax.

    Raises:
        SihError: the tokenizer does not read one token per word.
    """
    examples = []
    for number, document in enumerate(documents):
        if not document.triplets:
            continue
        text = " ".join(document.words)
        ids, _ = align(tokenizer, text, [])
        if len(ids) != len(document.words):
            raise SihError("the tokenizer does not read the generated language one token per word; use model=tiny")
        for source in (FACTS, SYNTAX):
            wanted = [Candidate(*t) for t in document.triplets if (t[0] in corpus.FACTS) == (source == FACTS)]
            example = checked(f"generated-{number:04d}", source, ids, wanted, len(ids), out)
            if example:
                examples.append(example)
    return examples

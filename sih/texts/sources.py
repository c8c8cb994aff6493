"""The chosen sources of relation triplets together: their files, and a balanced draw from all of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sih.checkpoints.corpus import Document
from sih.config import RelationsConfig
from sih.errors import SihError
from sih.texts import agenda, custom, generated, treebank
from sih.texts.datafiles import located
from sih.texts.relations import Example, Exclusions, balanced, begun_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Your own texts: gold dependencies, character spans, or plain text that spaCy parses.
CUSTOM_SUFFIXES = (".conllu", ".jsonl", ".txt")


def check(relations: RelationsConfig) -> None:
    """Refuse contradictions before anything is fetched. Raises SihError."""
    sources = (relations.generated, relations.agenda, relations.treebank, relations.custom)
    if not any(source.enabled for source in sources):
        raise SihError("no relation data chosen: enable relations.generated, .agenda, .treebank or .custom")
    if relations.custom.enabled and Path(str(relations.custom.path)).suffix not in CUSTOM_SUFFIXES:
        raise SihError(
            f"relations.custom.path={relations.custom.path}; expected a file ending in {', '.join(CUSTOM_SUFFIXES)}"
        )
    if relations.per_relation < 2:
        raise SihError(f"relations.per_relation={relations.per_relation}; expected at least 2")


def files(relations: RelationsConfig) -> dict[str, Path]:
    """The data files that these sources read, by role; those that are missing are fetched."""
    found = {}
    if relations.agenda.enabled:
        found["agenda"] = located("agenda-test.tsv", relations.agenda.path)
    if relations.treebank.enabled:
        given = relations.treebank.paths
        names = ["en_ewt-ud-dev.conllu", "en_ewt-ud-test.conllu"]
        for i, (name, path) in enumerate([(Path(p).name, p) for p in given] if given else [(n, None) for n in names]):
            found[f"treebank-{i}"] = located(name, path)
    if relations.custom.enabled:
        found["custom"] = located("own texts", relations.custom.path)
    return found


def draw(
    relations: RelationsConfig,
    files: Mapping[str, Path],
    tokenizer: "PreTrainedTokenizerFast",
    held_out: Callable[[int], list[Document]],
    seed: int,
    dropped: Exclusions,
    start: int | None = None,
) -> list[Example]:
    """At most `per_relation` triplets of each relation, seeded; what is left out is counted in `dropped`.

    Args:
        files: from `files`.
        held_out: held_out(n) gives the first n held-out documents of the embedded series.
        start: the id that every text begins with; None for none.

    Raises:
        SihError: the data are malformed, or nothing in them is usable.
    """
    found: list[Example] = []
    if relations.generated.enabled:
        found += generated.read(held_out(relations.generated.documents), tokenizer, dropped)
    if relations.agenda.enabled:
        ways = {relations.agenda.drop_function_words} | ({True, False} if relations.agenda.both_ways else set())
        for drop in sorted(ways, reverse=True):
            given = (files["agenda"], relations.agenda, drop, tokenizer, relations.max_tokens, seed, dropped)
            found += agenda.read(*given)
    for role in sorted(r for r in files if r.startswith("treebank")):
        found += treebank.read(files[role], relations.treebank.relations, tokenizer, relations.max_tokens, dropped)
    if relations.custom.enabled:
        found += custom.read(files["custom"], relations.custom, tokenizer, relations.max_tokens, dropped)
    chosen = balanced(found, relations.per_relation, seed, dropped)
    return [begun_example(example, start) for example in chosen]

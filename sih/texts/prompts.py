"""Few-shot prompts: classification and relation justification, the same at every checkpoint [Ren §4.3]."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sih.config import FewShotConfig, TaskConfig
from sih.errors import SihError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Prompt:
    """A prompt. `query` numbers its query, the same at every number of shots. Labels are in the task's order."""

    task: str
    shots: int
    query: int
    token_ids: tuple[int, ...]
    gold: int  # index into label_token_ids
    label_token_ids: tuple[int, ...]


def build(
    config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast", context: int, seed: int
) -> tuple[list[Prompt], list[tuple[str, str, int]]]:
    """All prompts, and what was dropped as (source, reason, count).

    Queries take the classes in turn, so classes are balanced. A prompt's examples never repeat its query. With at
    least as many shots as classes, each class occurs at least once. Words, and every label in its place, are single
    tokens of this tokenizer. Prompts longer than the context are dropped and counted.

    Raises:
        SihError: a label is not a single token in its place, too few words are left, or no prompt fits.
    """
    words, dropped = _single_token_words(config, tokenizer)
    prompts = []
    for name, task in config.tasks.items():
        label_ids = _label_ids(name, task, config, tokenizer)
        draws = _draws(name, task, words, config, tokenizer, dropped)
        too_long = 0
        for shots in config.shots:
            for query in range(config.prompts):
                # One random stream per query and one per prompt, so the query is the same at every number of shots.
                gold = query % len(draws)
                pair = draws[gold](np.random.default_rng([seed, *name.encode(), query]))
                rng = np.random.default_rng([seed, *name.encode(), query, shots])
                examples = _examples(task.labels, draws, pair, shots, rng)
                text = _text(config, [*examples, (pair, "")])
                ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
                if len(ids) > context:
                    too_long += 1
                    continue
                prompts.append(Prompt(name, shots, query, ids, gold, label_ids))
        if too_long:
            dropped.append((f"prompts/{name}", f"prompt longer than the context of {context} tokens", too_long))
    if not prompts:
        raise SihError(f"no few-shot prompt fits a context of {context} tokens; lower icl.few_shot.shots")
    return prompts, dropped


def _single_token_words(
    config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[dict[str, list[str]], list[tuple[str, str, int]]]:
    kept: dict[str, list[str]] = {}
    dropped = []
    for kind, listed in config.words.items():
        kept[kind] = [w for w in listed if _is_single(w, config, tokenizer)]
        if len(kept[kind]) < len(listed):
            reason = "word is not a single token in its place"
            dropped.append((f"prompts/words/{kind}", reason, len(listed) - len(kept[kind])))
        if len(kept[kind]) < 4:
            raise SihError(
                f"icl.few_shot.words.{kind}: {len(kept[kind])} of {len(listed)} words are single tokens of this "
                "tokenizer; expected at least 4"
            )
    return kept, dropped


def _is_single(word: str, config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether `word` is one token in both its places, in the first example and in the next one."""
    text = _text(config, [((word, word), config.tasks[next(iter(config.tasks))].labels[0])] * 2)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    whole = [text[a:b].strip() == word for a, b in offsets]
    return sum(whole) == 4


def _label_ids(
    name: str, task: TaskConfig, config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[int, ...]:
    """Each label's token, right after a prompt."""
    word = next(iter(config.words.values()))[0]
    prompt = _text(config, [((word, word), task.labels[0]), ((word, word), "")])
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found = []
    for label in task.labels:
        after = tokenizer(prompt + config.before_label + label, add_special_tokens=False)["input_ids"]
        if after[: len(before)] != before or len(after) != len(before) + 1:
            raise SihError(
                f"icl.few_shot.tasks.{name}: the label {label!r} is not a single token after a prompt; "
                "choose labels that are"
            )
        found.append(after[-1])
    if len(set(found)) < len(found):
        raise SihError(f"icl.few_shot.tasks.{name}: two labels are the same token; choose labels the tokenizer knows")
    return tuple(found)


# Draws a pair of words of one class.
Draw = Callable[[np.random.Generator], tuple[str, str]]


def _draws(
    name: str,
    task: TaskConfig,
    words: dict[str, list[str]],
    config: FewShotConfig,
    tokenizer: "PreTrainedTokenizerFast",
    dropped: list[tuple[str, str, int]],
) -> list[Draw]:
    """A function that draws pairs, for each class, in the order of the labels."""

    def of_kinds(kinds: list[str], rng: np.random.Generator) -> tuple[str, str]:
        first, second = (str(rng.choice(words[kind])) for kind in kinds)
        return first, second

    if task.classes:
        return [partial(of_kinds, kinds) for kinds in task.classes]
    listed = [(first, second) for first, second in (pair.split() for pair in task.pairs)]
    pairs = [pair for pair in listed if all(_is_single(word, config, tokenizer) for word in pair)]
    if len(pairs) < len(listed):
        reason = "a word of the pair is not a single token in its place"
        dropped.append((f"prompts/pairs/{name}", reason, len(listed) - len(pairs)))
    if len(pairs) < 8:
        raise SihError(
            f"icl.few_shot.tasks.{name}: {len(pairs)} of {len(listed)} pairs are single tokens of this tokenizer; "
            "expected at least 8"
        )

    def related(rng: np.random.Generator) -> tuple[str, str]:
        return pairs[rng.integers(len(pairs))]

    def unrelated(rng: np.random.Generator) -> tuple[str, str]:
        """The same words, so that no word alone gives the label away."""
        while True:
            first, second = pairs[rng.integers(len(pairs))][0], pairs[rng.integers(len(pairs))][1]
            if (first, second) not in pairs:
                return first, second

    return [related, unrelated]


def _examples(
    labels: list[str], draws: list[Draw], query: tuple[str, str], shots: int, rng: np.random.Generator
) -> list[tuple[tuple[str, str], str]]:
    classes = len(draws)
    cases = [*rng.permutation(classes)] if shots >= classes else []
    cases += [*rng.integers(classes, size=shots - len(cases))]
    examples = []
    for case in rng.permutation(np.array(cases, dtype=int)):
        pair = draws[case](rng)
        while pair == query:
            pair = draws[case](rng)
        examples.append((pair, labels[case]))
    return examples


def _text(config: FewShotConfig, examples: list[tuple[tuple[str, str], str]]) -> str:
    """Examples one after another; an example with an empty label is the query, cut where its label would be."""
    return config.separator.join(
        config.template.format(first=first, second=second, label=config.before_label + label if label else "").rstrip(
            " "
        )
        for (first, second), label in examples
    )

"""Few-shot episodes: classification and relation justification, the same at every checkpoint [Ren §4.3].

An episode is a list of items such as ` apple, June: 0`. The model is asked for every label, with the items before it
as its examples, so one episode holds the prompts of 0, 1, 2, ... examples.

A task with more labels than classes has its labels drawn anew for each episode, so that no label can mean a class but
by the examples.

The first C items are of C different classes. So from C examples on, each class has been shown. With fewer, the class
that is asked for is one that has not been shown: no example has its label, and a model that repeats labels is wrong.

Letters: E episodes of a task, S items of an episode, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from sih.config import FewShotConfig, TaskConfig
from sih.errors import SihError
from sih.texts.beginning import begun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Pair = tuple[str, str]
Dropped = list[tuple[str, str, int]]  # source, reason, count


@dataclass(frozen=True)
class Episode:
    """One episode, cut before its last label.

    asked: for each number of examples 0, 1, 2, ..., the position of the token before what tells the labels apart, so
        that the logits there are the answer.
    gold: the class that is right at each, an index into label_token_ids.
    label_token_ids: for each class, the token that tells its label from the others.
    task_token_ids: the same for all labels of the task, in its order; more of them when labels are drawn.
    """

    task: str
    number: int
    token_ids: tuple[int, ...]
    asked: tuple[int, ...]
    gold: tuple[int, ...]
    label_token_ids: tuple[int, ...]
    task_token_ids: tuple[int, ...]


def build(
    config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast", context: int, seed: int, start: int | None = None
) -> tuple[list[Episode], Dropped]:
    """All episodes, and what was dropped as (source, reason, count).

    At each number of examples, the classes are balanced over the episodes of a task, to within one. No pair of words
    occurs twice in an episode. Words are single tokens of this tokenizer in their places. Each text begins with
    `start`. Where the context is too short, a task's episodes keep as many items as fit into it in all of them.

    Raises:
        SihError: two labels begin with the same token, too few words or pairs are left, no item fits, or the tokens
            of an episode are not those of the prompts that it is to hold.
    """
    head, label, _ = config.template.partition("{label}")
    if not label or "{first}" not in head or "{second}" not in head:
        raise SihError(f"icl.few_shot.template={config.template!r}; expected {{first}}, {{second}}, then {{label}}")
    words, dropped = _single_token_words(config, tokenizer)
    found = []
    for name, task in config.tasks.items():
        rng = np.random.default_rng([seed, *name.encode()])
        items = config.shots + 1
        if task.classes:
            pools = [list(product(words[first], words[second])) for first, second in task.classes]
            class_ES = _classes(name, [len(pool) for pool in pools], config.episodes, items, rng)
            pairs = [_pairs(name, pools, class_S, rng) for class_S in class_ES]
        else:
            listed = _listed(name, task, config, tokenizer, dropped)
            class_ES = _classes(name, [items, items], config.episodes, items, rng)
            pairs = [_related(name, listed, class_S == 0, rng) for class_S in class_ES]
        label_EC = _labels(len(task.labels), len(task.classes or "tf"), config.episodes, rng)
        of_task = _tokenised(name, task, config, tokenizer, class_ES, label_EC, pairs, start)
        fit = min(sum(position < context for position in e.asked) for e in of_task)
        if fit == 0:
            raise SihError(
                f"icl.few_shot.tasks.{name}: not even one item fits the context of {context} tokens; "
                "expected a shorter icl.few_shot.template"
            )
        if fit <= config.shots:
            reason = f"shots beyond the context of {context} tokens"
            dropped.append((f"episodes/{name}", reason, config.shots + 1 - fit))
        found += [_cut(e, fit) for e in of_task]
    return found, dropped


def _cut(e: Episode, items: int) -> Episode:
    stop = e.asked[items - 1] + 1
    return replace(e, token_ids=e.token_ids[:stop], asked=e.asked[:items], gold=e.gold[:items])


def _single_token_words(
    config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[dict[str, list[str]], Dropped]:
    kept: dict[str, list[str]] = {}
    dropped = []
    for kind, listed in config.words.items():
        kept[kind] = [w for w in listed if _is_single(w, config, tokenizer)]
        if len(kept[kind]) < len(listed):
            reason = "word is not a single token in its place"
            dropped.append((f"episodes/words/{kind}", reason, len(listed) - len(kept[kind])))
        if len(kept[kind]) < 4:
            raise SihError(
                f"icl.few_shot.words.{kind}: {len(kept[kind])} of {len(listed)} words are single tokens of this "
                "tokenizer; expected at least 4"
            )
    return kept, dropped


def _is_single(word: str, config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether `word` is one token in both its places, in the first item and in the next one."""
    label = config.tasks[next(iter(config.tasks))].labels[0]
    text = config.separator.join([_asking(config, (word, word)) + _answered(config, (word, word), label)] * 2)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    whole = [text[a:b].strip() == word for a, b in offsets]
    return sum(whole) == 4


def _listed(
    name: str, task: TaskConfig, config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast", dropped: Dropped
) -> list[Pair]:
    """The related pairs whose words are single tokens."""
    listed = [(first, second) for first, second in (pair.split() for pair in task.pairs)]
    pairs = [pair for pair in listed if all(_is_single(word, config, tokenizer) for word in pair)]
    if len(pairs) < len(listed):
        reason = "a word of the pair is not a single token in its place"
        dropped.append((f"episodes/pairs/{name}", reason, len(listed) - len(pairs)))
    return pairs


def _related(name: str, listed: Sequence[Pair], related_S: np.ndarray, rng: np.random.Generator) -> list[Pair]:
    """A listed pair for each item that is related, and for the others words of listed pairs, paired differently.

    No word occurs twice in an episode. Otherwise a word that has been seen in a related pair would give away that
    another pair with it is not, and a model could be right without knowing any relation.
    """
    false = int((~related_S).sum())
    needed = len(related_S) + (false == 1)  # one unrelated pair takes its words from two listed ones
    for _ in range(100):
        used: set[str] = set()
        apart = []
        for n in rng.permutation(len(listed)):
            if used.isdisjoint(listed[n]):
                apart.append(listed[n])
                used.update(listed[n])
        if len(apart) < needed:
            continue
        true, rest = apart[: len(related_S) - false], apart[len(related_S) - false : needed]
        seconds = rng.permutation(len(rest))
        swapped = [(first, rest[n][1]) for (first, _), n in zip(rest, seconds, strict=True)]
        if not set(swapped) & set(listed):
            drawn = {True: iter(true), False: iter(swapped)}
            return [next(drawn[bool(related)]) for related in related_S]
    raise SihError(
        f"icl.few_shot.tasks.{name}: an episode needs {needed} pairs without a word in two of them; of single "
        f"tokens, {len(listed)} pairs are listed; list more pairs of different words, or lower icl.few_shot.shots"
    )


def _classes(name: str, pairs_C: Sequence[int], episodes: int, items: int, rng: np.random.Generator) -> np.ndarray:
    """The class of every item, (E, S).

    The first C items of an episode are a permutation of the classes; a Latin square over every C episodes balances
    each place. The classes of every later place are balanced by themselves and then shuffled over the episodes.
    """
    classes = len(pairs_C)
    found_ES = np.empty((episodes, items), dtype=int)
    for block in range(0, episodes, classes):
        symbols, columns = rng.permutation(classes), rng.permutation(classes)
        square = symbols[(np.arange(classes)[:, None] + columns) % classes]
        found_ES[block : block + classes, :classes] = square[: episodes - block, :items]
    for s in range(classes, items):
        found_ES[:, s] = _shuffled(name, found_ES[:, :s], np.array(pairs_C), rng)
    return found_ES


def _shuffled(name: str, earlier_ES: np.ndarray, pairs_C: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Balanced classes of the next item, (E,); drawn again when an episode has used up its class's pairs."""
    episodes, classes = len(earlier_ES), len(pairs_C)
    for _ in range(100):
        class_E = rng.permutation((np.arange(episodes) + rng.integers(classes)) % classes)
        needed_E = (earlier_ES == class_E[:, None]).sum(1) + 1
        if (needed_E <= pairs_C[class_E]).all():
            return class_E
    short = int((needed_E - pairs_C[class_E]).argmax())
    raise _too_few(name, int(class_E[short]), int(pairs_C[class_E[short]]), int(needed_E[short]))


def _too_few(name: str, case: int, pairs: int, needed: int) -> SihError:
    return SihError(
        f"icl.few_shot.tasks.{name}: class {case} has {pairs} different pairs of words, and an episode needs {needed}; "
        "list more words, or lower icl.few_shot.shots"
    )


def _pairs(name: str, pools: Sequence[Sequence[Pair]], class_S: np.ndarray, rng: np.random.Generator) -> list[Pair]:
    """A pair of words for each item of one episode, all different, even where classes share pairs."""
    found: dict[int, Pair] = {}
    for case, pool in enumerate(pools):
        places, used = np.flatnonzero(class_S == case), set(found.values())
        free = [pair for pair in pool if pair not in used]
        if len(free) < len(places):
            raise _too_few(name, case, len(free), len(places))
        if len(places):
            drawn = rng.choice(len(free), len(places), replace=False)
            found |= {int(place): free[n] for place, n in zip(places, drawn, strict=True)}
    return [found[s] for s in range(len(class_S))]


def _labels(labels: int, classes: int, episodes: int, rng: np.random.Generator) -> np.ndarray:
    """Each episode's labels of the classes, (E, C), drawn where there are more labels than classes."""
    if labels == classes:
        return np.tile(np.arange(classes), (episodes, 1))
    return np.stack([rng.permutation(labels)[:classes] for _ in range(episodes)])


def _tokenised(
    name: str,
    task: TaskConfig,
    config: FewShotConfig,
    tokenizer: "PreTrainedTokenizerFast",
    class_ES: np.ndarray,
    label_EC: np.ndarray,
    pairs: Sequence[Sequence[Pair]],
    start: int | None,
) -> list[Episode]:
    """The episodes of one task as tokens, each checked against the prompts of every number of examples."""
    common, of_task = _label_tokens(name, task, config, tokenizer)
    found = []
    for number, (class_S, label_C, pair_S) in enumerate(zip(class_ES, label_EC, pairs, strict=True)):
        label_ids = tuple(of_task[label] for label in label_C)
        text, prompts = "", []
        for case, pair in zip(class_S, pair_S, strict=True):
            prompts.append(text + _asking(config, pair))
            text = prompts[-1] + _answered(config, pair, task.labels[label_C[case]]) + config.separator
        ids_S = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        ids = [*ids_S[-1], *common]  # the longest prompt has all the others within it
        for s, prompt in enumerate(ids_S):
            wanted = [*prompt, *common, label_ids[class_S[s]]][: len(ids)]
            if ids[: len(wanted)] != wanted:
                raise SihError(
                    f"icl.few_shot.tasks.{name}: the tokens of an episode are not those of its prompt of {s} examples; "
                    "choose a template, separator and labels that the tokenizer does not merge with what follows"
                )
        whole = begun(ids, start)
        shift = len(whole) - len(ids) + len(common) - 1
        asked = tuple(len(prompt) + shift for prompt in ids_S)
        found.append(Episode(name, number, whole, asked, tuple(map(int, class_S)), label_ids, of_task))
    return found


def _label_tokens(
    name: str, task: TaskConfig, config: FewShotConfig, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that all labels begin with, which belong to the prompt, and each label's own token after them."""
    pair = (next(iter(config.words.values()))[0],) * 2
    first = _asking(config, pair) + _answered(config, pair, task.labels[0])
    prompt = first + config.separator + _asking(config, pair)
    texts = [prompt, *(prompt + config.before_label + label for label in task.labels)]
    before, *after = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if any(ids[: len(before)] != before for ids in after):
        raise SihError(
            f"icl.few_shot.tasks.{name}: the tokenizer merges a label with the prompt before it; "
            "choose another icl.few_shot.template or before_label"
        )
    rests = [ids[len(before) :] for ids in after]
    columns = list(zip(*rests, strict=False))
    common = next((n for n, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    own = columns[common] if common < len(columns) else ()
    if len(set(own)) < len(task.labels):
        raise SihError(
            f"icl.few_shot.tasks.{name}: two of the labels {task.labels} begin with the same token; "
            "choose labels that the tokenizer tells apart by one token"
        )
    return tuple(rests[0][:common]), tuple(own)


def _asking(config: FewShotConfig, pair: Pair) -> str:
    """An item up to where its label comes."""
    return config.template.partition("{label}")[0].format(first=pair[0], second=pair[1]).rstrip(" ")


def _answered(config: FewShotConfig, pair: Pair, label: str) -> str:
    """An item from its label on."""
    rest = config.template.partition("{label}")[2].format(first=pair[0], second=pair[1])
    return config.before_label + label + rest.rstrip(" ")

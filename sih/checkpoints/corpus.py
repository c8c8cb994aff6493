"""The generated language of the embedded series: documents with gold structure.

One generator writes what `model=tiny` is trained on and, from another stream of the same seed, the
held-out documents it is measured on. It is language-like in the respects that the scores look at:

* people with facts of four relation types, each stated in one of two wordings and restated in other words;
* scenes with subject, object and modifier dependencies, where a noun keeps its adjective within a document;
* refrains: short random phrases that return word for word, and lists of names that repeat;
* recitals of one verse, over and over;
* few-shot lists `left right label ;` whose rule from word kinds to labels is drawn anew for each document.

Nothing here knows of models or scores.
"""

from dataclasses import dataclass, field

import numpy as np

NAMES = ("anna ben carl dora emil fay gus hana ivan judy karl lena mona nils olga paul rosa seth tina ugo").split()
CITIES = "paris rome oslo lima cairo delhi tokyo perth quito bonn".split()
FOODS = "bread soup rice cake fish salad pasta honey cheese stew".split()
PETS = "cat dog parrot rabbit snake turtle hamster pony goat frog".split()
JOBS = "baker nurse pilot judge farmer singer clerk guard miner actor".split()
NOUNS = "fox wolf bear crow boy girl king queen ship boat".split()
THINGS = "cup box lamp door rope drum coin ring book bell".split()
ADJECTIVES = "red old tiny loud calm dark warm blue grey odd".split()
VERBS = "sees finds takes hides moves wants holds draws".split()
FRUITS = "apple plum pear grape lemon mango fig peach melon cherry".split()
MONTHS = "january february march april may june july august september october november december".split()
LABELS = "zero one two three four five six seven eight".split()
FUNCTION = "<end> the a of in is lives home eats food keeps pet works as job and again . , : ;".split()

# relation type -> (its objects, two wordings with {s} the person and {o} the fact)
FACTS: dict[str, tuple[list[str], tuple[str, str]]] = {
    "LIVES-IN": (CITIES, ("{s} lives in {o} .", "the home of {s} is {o} .")),
    "EATS": (FOODS, ("{s} eats {o} .", "the food of {s} is {o} .")),
    "KEEPS": (PETS, ("{s} keeps a {o} .", "the pet of {s} is a {o} .")),
    "WORKS-AS": (JOBS, ("{s} works as a {o} .", "the job of {s} is {o} .")),
}
# The kinds of words that few-shot lists pair.
KINDS = {
    "fruit": FRUITS,
    "month": MONTHS,
    "pet": PETS,
    "job": JOBS,
    "city": CITIES,
    "food": FOODS,
    "noun": NOUNS,
    "thing": THINGS,
}
# The kinds (of four drawn for a list) of the left and the right word, one pair for each class.
RULES = [[(0, 1), (1, 0)], [(0, 1), (1, 2), (2, 3), (3, 0)]]

LABELLED = 0.65  # share of few-shot lists that have labels
VERSE = (4, 16)  # words of a recital's verse: at least, and fewer than. With longer ones no heads form in this time

# The words that mean something: verses and refrains are drawn from them.
CONTENT: list[str] = list(
    dict.fromkeys(NAMES + CITIES + FOODS + PETS + JOBS + NOUNS + THINGS + ADJECTIVES + VERBS + FRUITS + MONTHS + LABELS)
)
VOCABULARY: list[str] = FUNCTION + CONTENT


@dataclass
class Document:
    """`words` and the gold `triplets` (relation, subject position, object position), 0-based."""

    words: list[str] = field(default_factory=list)
    triplets: list[tuple[str, int, int]] = field(default_factory=list)


def _say_fact(document: Document, relation: str, person: str, value: str, wording: int) -> None:
    start = len(document.words)
    template = FACTS[relation][1][wording].split()
    document.words += [w.format(s=person, o=value) for w in template]
    document.triplets.append((relation, start + template.index("{s}"), start + template.index("{o}")))


def _say_scene(document: Document, actor: tuple[str, str], verb: str, thing: tuple[str, str]) -> None:
    """`the red fox sees the old cup .`; the governor is the subject end, the dependent the object end."""
    at = len(document.words)
    document.words += ["the", *actor, verb, "the", *thing, "."]
    document.triplets += [
        ("subject", at + 3, at + 2),
        ("object", at + 3, at + 6),
        ("modifier", at + 2, at + 1),
        ("modifier", at + 6, at + 5),
    ]


def story(rng: np.random.Generator, length: int) -> Document:
    """A document of exactly `length` words about three people, two actors, two things and a refrain."""
    people = rng.choice(NAMES, 3, replace=False)
    facts = [(r, str(p), str(rng.choice(values))) for r, (values, _) in FACTS.items() for p in people]
    # Each fact is told in the wording drawn for it and the other by turns.
    wording = {fact[:2]: int(rng.integers(2)) for fact in facts}
    adjectives = rng.choice(ADJECTIVES, 4, replace=False)
    actors = [(str(a), str(n)) for a, n in zip(adjectives[:2], rng.choice(NOUNS, 2, replace=False), strict=True)]
    things = [(str(a), str(n)) for a, n in zip(adjectives[2:], rng.choice(THINGS, 2, replace=False), strict=True)]
    refrain = [str(w) for w in rng.choice(CONTENT, int(rng.integers(6, 13)), replace=False)]
    told = [facts[i] for i in rng.permutation(len(facts))[:5]]
    document = Document(words=["<end>"])
    while len(document.words) < length:
        turn = rng.random()
        if turn < 0.2:
            relation, person, value = told[rng.integers(len(told))]
            _say_fact(document, relation, person, value, wording[relation, person])
            wording[relation, person] ^= 1
        elif turn < 0.5:
            actor, thing = actors[rng.integers(2)], things[rng.integers(2)]
            _say_scene(document, actor, str(rng.choice(VERBS)), thing)
        elif turn < 0.93:
            document.words += refrain
        else:
            document.words += ["and", *map(str, people), "again", *map(str, people), "."]
    return _cut(document, length)


def few_shot_list(rng: np.random.Generator, length: int) -> Document:
    """`apple june two ; june plum five ; ...`: the kinds decide the label, by a rule of this document only.

    Two classes, or four in a cycle. A list has 1 to 10 words of each kind, so words return with the same label, and
    labels are drawn anew, so nothing about them can be learnt but from the list itself. One list in four has no labels:
    that there are any is told by the list, too.
    """
    kinds = [list(KINDS)[k] for k in rng.permutation(len(KINDS))[:4]]
    pools = [[KINDS[kind][w] for w in rng.permutation(len(KINDS[kind]))[: rng.integers(1, 11)]] for kind in kinds]
    rule = RULES[rng.integers(len(RULES))]
    labels = [LABELS[n] for n in rng.permutation(len(LABELS))[: len(rule)]]
    labelled = rng.random() < LABELLED
    document = Document(words=["<end>"])
    while len(document.words) < length:
        case = rng.integers(len(rule))
        document.words += [pools[kind][rng.integers(len(pools[kind]))] for kind in rule[case]]
        document.words += [labels[case], ";"] if labelled else [";"]
    return _cut(document, length)


def recital(rng: np.random.Generator, length: int) -> Document:
    """A verse of any content words, said again and again: what generic induction heads are good for."""
    verse = [CONTENT[w] for w in rng.permutation(len(CONTENT))[: rng.integers(*VERSE)]]
    return Document(["<end>", *verse * (length // len(verse) + 1)][:length])


def documents(seed: int, stream: str, count: int, length: int, lists: float, recitals: float) -> list[Document]:
    """`count` documents of `length` words each; the shares `lists` and `recitals` are of those kinds, the rest stories.

    `stream` ("train" or "held-out") names an independent stream of the same seed.
    """
    rng = np.random.default_rng([seed, *stream.encode()])
    kinds = rng.choice(3, size=count, p=[1 - lists - recitals, lists, recitals])
    return [(story, few_shot_list, recital)[kind](rng, length) for kind in kinds]


def _cut(document: Document, length: int) -> Document:
    kept = [t for t in document.triplets if max(t[1], t[2]) < length]
    return Document(document.words[:length], kept)

import numpy as np
import pytest

from sih.checkpoints import corpus
from sih.config import AgendaConfig
from sih.errors import SihError
from sih.texts import agenda, generated, treebank
from sih.texts.alignment import align
from sih.texts.relations import Candidate, Example, Exclusions, Triplet, balanced, checked

LETTERS = "BCDFGHJKLMOPQRTUVXYZ"
NAMES = {"subject": ["nsubj", "nsubj:pass"], "object": ["obj"], "modifier": ["amod", "advmod"]}


def agenda_config(**changes):
    return AgendaConfig(
        **{
            "enabled": True,
            "path": None,
            "drop_function_words": True,
            "both_ways": False,
            "function_words": ["the", "of", "a"],
            "letters": LETTERS,
        }
        | changes
    )


def agenda_line(graph, text):
    return f"Title .\tx ; y\t<method> <task>\t{graph}\t{text}\t0 1 -1\n"


def test_align_finds_single_tokens_with_and_without_a_space(pythia_tokenizer):
    text = "Cats antidisestablish cats."
    ids, positions = align(pythia_tokenizer, text, [(0, 4), (5, 21), (22, 26), (26, 27), (22, 27)])
    assert positions[0] is None  # "C" and "ats"
    assert positions[1] is None
    assert pythia_tokenizer.decode([ids[positions[2]]]) == " cats"
    assert pythia_tokenizer.decode([ids[positions[3]]]) == "."
    assert positions[4] is None


def test_checked_counts_what_it_drops():
    out = Exclusions()
    example = checked(
        "d", "s", [4, 5, 4, 6], [Candidate("r", *ends) for ends in ((0, 1), (None, 1), (0, 2), (0, 1))], 10, out
    )
    assert example.triplets == (Triplet("r", 0, 1),)
    assert out.rows() == [
        ("s", "an end is not exactly one token", 1),
        ("s", "both ends are the same token", 1),
        ("s", "the same triplet again", 1),
    ]
    assert checked("d", "s", [1] * 11, [Candidate("r", 0, 1)], 10, out) is None
    assert out.counts["s", "text longer than 10 tokens"] == 1


def test_balanced_draws_the_same_number_of_every_relation():
    examples = [Example(f"d{i}", "s", (1, 2, 3), (Triplet("many", 0, 1), Triplet("few", 0, 2))) for i in range(30)]
    examples += [Example(f"e{i}", "s", (1, 2, 3), (Triplet("many", 1, 2),)) for i in range(30)]
    out = Exclusions()
    drawn = balanced(examples, 12, 0, out)
    relations = [t.relation for e in drawn for t in e.triplets]
    assert relations.count("many") == relations.count("few") == 12
    assert out.counts["s", "usable, but beyond relations.per_relation"] == 90 - 24
    assert drawn == balanced(examples, 12, 0, Exclusions()) != balanced(examples, 12, 1, Exclusions())
    with pytest.raises(SihError, match=r"no usable relation triplets are left.*the data held none"):
        balanced([], 12, 0, Exclusions())


def test_agenda_writes_letters_and_counts_every_exclusion(tmp_path, pythia_tokenizer):
    file = tmp_path / "a.tsv"
    file.write_text(
        agenda_line("0 0 1 ; 0 3 2 ; 1 1 1", "the <method_0> is used for a <task_1> . then <method_2> works .")
        + agenda_line("0 5 1", "<method_0> and <method_0> evaluate <task_1> .")
    )
    out = Exclusions()
    (example,) = agenda.read(file, agenda_config(), True, pythia_tokenizer, 256, 0, out)
    text = pythia_tokenizer.decode(example.token_ids)
    (triplet,) = example.triplets
    ends = [pythia_tokenizer.decode([example.token_ids[i]]).strip() for i in (triplet.subject, triplet.object)]
    assert triplet.relation == "USED-FOR"
    assert text == f"{ends[0]} is used for {ends[1]} ."
    assert set(ends) <= set(LETTERS)
    assert len(set(ends)) == 2
    assert out.rows() == [
        ("agenda", "a letter occurs more than once in the sentence", 1),
        ("agenda", "both ends are the same entity", 1),
        ("agenda", "the two ends share no sentence", 1),
    ]
    (whole,) = agenda.read(file, agenda_config(), False, pythia_tokenizer, 256, 0, Exclusions())
    assert pythia_tokenizer.decode(whole.token_ids).startswith("the ")
    assert (whole.document, whole.source, example.source) == (example.document, "agenda-full", "agenda")


def test_agenda_knows_the_other_entities_of_each_ends_kind(tmp_path, pythia_tokenizer):
    file = tmp_path / "a.tsv"
    file.write_text(agenda_line("0 0 1", "<method_0> beats <method_2> and <method_3> for <task_1> , not <task_4> ."))
    (example,) = agenda.read(file, agenda_config(), True, pythia_tokenizer, 256, 0, Exclusions())
    (triplet,) = example.triplets
    words = [pythia_tokenizer.decode([t]).strip() for t in example.token_ids]
    assert [words[i - 1] for i in triplet.like_subject] == ["beats", "and"]
    assert [words[i - 1] for i in triplet.like_object] == ["not"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("only\tthree\tcolumns", "line 2: 3 tab-separated columns; expected 6"),
        (agenda_line("0 9 1", "x").rstrip("\n"), "line 2: graph entry '0 9 1'; expected"),
        (agenda_line("0 1", "x").rstrip("\n"), "line 2: graph entry '0 1'; expected"),
    ],
)
def test_malformed_agenda(tmp_path, pythia_tokenizer, line, message):
    file = tmp_path / "a.tsv"
    file.write_text(agenda_line("0 0 1", "<method_0> for <task_1> .") + line + "\n")
    with pytest.raises(SihError, match=message):
        agenda.read(file, agenda_config(), True, pythia_tokenizer, 256, 0, Exclusions())


def test_the_whole_of_agenda(agenda_file, pythia_tokenizer):
    found = agenda.read(agenda_file, agenda_config(), True, pythia_tokenizer, 256, 0, Exclusions())
    triplets = [t for e in found for t in e.triplets]
    assert {t.relation for t in triplets} == set(agenda.RELATIONS)
    assert len(found) > 2000
    assert len(triplets) > 3500
    for example in found:
        for triplet in example.triplets:
            for end in (triplet.subject, triplet.object):
                token = pythia_tokenizer.decode([example.token_ids[end]]).strip()
                assert token in LETTERS
                assert example.token_ids.count(example.token_ids[end]) == 1
            for place in (*triplet.like_subject, *triplet.like_object):
                assert pythia_tokenizer.decode([example.token_ids[place]]).strip() in LETTERS
                assert place not in (triplet.subject, triplet.object)
    assert sum(bool(t.like_object) for t in triplets) > 1000


CONLLU = """# newdoc id = first
# text = They don't like big dogs.
1	They	they	PRON	PRP	_	4	nsubj	_	_
2-3	don't	_	_	_	_	_	_	_	_
2	do	do	AUX	VBP	_	4	aux	_	_
3	n't	not	PART	RB	_	4	advmod	_	_
4	like	like	VERB	VB	_	0	root	_	_
4.1	like	like	VERB	VB	_	_	_	_	_
5	big	big	ADJ	JJ	_	6	amod	_	_
6	dogs	dog	NOUN	NNS	_	4	obj	_	SpaceAfter=No
7	.	.	PUNCT	.	_	4	punct	_	_

"""


def test_treebank_reads_gold_dependencies_and_multiword_tokens(tmp_path, pythia_tokenizer):
    file = tmp_path / "a.conllu"
    file.write_text(CONLLU)
    (example,) = treebank.read(file, NAMES, pythia_tokenizer, 256, Exclusions())
    assert pythia_tokenizer.decode(example.token_ids) == "They don't like big dogs."
    assert example.document == "first"
    said = {
        (t.relation, *(pythia_tokenizer.decode([example.token_ids[i]]) for i in (t.subject, t.object)))
        for t in example.triplets
    }
    assert said >= {("subject", " like", "They"), ("object", " like", " dogs"), ("modifier", " dogs", " big")}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (CONLLU.replace("5\tbig\tbig", "5\tbig"), "line 9: 9 tab-separated columns; expected the 10"),
        (CONLLU.replace("5\tbig", "5-x\tbig"), "line 9: word id '5-x'"),
        (CONLLU.replace("JJ\t_\t6", "JJ\t_\tsix"), "line 9: word id '5', head 'six'"),
    ],
)
def test_malformed_treebank(tmp_path, pythia_tokenizer, broken, message):
    file = tmp_path / "a.conllu"
    file.write_text(broken)
    with pytest.raises(SihError, match=message):
        treebank.read(file, NAMES, pythia_tokenizer, 256, Exclusions())


def test_the_whole_treebank_is_the_text_it_says(treebank_file, pythia_tokenizer):
    """Each sentence, rebuilt from words and spaces, is its own `# text`; ends decode to the gold words."""
    said = [line[9:] for line in treebank_file.read_text().splitlines() if line.startswith("# text = ")]
    rebuilt = [treebank._sentence(block, treebank_file)[0] for block in treebank._blocks(treebank_file)]
    differ = [(a, b) for a, b in zip(said, rebuilt, strict=True) if a.split() != b.split()]
    assert not differ
    found = treebank.read(treebank_file, NAMES, pythia_tokenizer, 256, Exclusions())
    assert {t.relation for e in found for t in e.triplets} == set(NAMES)
    assert len({e.document for e in found}) > 100


def test_generated_documents_carry_their_gold(corpus_tokenizer):
    documents = corpus.documents(0, "test", 40, 60, lists=0.25, recitals=0.25)
    assert all(len(d.words) == 60 for d in documents)
    found = generated.read(documents, corpus_tokenizer, Exclusions())
    for example in found:
        words = corpus_tokenizer.decode(example.token_ids).split()
        for t in example.triplets:
            s, o = words[t.subject], words[t.object]
            if t.relation in corpus.FACTS:
                assert (s in corpus.NAMES, o in corpus.FACTS[t.relation][0]) == (True, True)
            else:
                kinds = {
                    "subject": (corpus.VERBS, corpus.NOUNS),
                    "object": (corpus.VERBS, corpus.THINGS),
                    "modifier": (corpus.NOUNS + corpus.THINGS, corpus.ADJECTIVES),
                }[t.relation]
                assert (s in kinds[0], o in kinds[1]) == (True, True)


def test_streams_of_the_generator_are_seeded_and_apart():
    first, again = (corpus.documents(0, "train", 30, 40, 0.2, 0.2) for _ in range(2))
    other = corpus.documents(0, "held-out", 30, 40, 0.2, 0.2)
    assert first == again
    assert not {tuple(d.words) for d in first} & {tuple(d.words) for d in other}


def test_a_few_shot_list_has_one_rule_of_its_own():
    """The kinds of a pair decide its label, two classes or four in a cycle, or the list has no labels at all."""
    rng = np.random.default_rng(0)
    kind_of = {word: kind for kind, words in corpus.KINDS.items() for word in words}
    assert len(kind_of) == sum(map(len, corpus.KINDS.values())), "a word tells its kind"
    rules, labelled = [], 0
    for _ in range(200):
        items = " ".join(corpus.few_shot_list(rng, 500).words[1:]).split(" ; ")[:-1]  # the last may be cut
        if all(len(item.split()) == 2 for item in items):
            continue
        labelled += 1
        rule = {}
        for left, right, label in map(str.split, items):
            assert rule.setdefault((kind_of[left], kind_of[right]), label) == label
            assert label in corpus.LABELS
        assert len(set(rule.values())) == len(rule), "each class has a label of its own"
        assert {left for left, _ in rule} == {right for _, right in rule}
        assert len({left for left, _ in rule}) == len(rule), (
            "the left word alone tells the class, and the right one too"
        )
        rules.append(tuple(sorted(rule.items())))
    assert labelled / 200 == pytest.approx(corpus.LABELLED, abs=0.1)
    assert {len(rule) for rule in rules} == {2, 4}
    assert len(set(rules)) > 0.95 * len(rules), "drawn anew"


def test_a_recital_is_one_verse_of_different_words_over_and_over():
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(100):
        start, *words = corpus.recital(rng, 96).words
        verse = words.index(words[0], 1)
        assert start == "<end>"
        assert len(set(words[:verse])) == verse
        assert words == (words[:verse] * 96)[:95]
        lengths.add(verse)
    assert lengths == set(range(4, 16))


def test_a_noun_keeps_its_adjective_and_facts_never_change():
    rng = np.random.default_rng(0)
    for _ in range(20):
        document = corpus.story(rng, 200)
        fixed = {}
        for relation, s, o in document.triplets:
            if relation == "modifier" or relation in corpus.FACTS:
                value = fixed.setdefault((relation, document.words[s]), document.words[o])
                assert value == document.words[o]

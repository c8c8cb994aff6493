"""What is said of a result: at most four sentences, no stronger than the data. Cases made by hand, each flag once."""

import pytest

from sih.emergence.answer import FLAGS, sentence
from sih.emergence.time_axis import TimeAxis

HEADS, INDEX, GAIN, PATTERN = "prefix_matching", "relation_index (s)", "context_gain", "constrained_accuracy"
SHOWN = [HEADS, INDEX, GAIN, PATTERN]


def row(name, *flags, step=None, cell=(256, 512), **more):
    kind = "heads" if name.startswith(("prefix", "relation")) else "icl"
    found = {
        "series": name,
        "kind": kind,
        "n_checkpoints": 20,
        "n_docs": 60,
        "emerged": step is not None,
        "flags": flags,
    }
    if step is not None:
        found |= {"t50_step": float(step), "cell_lo_step": cell[0], "cell_hi_step": cell[1]}
    return found | more


def pair(heads, icl, decision="unresolved", lag=1.0, jump=(0.4, 1.6), **more):
    ends = dict(zip(("ci_jump_lo", "ci_jump_hi", "ci_doc_lo", "ci_doc_hi"), (*jump, *jump), strict=True))
    return {"heads": heads, "icl": icl, "decision": decision, "lag_oct": lag, **ends, **more}


def said(rows, pairs=(), suggested=()):
    found = sentence(list(rows), list(pairs), [r["series"] for r in rows if r["series"] in SHOWN], suggested)
    assert len(found.split(". ")) <= 4
    assert not found.endswith(".")
    return found


LEADS = pair(HEADS, GAIN, "heads_lead", 2.34, (1.1, 3.44))
OVERLAP = pair(HEADS, GAIN, reason="the brackets overlap")
CASES = {
    "heads lead": (
        ([row(HEADS, step=362), row(GAIN, step=1840, cell=(1000, 2000))], [LEADS]),
        "Half of the rise: prefix_matching at step 362 (256 to 512), context_gain at step 1,840 (1,000 to 2,000). "
        "prefix_matching leads context_gain by 2.3 octaves [1.1, 3.4] (98 %). One run cannot exclude a common cause",
    ),
    "in-context learning leads": (
        ([row(HEADS, step=1840), row(GAIN, step=362)], [pair(HEADS, GAIN, "icl_leads", -2.34, (-3.44, -1.1))]),
        "Half of the rise: prefix_matching at step 1,840 (256 to 512), context_gain at step 362 (256 to 512). "
        "context_gain leads prefix_matching by 2.3 octaves [1.1, 3.4] (98 %). One run cannot exclude a common cause",
    ),
    "a lead that rests on what may go on": (
        ([row(HEADS, "transient", step=362), row(GAIN, "plateau_unobserved", step=1840)], [LEADS]),
        "Half of the rise: prefix_matching at step 362 (256 to 512, transient), context_gain at step 1,840 (256 to 512, "
        "still rising). prefix_matching leads context_gain by 2.3 octaves [1.1, 3.4] (98 %; prefix_matching transient; "
        "context_gain still rising). One run cannot exclude a common cause",
    ),
    "an open order that checkpoints would narrow": (
        ([row(HEADS, step=362), row(GAIN, step=370)], [OVERLAP], [300, 400]),
        "Half of the rise: prefix_matching at step 362 (256 to 512), context_gain at step 370 (256 to 512). The order of "
        "prefix_matching and context_gain is open (the brackets overlap); steps 300, 400 would narrow it. One run cannot "
        "exclude a common cause",
    ),
    "an open order without further checkpoints": (
        ([row(HEADS, step=362), row(GAIN, step=370)], [OVERLAP]),
        "Half of the rise: prefix_matching at step 362 (256 to 512), context_gain at step 370 (256 to 512). The order of "
        "prefix_matching and context_gain is open (the brackets overlap); no further checkpoint is offered between them. "
        "One run cannot exclude a common cause",
    ),
    "an open order that more documents would narrow": (
        ([row(HEADS, step=362), row(GAIN, step=500)],
         [pair(HEADS, GAIN, lag=0.5, jump=(-0.5, 1.5), reason="the lag's interval includes 0")]),
        "Half of the rise: prefix_matching at step 362 (256 to 512), context_gain at step 500 (256 to 512). The order of "
        "prefix_matching and context_gain is open (the lag's interval includes 0); about 240 documents or episodes "
        "instead of 60 would narrow it. One run cannot exclude a common cause",
    ),
    "what stayed flat is the news": (
        ([row(HEADS, step=362), row(INDEX, "not_above_floor", "no_emergence"), row(GAIN, "not_resolved", "no_emergence"),
          row(PATTERN, "some_members", "no_emergence", n_members=4, n_emerged=1)],),
        "Half of the rise: prefix_matching at step 362 (256 to 512). Without an onset: relation_index (s): not above "
        "chance or the largest null; context_gain: a rise that is not resolved from its noise; constrained_accuracy (1 of "
        "4 tasks rise): not in most tasks",
    ),
    "a family": (
        ([row(PATTERN, step=900, n_members=4, n_emerged=3)],),
        "Half of the rise: constrained_accuracy at step 900 (256 to 512, median of 4 tasks)",
    ),
    "nothing rises": (
        ([row(HEADS, "no_emergence"), row(GAIN, "no_emergence")],),
        "Without an onset: prefix_matching, context_gain: no rise",
    ),
    "too few checkpoints": (
        ([row(HEADS, "too_few_checkpoints", "no_emergence", n_checkpoints=5)],),
        "5 checkpoints are too few to time an onset; at least 8 are needed",
    ),
    "several pairs": (
        ([row(HEADS, step=362), row(INDEX, step=400), row(GAIN, step=1840)], [LEADS, pair(INDEX, GAIN, reason="r")]),
        "Half of the rise: prefix_matching at step 362 (256 to 512), relation_index (s) at step 400 (256 to 512), "
        "context_gain at step 1,840 (256 to 512). prefix_matching leads context_gain by 2.3 octaves [1.1, 3.4] (98 %); the "
        "order of relation_index (s) and context_gain is open (r); no further checkpoint is offered between them. One run "
        "cannot exclude a common cause",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_said(case):
    given, wanted = CASES[case]
    assert said(*given) == wanted


def test_in_tokens_every_moment_is_in_tokens_and_lags_stay_as_they_are():
    rows = [row(HEADS, step=362), row(GAIN, step=1840, cell=(1000, 2000))]
    found = sentence(rows, [OVERLAP], [HEADS, GAIN], [300, 1500], TimeAxis(2097152))
    assert found == (
        "Half of the rise: prefix_matching at 759M tokens (537M to 1.07B), context_gain at 3.86B tokens (2.1B to 4.19B). "
        "The order of prefix_matching and context_gain is open (the brackets overlap); steps 300, 1,500 (629M, 3.15B "
        "tokens) would narrow it. One run cannot exclude a common cause"
    )
    leading = sentence(rows, [LEADS], [HEADS, GAIN], axis=TimeAxis(2097152))
    assert "prefix_matching leads context_gain by 2.3 octaves [1.1, 3.4]" in leading
    assert "step" not in leading


def test_flags_have_few_words_and_a_sentence():
    assert all(len(few) <= 13 and whole for few, whole in FLAGS.values())


def test_where_readings_of_the_same_heads_disagree():
    index, gain = row(INDEX, step=300), row(GAIN, step=900)

    def told(*flags, step=None):
        contextual = row("relation_index_contextual (s)", *flags, step=step, heads_of=INDEX)
        return said([index, contextual, row("relation_index_attended (s)", step=300, heads_of=INDEX), gain])

    disagree = "Of the same heads, relation_index_contextual (s) does not rise for good, unlike relation_index (s)"
    assert disagree in told("transient", step=300)
    assert disagree in told("no_emergence")
    assert "f the same heads" not in told(step=300)
    assert "f the same heads" not in told("no_emergence", "low_support")
    second = "relation_index (t)"
    both = [index, row(second, step=300), gain]
    both += [row(f"contextual of {name}", "no_emergence", heads_of=name) for name in (INDEX, second)]
    of_two = sentence(both, [], [INDEX, second, GAIN])
    assert all(f"contextual of {name} does not rise for good, unlike {name}" in of_two for name in (INDEX, second))
    index = row(INDEX, "no_emergence")
    assert "relation_index_contextual (s) and relation_index_attended (s) do rise for good, unlike" in told(step=300)

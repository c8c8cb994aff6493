from collections import Counter

import numpy as np
import oracle
import pytest
import torch
from conftest import random_module

from sih.checkpoints import corpus
from sih.config import AgendaConfig
from sih.models.model import Model
from sih.scores import events, layout
from sih.texts import agenda, generated, treebank
from sih.texts.relations import Example, Exclusions, Triplet, balanced, begun_example

TAU = 2.2
TAUS = [TAU, 2.0, 2.5]


def draws(planned):
    """The nulls' token ids of the plan, by text so far, triplet, direction and position: a draw has no oracle."""
    found = {}
    for batch in planned.batches:
        for p in range(len(batch.j_P)):
            b, j, s = int(batch.text_P[p]), int(batch.j_P[p]), int(batch.s_P[p])

            def token(index, b=b):
                return int(planned.corpus_ids_U[batch.distinct_BU[b, index]]) if index >= 0 else None  # noqa: B023

            ids = tuple(batch.ids_BT[b, : j + 1].tolist())
            _, relation, direction = planned.triplets[batch.triplet_P[p]]
            key = (ids, relation, direction, s, token(int(batch.o_P[p])))
            found[key] = token(int(batch.random_P[p])), token(int(batch.matched_P[p]))

    def drawn(ids, triplet, direction, j):
        s, o = triplet.subject, triplet.object
        s, o = (s, o) if direction == "forward" else (o, s)
        return found[tuple(ids[: j + 1]), triplet.relation, direction, s, ids[o]]

    return drawn


def compare(module, examples, batch_tokens=512):
    """Every sum of the fast path equals the loop's, for every head, relation and direction; returns what was compared."""
    model = Model(module, torch.device("cpu"))
    planned = layout.plan(examples, seed=0, batch_tokens=batch_tokens)
    sums = events.measure(model, planned, TAUS).sums_GLHS
    compared = Counter()
    for direction in layout.DIRECTIONS:
        found = oracle.relation_index(module, examples, TAUS, direction, draws(planned))
        for (source, relation, layer, head), want in found.items():
            index = [
                i
                for i, g in enumerate(planned.groups)
                if (g.source, g.relation, g.direction) == (source, relation, direction)
            ]
            got = dict(zip(events.sums(TAUS), sums[index, layer, head].sum(0), strict=True))
            assert sum(planned.groups[i].opportunities for i in index) == want["opportunities"]
            assert sum(planned.groups[i].self_opportunities for i in index) == want["self_opportunities"]
            assert want.keys() <= {*got, "opportunities", "self_opportunities"}
            for name, value in got.items():
                assert value == pytest.approx(want[name], rel=2e-5, abs=1e-6), (name, source, relation, layer, head)
            compared.update({name: count for name, count in want.items() if name.endswith(("events", "scored"))})
    return compared


def test_equals_the_loop_on_generated_documents(corpus_tokenizer):
    documents = corpus.documents(3, "test", 6, 40, lists=0.0, recitals=0.0)
    found = balanced(generated.read(documents, corpus_tokenizer, Exclusions()), 8, 0, Exclusions())
    examples = [begun_example(e, corpus.VOCABULARY.index("<end>")) for e in found]
    assert all(e.begins and len(e.token_ids) == 40 for e in examples)  # documents begin with it already
    compared = compare(random_module(len(corpus.VOCABULARY)), examples)
    assert compared["argmax_events"] > 200
    assert compared["own_events"] > compared["argmax_events"]
    assert compared["ren_events"] > compared["argmax_events"]
    assert compared["argmax_events"] > compared["strict_2_events"] > compared["strict_events"]
    assert compared["strict_events"] > compared["strict_2.5_events"] > 0


def test_equals_the_loop_on_real_sentences(agenda_file, treebank_file, pythia_tokenizer):
    config = AgendaConfig(True, None, True, False, ["the", "of", "a"], "BCDFGHJKLMOPQRTUVXYZ")
    names = {"subject": ["nsubj"], "object": ["obj"], "modifier": ["amod"]}
    found = agenda.read(agenda_file, config, True, pythia_tokenizer, 40, 0, Exclusions())
    found += treebank.read(treebank_file, names, pythia_tokenizer, 40, Exclusions())
    start = pythia_tokenizer.get_vocab()["<|endoftext|>"]
    examples = [begun_example(e, start) for e in balanced(found, 2, 0, Exclusions())]
    assert {e.source for e in examples} == {"agenda", "treebank"}
    assert all(e.token_ids[0] == start for e in examples)
    compared = compare(random_module(50304, layers=2, heads=2, width=16), examples)
    assert compared["argmax_events"] > 50
    assert compared["null_matched_scored"] > 5
    assert compared["contextual_null_matched_scored"] > 5


def test_shares_are_exact_where_the_logits_hardly_differ():
    """As at initialisation: logits of 1e-6, whose softmax is uniform to float32; the loop in float64 is the truth."""
    n = 9
    logits = torch.randn(n, generator=torch.Generator().manual_seed(0)) * 1e-6
    example = Example("d", "s", tuple(range(n)), (Triplet("r", 3, int(logits.argmax())),))
    batch = layout.plan([example], 0, 64).batches[0]
    values = torch.ones(1, n, 1)
    at = int(torch.nonzero((batch.j_P == n - 1) & (batch.o_P == int(logits.argmax())))[0])
    share_EVN = events.shares_of_events(
        values, logits.reshape(1, n, 1), torch.ones(1, n, 1, 1), batch, torch.tensor([0]), torch.tensor([at])
    )
    want = oracle.share(torch.softmax(logits.double(), 0), list(range(n)), int(logits.argmax()))
    assert share_EVN[0, 0, 0].item() == pytest.approx(want, rel=1e-5)


def test_worked_example():
    """The example of the method's text: seven tokens, object Ben, a = .519."""
    logits = torch.log(torch.tensor([0.30, 0.05, 0.05, 0.15, 0.05, 0.32, 0.08]))
    example = Example("d", "s", tuple(range(7)), (Triplet("mother", 3, 5),))
    batch = layout.plan([example], 0, 64).batches[0]
    # One head, d_head 1: the value of the last token is 1, the targets are the logits themselves.
    values = torch.zeros(1, 7, 1)
    values[0, 6] = 1
    at = int(torch.nonzero((batch.j_P == 6) & (batch.o_P == 5))[0])
    out = torch.zeros(1, 7, 1, 1)
    share_EVN = events.shares_of_events(
        values, logits.reshape(1, 7, 1), out, batch, torch.tensor([0]), torch.tensor([at])
    )
    assert share_EVN[0, 0, 0].item() == pytest.approx(0.519, abs=5e-4)
    # The token attended to, and a head that puts out nothing, raise no token: no share is defined.
    assert share_EVN[0, 1:].isnan().all()


def test_on_a_tie_the_first_position_qualifies_and_is_never_strict():
    example = Example("d", "s", (5, 6, 7), (Triplet("r", 0, 1),))
    batch = layout.plan([example], 0, 64).batches[0]
    attention = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.4, 0.4, 0.2]])[None, None]
    own_PH, open_SPH = events.gate(events.look(attention, begins=False), batch, TAUS)
    # Only position 0, the forward subject, at j = 1 and 2.
    assert batch.s_P[own_PH[:, 0]].tolist() == [0, 0]
    argmax_P, strict_SP = open_SPH[0, :, 0], open_SPH[3:, :, 0]
    assert argmax_P.sum() == 2
    assert not strict_SP.any()


def open_gates(attention, example):
    """By gate: (j, s) of its events, forward and reverse, for one head."""
    batch = layout.plan([example], 0, 64).batches[0]
    _, open_SPH = events.gate(events.look(attention[None, None], example.begins), batch, TAUS)
    at = torch.stack([batch.j_P, batch.s_P], dim=1)
    return {
        name: [tuple(x) for x in at[open_P].tolist()]
        for name, open_P in zip(events.gates(TAUS), open_SPH[:, :, 0], strict=True)
    }


def test_a_head_that_attends_to_itself_has_no_event_except_by_rens_definition():
    """At j = s such a head looks at the subject whatever the relation is."""
    found = open_gates(torch.eye(6), Example("d", "s", tuple(range(6)), (Triplet("r", 1, 4),)))
    assert found["ren"] == [(4, 4)]  # in reverse the subject end comes second
    assert all(not found[gate] for gate in found if gate != "ren")
    (group,) = (g for g in layout.plan([Example("d", "s", tuple(range(6)), (Triplet("r", 1, 4),))], 0, 64).groups
                if g.direction == "reverse")  # fmt: skip
    assert (group.opportunities, group.self_opportunities) == (1, 1)


def test_a_head_that_rests_on_the_document_start_looks_at_the_subject_among_the_texts_own_tokens():
    attention = torch.zeros(6, 6)
    attention[:, 0], attention[:, 2] = 0.6, 0.3
    example = begun_example(Example("d", "s", (11, 12, 13, 14, 15), (Triplet("r", 1, 3),)), start=10)
    assert (example.token_ids, example.begins) == ((10, 11, 12, 13, 14, 15), True)
    assert (example.triplets[0].subject, example.triplets[0].object) == (2, 4)
    found = open_gates(attention, example)
    assert found["own"] == [(4, 2), (5, 2)]
    assert all(not found[gate] for gate in found if gate != "own")


def test_the_document_start_is_no_null_and_the_tenth_token_is_the_texts_own():
    example = begun_example(Example("d", "s", tuple(range(101, 121)), (Triplet("r", 0, 3),)), start=100)
    planned = layout.plan([example] * 200, 0, 10_000)
    for batch in planned.batches:
        drawn = batch.random_P[batch.random_P >= 0]
        assert drawn.min() == 1
        assert set(batch.fixed_P[batch.j_P >= 11].tolist()) == {11}
        assert set(batch.fixed_P[batch.j_P < 11].tolist()) == {-1}


def examples_of(tokenizer, count=8):
    documents = corpus.documents(5, "test", count, 30, lists=0.0, recitals=0.0)
    return generated.read(documents, tokenizer, Exclusions())


def totals(sums):
    return sums.sum(0)


def test_batching_changes_nothing_beyond_rounding(model, corpus_tokenizer):
    examples = [
        *examples_of(corpus_tokenizer),
        Example("short", "facts", (3, 30, 40, 50, 60), (Triplet("EATS", 1, 2),)),
    ]
    alone = events.measure(model, layout.plan(examples, 0, 1), TAUS).sums_GLHS
    together = events.measure(model, layout.plan(examples, 0, 100_000), TAUS).sums_GLHS
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)


def test_order_of_documents_changes_no_score(model, corpus_tokenizer):
    examples = examples_of(corpus_tokenizer)
    forward = events.measure(model, layout.plan(examples, 0, 512), TAUS).sums_GLHS
    backward = events.measure(model, layout.plan(examples[::-1], 0, 512), TAUS).sums_GLHS
    kept = [i for i, name in enumerate(events.sums(TAUS)) if "random" not in name]  # draws follow the place
    np.testing.assert_allclose(totals(forward)[..., kept], totals(backward)[..., kept], rtol=1e-5, atol=1e-6)


def test_permuting_heads_permutes_scores(checkpoint_folder, corpus_tokenizer):
    module = random_module(len(corpus.VOCABULARY), layers=1)
    examples = examples_of(corpus_tokenizer)
    planned = layout.plan(examples, 0, 512)
    before = events.measure(Model(module, torch.device("cpu")), planned, TAUS).sums_GLHS
    order, d = [2, 0, 3, 1], 8
    attention = module.gpt_neox.layers[0].attention
    with torch.no_grad():
        qkv = attention.query_key_value.weight.view(4, 3 * d, -1)[order].reshape_as(attention.query_key_value.weight)
        attention.query_key_value.weight.copy_(qkv)
        bias = attention.query_key_value.bias.view(4, 3 * d)[order].reshape(-1)
        attention.query_key_value.bias.copy_(bias)
        out = attention.dense.weight.view(-1, 4, d)[:, order].reshape_as(attention.dense.weight)
        attention.dense.weight.copy_(out)
    after = events.measure(Model(module, torch.device("cpu")), planned, TAUS).sums_GLHS
    np.testing.assert_allclose(after, before[:, :, order], rtol=1e-5, atol=1e-6)


def test_shares_lie_between_0_and_1_and_counts_agree(model, corpus_tokenizer):
    planned = layout.plan(examples_of(corpus_tokenizer), 0, 512)
    sums_GLHS = events.measure(model, planned, TAUS).sums_GLHS
    s = dict(zip(events.sums(TAUS), np.moveaxis(sums_GLHS, -1, 0), strict=True))
    opportunities = np.array([g.opportunities for g in planned.groups])[:, None, None]
    assert (s["own_events"] <= opportunities).all()
    assert (s["argmax_events"] <= s["own_events"]).all()
    assert (s["argmax_events"] <= s["ren_events"]).all()
    assert (s["strict_events"] <= s["argmax_events"]).all()
    assert (s["strict_2.5_events"] <= s["strict_events"]).all()
    assert (s["strict_events"] <= s["strict_2_events"]).all()
    for name in s:
        if name.endswith("_sum"):
            scored = s[name.removesuffix("_sum").removesuffix("_object") + "_scored"]
            assert (s[name] >= 0).all()
            assert (s[name] <= scored + 1e-9).all()
            most = "own_events" if "own" in name else "ren_events"
            assert (scored <= s[most]).all()
    assert s["argmax_events"].sum() > 0


def test_the_best_head_of_each_triplet_equals_the_loops(corpus_tokenizer):
    documents = corpus.documents(3, "test", 3, 30, lists=0.0, recitals=0.0)
    examples = balanced(generated.read(documents, corpus_tokenizer, Exclusions()), 4, 0, Exclusions())
    module = random_module(len(corpus.VOCABULARY))
    planned = layout.plan(examples, 0, 512)
    found = events.measure(Model(module, torch.device("cpu")), planned, TAUS)
    for direction in layout.DIRECTIONS:
        want = [-1 if at is None else at[0] * 4 + at[1] for at in oracle.best_heads(module, examples, direction)]
        got = [b for b, (_, _, d) in zip(found.best_R, planned.triplets, strict=True) if d == direction]
        assert got == want
    assert len(set(found.best_R)) > 2
    assert (found.best_null_R != found.best_R).any()


def test_matched_null_is_an_entity_of_the_objects_kind_that_is_seen():
    ids = tuple(range(100, 112))
    triplet = Triplet("r", 0, 3, like_subject=(5,), like_object=(2, 7))
    planned = layout.plan([Example("d", "s", ids, (triplet,))] * 200, 0, 10_000)
    forward, reverse = set(), set()
    for batch in planned.batches:
        for p in range(len(batch.j_P)):
            into = forward if int(batch.o_P[p]) == 3 else reverse
            into.add((int(batch.j_P[p]) >= 7, int(batch.j_P[p]) >= 5, int(batch.matched_P[p])))
    assert {m for late, _, m in forward if not late} == {2}
    assert {m for late, _, m in forward if late} == {2, 7}
    assert {m for _, seen, m in reverse if seen} == {5}
    assert {m for _, seen, m in reverse if not seen} == {-1}


def test_random_null_is_a_seen_token_other_than_the_object_and_uniform():
    ids = tuple(range(100, 120))
    planned = layout.plan([Example("d", "s", ids, (Triplet("r", 0, 3),))] * 400, 0, 10_000)
    draws = []
    for batch in planned.batches:
        chosen = (batch.j_P == 9) & (batch.o_P == 3)
        assert ((batch.random_P >= 0) & (batch.random_P <= batch.j_P)).all()
        assert (batch.random_P != batch.o_P).all()
        draws += batch.random_P[chosen].tolist()
    counts = np.bincount(draws, minlength=10)
    assert counts[3] == 0
    # 400 draws over nine tokens: 44 each, give or take four standard errors.
    assert counts[[i for i in range(10) if i != 3]].min() > 44 - 4 * 6.3
    assert counts.max() < 44 + 4 * 6.3


def test_a_head_made_to_be_a_semantic_induction_head_scores_1():
    """Attention fixed on the subject, OV raising the object alone: index 1, both nulls 0."""
    ids = tuple(range(16))
    example = Example("d", "s", ids, (Triplet("r", 2, 4),))
    batch = layout.plan([example], 0, 64).batches[0]
    attention = torch.zeros(1, 1, 16, 16)
    attention[..., 2] = 0.9
    attention[..., 0] = 0.1
    own_PH, open_SPH = events.gate(events.look(attention, begins=False), batch, TAUS)
    opportunity, head = torch.nonzero(own_PH, as_tuple=True)
    assert open_SPH[:, opportunity, head].all()
    assert len(opportunity) == 12  # forward only: in reverse the subject end is token 4
    values, targets = torch.ones(1, 16, 1), torch.zeros(1, 16, 1)
    targets[0, 4] = 20.0
    out = torch.ones(1, 16, 1, 1)
    share_EVN = events.shares_of_events(values, targets, out, batch, head, opportunity)
    assert share_EVN[:, :, 0].numpy() == pytest.approx(np.ones((12, 3)))
    assert torch.nan_to_num(share_EVN[:, :, 1]).abs().max() == 0
    assert share_EVN[:, :, 2].abs().max() == 0
    assert share_EVN[:, :, 3].isnan().all()  # no kinds are named


def test_a_model_made_of_one_semantic_induction_head_scores_1():
    """Weights by hand: every query wants the subject's key, every value writes what the object alone reads.

    The relation index is 1 in every variant at every opportunity of the forward direction; no null is above 0.
    """
    n, subject, obj = 16, 2, 4
    module = random_module(n, layers=1, heads=1, width=16, context=32)
    attention, d = module.gpt_neox.layers[0].attention, 16
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.gpt_neox.layers[0].input_layernorm.weight.fill_(1.0)
        embedding = module.gpt_neox.embed_in.weight
        embedding[:, 0] = 4.0  # what all tokens have in common
        embedding[subject, 1] = 4.0  # what marks the subject
        qkv, bias = attention.query_key_value.weight, attention.query_key_value.bias
        bias[10] = 20.0  # the query, in a dimension that rotary embedding leaves alone
        qkv[d + 10, 1] = 5.0  # the key
        qkv[2 * d, 0] = 1.0  # the value
        attention.dense.weight[2, 0] = 1.0
        module.lm_head.weight[obj, 2] = 9.0
    planned = layout.plan([Example("d", "s", tuple(range(n)), (Triplet("r", subject, obj),))], 0, 64)
    found = events.measure(Model(module, torch.device("cpu")), planned, TAUS)
    total = dict(zip(events.sums(TAUS), found.sums_GLHS[0, 0, 0], strict=True))
    opportunities = planned.groups[0].opportunities
    assert opportunities == n - obj
    for gate in events.gates(TAUS):
        assert total[f"{gate}_events"] == opportunities
        for variant in events.VARIANTS:
            begin = events.prefix(variant)
            assert total[f"{begin}{gate}_sum"] == pytest.approx(opportunities, abs=1e-4)
    for variant in events.VARIANTS:
        for null in ("null_fixed", "null_random"):
            assert total[f"{events.prefix(variant)}{null}_scored"] > 0
            assert total[f"{events.prefix(variant)}{null}_sum"] == pytest.approx(0, abs=1e-4)
    assert found.best_R.tolist()[0] == 0

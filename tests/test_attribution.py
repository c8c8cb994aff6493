"""First-order effects against small steps, and outcomes against slow loops."""

import math

import numpy as np
import pytest
import torch
from conftest import composed, random_module

from sih.checkpoints import corpus
from sih.checkpoints.tiny import held_out
from sih.errors import SihError
from sih.models import replacing
from sih.models.model import Model
from sih.scores import Given, outcomes
from sih.scores.attribution import Attribution, attributions
from sih.scores.making import made

N = len(corpus.VOCABULARY)
OPTIONS = ["icl.effects.documents=3", "icl.effects.sequences=3", "icl.effects.length=10", "icl.effects.episodes=4"]


@pytest.fixture(scope="module")
def model():
    return Model(random_module(N, layers=3, heads=4, width=32), torch.device("cpu"))


@pytest.fixture(scope="module")
def score() -> Attribution:
    return made(composed("model=tiny", *OPTIONS).scores)["attribution"]


@pytest.fixture(scope="module")
def given(corpus_tokenizer):
    train = composed("model=tiny").model.train
    return Given(corpus_tokenizer, N, N, 96, 0, {}, lambda n: held_out(train, 0, n), 0)


@pytest.fixture(scope="module")
def inputs(score, given):
    return score.draw(given).inputs


def values(model, reading):
    with torch.no_grad():
        value_NB = outcomes.read(model, reading, model.hidden(reading.ids_BT))
    return dict(zip(reading.names, value_NB.double().numpy(), strict=True))


def all_values(model, inputs):
    found = {}
    for reading in inputs.readings:
        found |= values(model, reading)
    return outcomes.with_differences(found)


def log_softmax(logits):
    top = max(logits)
    total = math.log(sum(math.exp(x - top) for x in logits)) + top
    return [x - total for x in logits]


def test_outcomes_against_a_loop_over_texts(model, score, inputs, given):
    found = all_values(model, inputs)
    late, late_stop, short = score.effects.late
    whole, _, _, *asked = inputs.readings
    texts = [torch.tensor(ids) for ids in _written(score, given, "text-")][: len(whole.documents)]
    start = torch.tensor([0])

    def loss(ids, predictions):
        logits = model.unembed(model.hidden(ids[None]))[0].double().tolist()
        return np.mean([-log_softmax(logits[t])[int(ids[t + 1])] for t in predictions])

    for b, ids in enumerate(texts):
        at_late = loss(ids, range(late, late_stop))
        early = loss(ids, range(late_stop - late))
        alone = loss(torch.cat([start, ids[short + 1 :]]), range(late - short, late_stop - short))
        assert found["late_loss"][b] == pytest.approx(at_late, rel=1e-5)
        assert found["reduction"][b] == pytest.approx(at_late - early, rel=1e-4)
        assert found["gain"][b] == pytest.approx(alone - at_late, rel=1e-4)
    repeated = [torch.tensor(ids) for ids in _written(score, given, "sequence-")]
    for b, ids in enumerate(repeated):
        assert ids[1:11].tolist() == ids[11:].tolist()
        assert found["repeated_loss"][b] == pytest.approx(loss(ids, range(11, 20)), rel=1e-5)
    (reading,) = asked
    for b in range(len(reading.documents)):
        logits = model.unembed(model.hidden(reading.ids_BT[b : b + 1]))[0].double().tolist()
        margins, formats, right = [], [], []
        for p in np.flatnonzero(reading.row_P.numpy() == b):
            at = log_softmax(logits[int(reading.position_P[p])])
            labels = [int(x) for x in reading.label_PC[p] if x >= 0]
            gold = labels[int(reading.gold_P[p])]
            others = sum(math.exp(at[x]) for x in labels if x != gold)
            share = sum(math.exp(at[x]) for x in labels)
            margins.append(at[gold] - math.log(others))
            formats.append(math.log(share) - math.log(1 - share))
            right.append(all(at[gold] >= at[x] for x in labels))
        assert found["margin"][b] == pytest.approx(np.mean(margins), rel=1e-3, abs=1e-4)
        assert found["format"][b] == pytest.approx(np.mean(formats), rel=1e-3, abs=1e-4)
        assert found["accuracy"][b] == pytest.approx(np.mean(right))


def _written(score, given, begin):
    """The token ids that the drawn file has of one kind of document."""
    import json

    rows = [json.loads(line) for line in score.draw(given).files["effect_inputs.jsonl"].splitlines()]
    return [row["token_ids"] for row in rows if row["document"].startswith(begin)]


def test_batches_do_not_change_a_text(model, inputs):
    for reading in inputs.readings:
        parts = [values(model, part) for part in reading.batches(20)]
        assert len(parts) > 1
        for name, whole in values(model, reading).items():
            np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), whole, rtol=1e-4, atol=1e-5)


def test_texts_of_the_reference_are_measured_on_by_no_outcome(inputs):
    measured = {tuple(ids.tolist()) for ids in inputs.readings[0].ids_BT}
    width = inputs.readings[0].ids_BT.shape[1]
    assert measured.isdisjoint({tuple(ids[:width].tolist()) for ids in inputs.reference_BT})


def test_without_texts_for_the_reference_nothing_is_measured(score, given, monkeypatch):
    monkeypatch.setattr(outcomes.long, "cut", lambda *args: [("text-0000", [0] * 96)])
    with pytest.raises(SihError, match="none is left for the means"):
        score.draw(given)


@pytest.mark.parametrize("reference", ["mean", "zero"])
def test_effects_are_slopes_towards_the_reference(model, inputs, reference):
    """(M(z + e (r - z)) - M(z - e (r - z))) / 2 e, for single heads of every layer."""
    mean_LHK = replacing.mean_outputs(model, inputs.reference_BT, 500)
    towards = mean_LHK if reference == "mean" else 0 * mean_LHK
    step = 0.02
    for reading in inputs.by_gradient:
        found = attributions(model, reading, mean_LHK, 400)
        own = replacing.outputs(model, reading.ids_BT)
        for head in [(0, 1), (1, 3), (2, 2)]:
            moved = []
            for e in (step, -step):
                instead = {n: z + e * (towards[n] - z) for n, z in own.items()}
                with replacing.replaced(model, [head], instead):
                    moved.append(values(model, reading))
            for name, effect_RBLH in found.items():
                want = (moved[0][name] - moved[1][name]) / (2 * step)
                got = effect_RBLH[("mean", "zero").index(reference), :, head[0], head[1]]
                np.testing.assert_allclose(got, want, rtol=0.05, atol=0.05 * np.abs(got).max() + 1e-3)


def test_tables_hold_every_head_document_and_outcome(model, score, inputs):
    tables = {name: table.to_pandas() for name, table in score.measure(model, inputs, 2000).items()}
    documents, heads = tables["attribution_documents"], tables["attribution_heads"]
    counts = documents.groupby("outcome", observed=True)["document"].nunique()
    assert set(counts.index) == {*outcomes.DIFFERENCES, *outcomes.LOSSES, "margin", "format"}
    assert len(heads) == len(counts) * 12
    means = documents.groupby(["outcome", "layer", "head"], observed=True)["mean"].mean()
    kept = heads.set_index(["outcome", "layer", "head"])["mean"]
    np.testing.assert_allclose(means.sort_index(), kept.sort_index(), rtol=1e-4, atol=1e-5)
    gain, short, late = (kept[name] for name in ("gain", "short_loss", "late_loss"))
    np.testing.assert_allclose(gain, short - late, rtol=1e-4, atol=1e-5)

"""Token and concept copying: against passes of their own, on prompts as the paper builds them."""

import json

import induction_by_hand as by_hand
import numpy as np
import pytest
import torch
from conftest import composed, random_module
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from sih.checkpoints import corpus
from sih.errors import SihError
from sih.models import replacing
from sih.models.model import Model
from sih.scores import Given, dual_route
from sih.scores.dual_route import CHANGES, CONCEPTS, LENGTHS, TOKENS, Prompt, changes
from sih.scores.making import made
from sih.texts import agenda

N = len(corpus.VOCABULARY)
HEADS = [(layer, head) for layer in range(3) for head in range(4)]


@pytest.fixture(scope="module")
def score():
    return made(composed("model=tiny", "scores.dual_route.prompts=8").scores)["dual_route"]


@pytest.fixture(scope="module")
def agenda_file(tmp_path_factory):
    """Two entities of every length, in the words of the generated language; one that repeats a word is left out."""
    words = corpus.VOCABULARY[-40:]
    of_length = [" ".join(words[6 * n + k] for k in range(n)) for n in LENGTHS]
    of_length += [" ".join(words[6 * n + k + 1] for k in range(n)) for n in LENGTHS]
    file = tmp_path_factory.mktemp("agenda") / "agenda.tsv"
    columns = ["a title", " ; ".join([*of_length, f"{words[0]} {words[0]}"]), "<task>", "0 1 1", "a <task_0>", ""]
    file.write_text("\t".join(columns) + "\n")
    return file


def given_of(tokenizer, file=None):
    return Given(tokenizer, N, N, 96, 0, {} if file is None else {"agenda": file}, None, 0)


@pytest.fixture(scope="module")
def drawn(score, corpus_tokenizer, agenda_file):
    return score.draw(given_of(corpus_tokenizer, agenda_file))


def test_prompts_say_the_entity_again_up_to_its_first_token(score, drawn, corpus_tokenizer):
    newline = corpus_tokenizer(";", add_special_tokens=False).input_ids[0]
    assert [p.kind for p in drawn.inputs] == [TOKENS] * 8 + [CONCEPTS] * 8
    for n, p in enumerate(drawn.inputs):
        at = 1 + score.length
        assert len(p.clean) == len(p.corrupted)
        assert p.clean[0] == p.corrupted[0] == 0
        assert p.clean[at] == p.corrupted[at] == newline
        assert p.clean[at:] == p.corrupted[at:], "only what comes before the newline differs"
        size = LENGTHS[n % 8 // 2]
        entity = p.clean[at - size : at]
        assert p.clean[1 : at - size] == p.clean[at + 1 : -1]
        assert entity[:2] == (p.next, p.later)
        assert p.clean[-1] == p.next
        assert not {*p.corrupted[1:at]} & {*entity}
        assert len({*p.clean[1:at]}) == score.length, "no token twice, so that each tells the next"
    written = [json.loads(line) for line in drawn.files["prompts.jsonl"].splitlines()]
    assert [tuple(row["clean"]) for row in written] == [p.clean for p in drawn.inputs]


def test_copying_against_a_pass_for_each_head(drawn):
    model = Model(random_module(N, layers=3, heads=4, width=32), torch.device("cpu"))
    by_length = {}
    for p in drawn.inputs:
        by_length.setdefault(len(p.clean), []).append(p)
    for prompts in by_length.values():
        found = changes(model, prompts)
        for b, p in enumerate(prompts):
            clean, corrupted = torch.tensor([p.clean]), torch.tensor([p.corrupted])
            own, at = replacing.outputs(model, clean), torch.tensor([len(p.clean) - 2])

            def read(heads, own=own, at=at, corrupted=corrupted, p=p):
                with torch.no_grad(), replacing.replaced(model, heads, own, at):
                    logits_TV = model.unembed(model.hidden(corrupted)[0]).double()
                next_V, later_V = logits_TV[-2], logits_TV[-1]
                return np.array([
                    next_V[p.next] - next_V.mean(), later_V[p.later] - later_V.mean(),
                    next_V.softmax(0)[p.next], later_V.softmax(0)[p.later],
                ])  # fmt: skip

            for layer, head in HEADS:
                np.testing.assert_allclose(found[:, b, layer, head], read([(layer, head)]) - read([]), atol=2e-5)
        assert np.abs(found[0]).max() > 1e-3
        assert np.abs(found[1]).max() > 1e-4


def test_a_layer_that_looks_back_less_far_takes_passes_of_its_own(drawn, monkeypatch):
    model = Model(random_module(N, layers=3, heads=4, width=32), torch.device("cpu"))
    want = changes(model, drawn.inputs[:2])
    monkeypatch.setattr(Model, "window", 20)
    np.testing.assert_allclose(changes(model, drawn.inputs[:2]), want, atol=2e-5)


def test_a_head_that_copies_the_next_token_copies_tokens_and_no_concepts():
    """The induction head made by hand raises e1 by far the most of all heads, and e2 not at all."""
    model = Model(by_hand.module(), torch.device("cpu"))
    rng = np.random.default_rng(0)
    prompts = []
    for n in range(6):
        ids = rng.permutation(np.arange(2, by_hand.TOKENS))[:14].tolist()
        context, entity, other = ids[:4], ids[4:6], ids[6:12]
        end = [1, *context, entity[0]]
        prompts.append(Prompt(TOKENS, str(n), (0, *context, *entity, *end), (0, *other, *end), *entity))
    change_4LH = changes(model, prompts).mean(1)
    others = [(n, h) for n in range(2) for h in range(4) if (n, h) != by_hand.INDUCTION]
    assert change_4LH[0][by_hand.INDUCTION] > 5
    assert change_4LH[2][by_hand.INDUCTION] > 0.5
    assert max(abs(change_4LH[0][h]) for h in others) < 0.2 * change_4LH[0][by_hand.INDUCTION]
    assert np.abs(change_4LH[1]).max() < 0.2 * change_4LH[0][by_hand.INDUCTION]


def test_tables_are_means_over_prompts_and_series_read_them(score, drawn):
    model = Model(random_module(N, layers=3, heads=4, width=32), torch.device("cpu"))
    tables = {n: t.to_pandas() for n, t in score.measure(model, drawn.inputs, 500).items()}
    again = score.measure(model, drawn.inputs, 50_000)["dual_route_heads"].to_pandas()
    documents, heads = tables["dual_route_documents"], tables["dual_route_heads"]
    assert len(documents) == 16 * 12
    keys = ["kind", "layer", "head"]
    want = documents.groupby(keys, observed=True)[list(CHANGES)].mean().sort_index()
    np.testing.assert_allclose(heads.set_index(keys).sort_index(), want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(again.set_index(keys).sort_index(), want, rtol=1e-3, atol=1e-5)
    assert [s.name for s in score.series(drawn.facts)] == ["token_copying", "concept_copying"]
    for series in score.series(drawn.facts):
        assert {*series.columns()} <= {*score.tables[series.table]}


def test_without_texts_that_name_entities_there_are_random_tokens_alone(score, corpus_tokenizer):
    drawn = score.draw(given_of(corpus_tokenizer))
    assert {p.kind for p in drawn.inputs} == {TOKENS}
    assert [s.name for s in score.series(drawn.facts)] == ["token_copying"]


def test_a_file_of_ones_own_takes_the_place_of_agendas_entities(drawn, corpus_tokenizer, agenda_file, tmp_path):
    own = tmp_path / "own entities.txt"
    own.write_text("\n".join([*reversed(agenda.entities(agenda_file)), "", " "]))
    option = f"scores.dual_route.entities='{own}'"
    mine = made(composed("model=tiny", "scores.dual_route.prompts=8", option).scores)["dual_route"]
    assert mine.files() == {"entities": own}
    found = mine.draw(Given(corpus_tokenizer, N, N, 96, 0, mine.files(), None, 0))
    assert {p.clean[-1:] for p in found.inputs if p.kind == CONCEPTS} == {
        p.clean[-1:] for p in drawn.inputs if p.kind == CONCEPTS
    }
    own.unlink()
    with pytest.raises(SihError, match="no such file; expected a text, an entity a line"):
        mine.files()


def test_an_entity_begins_with_its_own_token_whatever_the_tokenizer_does_with_spaces():
    """Llama 2's puts a mark before every text, which would stand alone before " a"."""
    raw = Tokenizer(WordLevel({"▁a": 0, "▁b": 1, "▁": 2, "[UNK]": 3}, "[UNK]"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    assert tokenizer(" a b", add_special_tokens=False).input_ids == [2, 0, 1]
    assert dual_route._within_text(tokenizer, "a b") == (0, 1)


def test_what_cannot_be_drawn_is_refused(corpus_tokenizer, agenda_file):
    def score(**options):
        return made(composed("model=tiny", *(f"scores.dual_route.{k}={v}" for k, v in options.items())).scores)[
            "dual_route"
        ]

    for options, said in (
        ({"length": 60}, "needs 123 tokens"),
        ({"newline": '" "'}, "is no token"),
        ({"prompts": 40}, "fewer than 10 entities"),
    ):
        with pytest.raises(SihError, match=said):
            score(**options).draw(given_of(corpus_tokenizer, agenda_file))
    with pytest.raises(SihError, match="prompts of at least 4"):
        score(prompts=2)

"""Tokenizers other than Pythia's: GPT-2's two files, and those that split a digit from the space before it."""

import json

import oracle
import pytest
import torch
from architectures import GROUPED, of
from conftest import composed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from sih.checkpoints.files import Sha256, tokenizer_files
from sih.errors import CheckpointError, SihError
from sih.models.model import Model
from sih.models.tokenizer import load_tokenizer, start_id
from sih.scores import few_shot
from sih.texts import episodes


def options_of(**changed):
    found = composed("model=pythia-70m", "scores=[few_shot]").icl.few_shot
    for name, value in changed.items():
        setattr(found, name, value)
    return found


def trained(*before) -> Tokenizer:
    """A byte-level BPE in which every word of the episodes is one token; `before` splits texts first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    config = options_of()
    words = {word for listed in config.words.values() for word in listed}
    words |= {word for task in config.tasks.values() for pair in task.pairs for word in pair.split()}
    labels = sorted({label for task in config.tasks.values() for label in task.labels})
    texts = ["\n".join(f" {word}, {word}: {label}" for label in labels) for word in sorted(words)]
    texts += ["".join(f"\n{word}" for word in sorted(words))]
    trainer = trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"],
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts * 2, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def splitting() -> PreTrainedTokenizerFast:
    """As SmolLM2's, Llama-3's and OLMo-2's: " 0" is two tokens, a space and a digit."""
    return PreTrainedTokenizerFast(tokenizer_object=trained(pre_tokenizers.Digits(individual_digits=True)))


@pytest.fixture
def two_files(tmp_path):
    """vocab.json and merges.txt, as GPT-2's checkpoints have them."""
    trained().model.save(str(tmp_path))
    return tmp_path


def test_two_files_make_the_tokenizer_that_transformers_makes_of_them(two_files):
    found, other = load_tokenizer(two_files), GPT2Tokenizer.from_pretrained(two_files)
    text = "\n apple, June: 0 it's 12 naïve  words"
    assert found(text)["input_ids"] == other(text)["input_ids"]
    assert found.decode(found(text)["input_ids"]) == text
    assert start_id(found, "<|endoftext|>") == other.bos_token_id == 0
    assert load_tokenizer(two_files / "step7")(text) == found(text)  # one folder up


def test_tokenizer_json_comes_before_two_files_and_one_alone_is_none(two_files, splitting):
    hashes = Sha256()
    both = hashes.of_all(tokenizer_files(two_files))
    assert both == f"{hashes.of(two_files / 'vocab.json')} {hashes.of(two_files / 'merges.txt')}"
    splitting.backend_tokenizer.save(str(two_files / "tokenizer.json"))
    assert [f.name for f in tokenizer_files(two_files)] == ["tokenizer.json"]
    assert load_tokenizer(two_files)(" 0")["input_ids"] == splitting(" 0")["input_ids"]
    (two_files / "tokenizer.json").unlink()
    (two_files / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json there or one folder up, nor vocab\.json and merges"):
        load_tokenizer(two_files / "step7")


@pytest.mark.parametrize("merge", ["Ġ zebracorn", "one two three", "lonely"])
def test_merges_of_another_vocabulary_are_refused(two_files, merge):
    (two_files / "merges.txt").write_text((two_files / "merges.txt").read_text() + f"{merge}\n")
    with pytest.raises(CheckpointError, match=rf"merges\.txt merges '{merge}', which vocab\.json does not have"):
        load_tokenizer(two_files)
    (two_files / "vocab.json").write_text(json.dumps({})[:-1])
    with pytest.raises(CheckpointError, match="no readable tokenizer"):
        load_tokenizer(two_files)


def test_the_common_beginning_of_labels_belongs_to_the_prompt(splitting):
    space = splitting(" ", add_special_tokens=False)["input_ids"]
    assert len(space) == 1
    assert splitting(" 0", add_special_tokens=False)["input_ids"][:1] == space
    found, _ = episodes.build(options_of(episodes=2), splitting, 2048, 0)
    for e in found:
        labels = splitting.convert_ids_to_tokens(list(e.label_token_ids))
        text = splitting.decode(e.token_ids)
        assert all(splitting.decode(e.token_ids[: p + 1]).endswith(": " if labels[0] == "0" else ":") for p in e.asked)
        if e.task.startswith("justify"):
            assert labels == ["Ġtrue", "Ġfalse"]
        else:
            assert labels == [str(i) for i in range(len(labels))]
            assert [e.token_ids[p] for p in e.asked] == space * len(e.asked)
            assert [text.split("\n")[s][-1:] for s in range(20)] == [str(g) for g in e.gold[:20]]


def test_answers_behind_a_common_beginning_equal_those_to_prompts_of_their_own(splitting):
    """Of a Llama with grouped queries, begun with a document start or not."""
    module = of("llama", **(GROUPED | {"vocab_size": len(splitting), "max_position_embeddings": 256}))
    model = Model(module, torch.device("cpu"))
    for start in (None, 0):
        asked, _ = episodes.build(options_of(episodes=1, shots=6), splitting, 2048, 0, start)
        answers = few_shot.answer(model, asked, 4096)
        n = 0
        for e in asked:
            for k, gold in enumerate(e.gold):
                ids = list(e.token_ids[: e.asked[k] + 1])
                text = splitting.decode(ids if start is None else ids[1:])
                assert text.endswith((": ", ":"))
                again = splitting(text, add_special_tokens=False)["input_ids"]
                assert again == (ids if start is None else ids[1:])
                want = oracle.prompt_scores(module, ids, list(e.label_token_ids), gold)
                for score in few_shot.ANSWERED:
                    assert getattr(answers, score)[n] == pytest.approx(want[score], rel=1e-4, abs=2e-4)
                n += 1
        assert n == len(answers.accuracy) > 40


def test_labels_that_no_single_token_tells_apart_are_refused(splitting):
    """ " 10" and " 12" share two tokens, and " 20" none of them but the space."""
    config = options_of(episodes=2)
    config.tasks["binary_fruit_month"].labels = ["10", "12"]
    found, _ = episodes.build(config, splitting, 2048, 0)
    first = next(e for e in found if e.task == "binary_fruit_month")
    assert splitting.convert_ids_to_tokens(list(first.label_token_ids)) == ["0", "2"]
    config.tasks["four_fruit_month"].labels = ["10", "12", "20", "30"]
    with pytest.raises(SihError, match=r"two of the labels .* begin with the same token"):
        episodes.build(config, splitting, 2048, 0)

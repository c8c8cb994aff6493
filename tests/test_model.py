import os
import re
import subprocess
import sys

import oracle
import pytest
import torch
from conftest import random_module, write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXForCausalLM

from sih.checkpoints import corpus
from sih.checkpoints.training import tokenizer_of_corpus
from sih.errors import CheckpointError, SihError
from sih.models import memory
from sih.models.exhausted import is_out_of_memory
from sih.models.loading import load, weight_files
from sih.models.tokenizer import checked_tokenizer, load_tokenizer

CPU = torch.device("cpu")
IDS = torch.randint(len(corpus.VOCABULARY), (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "step3", random_module(len(corpus.VOCABULARY)), tokenizer_of_corpus())


def test_observing_changes_no_logit_and_shows_the_real_attention(model):
    module = model.module
    module.set_attn_implementation("eager")
    with torch.no_grad():
        plain = module(IDS, output_attentions=True)
    seen = {}
    hidden = model.hidden(IDS, lambda layer, attention, _: seen.__setitem__(layer, attention))
    assert torch.equal(model.unembed(hidden), plain.logits)
    assert list(seen) == [0, 1]
    for layer, attention in seen.items():
        assert torch.equal(attention, plain.attentions[layer])
        assert torch.allclose(attention.sum(-1), torch.ones(3, 4, 20), atol=1e-5)
    assert torch.allclose(model.unembed(model.hidden(IDS)), plain.logits, atol=1e-4)  # sdpa rounds differently


def test_nothing_depends_on_later_tokens(model):
    changed = IDS.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % len(corpus.VOCABULARY)
    first, second = [], []
    before = model.hidden(IDS, lambda _, a, out: first.append((a, out)))
    after = model.hidden(changed, lambda _, a, out: second.append((a, out)))
    assert torch.allclose(before[:, :12], after[:, :12], atol=1e-5)
    for (a, out_a), (b, out_b) in zip(first, second, strict=True):
        assert torch.allclose(a[:, :, :12], b[:, :, :12], atol=1e-6)
        assert torch.allclose(out_a[:, :12], out_b[:, :12], atol=1e-5)


def test_ov_factors_are_the_ov_circuit(model):
    tokens = torch.tensor([4, 90, 17])
    for layer in range(2):
        values, targets = model.ov_factors(layer, tokens)
        logits = values @ targets.mT
        for head in range(4):
            for row, token in enumerate(tokens.tolist()):
                want = oracle.ov_probabilities(model.module, layer, head, token)[tokens]
                got = torch.softmax(logits[head, row], 0)
                assert torch.allclose(got, want / want.sum(), atol=1e-5)


def test_the_whole_model_goes_to_the_device_that_is_asked_for(folder):
    """On torch's own stand-in for a device, which every machine has: no weight and no buffer stays behind."""
    module = load(folder, torch.device("meta")).module
    tensors = [*module.parameters(), *module.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    assert {t.dtype for t in module.parameters()} == {torch.float32}
    assert {p.dtype for p in load(folder, CPU, "bfloat16").module.parameters()} == {torch.bfloat16}


def test_missing_weights_are_never_filled_in(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(k for k in weights if "dense_h_to_4h.weight" in k)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing_keys"):
        load(folder, CPU)


def test_mismatched_and_unknown_weights_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"gpt_neox.extra": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected_keys.*extra"):
        load(folder, CPU)
    weights["gpt_neox.embed_in.weight"] = weights["gpt_neox.embed_in.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="embed_in"):
        load(folder, CPU)


def test_buffers_of_old_files_are_accepted(folder):
    weights = load_file(folder / "model.safetensors")
    old = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
    }
    save_file(weights | old, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder, CPU).n_layers == 2


def test_bin_weights_load_and_arbitrary_pickles_do_not(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load(folder, CPU).n_heads == 4
    torch.save({"x": print}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder, CPU)


@pytest.mark.parametrize("contents", [b"not weights at all", b"", None])
def test_truncated_or_foreign_weights_files(folder, contents):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000] if contents is None else contents)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder, CPU)


def test_no_weights_no_config_other_shape(folder):
    with pytest.raises(CheckpointError, match=r"expected \(12, None, None\)"):
        load(folder, CPU, shape=(12, None, None))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        load(folder, CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        weight_files(folder)


def test_tokenizer_must_fit(folder, pythia_tokenizer, tmp_path):
    assert len(checked_tokenizer(folder)) == len(corpus.VOCABULARY)
    pythia_tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="50277 ids, the weights 150"):
        checked_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CheckpointError, match="no readable tokenizer"):
        load_tokenizer(folder)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere" / "step0")


def test_tokens_in_a_pass_follow_from_the_memory_and_the_shape(folder, monkeypatch):
    monkeypatch.setattr(memory, "_memory", lambda device: 24 * 10**9)
    assert memory.tokens_in_a_pass(folder, CPU) == memory.MOST_TOKENS["cpu"]
    monkeypatch.setattr(memory, "_memory", lambda device: 10**9)
    fewer = memory.tokens_in_a_pass(folder, CPU)
    assert memory.FEWEST_TOKENS < fewer < memory.MOST_TOKENS["cpu"]
    monkeypatch.setattr(memory, "_memory", lambda device: 10**6)
    assert memory.tokens_in_a_pass(folder, CPU) == memory.FEWEST_TOKENS


def test_out_of_memory_is_known_by_its_class_and_by_its_words():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_unknown_device():
    with pytest.raises(SihError, match="expected auto, cpu"):
        memory.choose_device("gpu")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to mmap 48472 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_into_memory_are_not_called_unreadable(folder, error, monkeypatch):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(GPTNeoXForCausalLM, "from_pretrained", full)
    with pytest.raises(CheckpointError, match="step3: out of memory while loading the weights"):
        load(folder, CPU)


@pytest.mark.parametrize(("chosen", "used"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_threads_of_torch_wait_passively_unless_the_user_says_otherwise(chosen, used):
    """As OpenMP itself tells it, in a process that begins as every command does."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | {"OMP_DISPLAY_ENV": "true"}
    if chosen:
        environment["OMP_WAIT_POLICY"] = chosen
    code = "import sih.sweep, sys; assert 'torch' not in sys.modules; import torch"
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert re.search(rf"OMP_WAIT_POLICY *= *'{used}'", told.stderr)

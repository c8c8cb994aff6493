"""Every layout, on small random models of each architecture: what is read is what the class computes."""

import json
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, UNSEEN, made, of
from transformers import AutoConfig

from sih.errors import CheckpointError, SihError
from sih.models import gpt_neox, layouts, selfcheck, split
from sih.models.layer import heads_of
from sih.models.loading import load, shape_of
from sih.models.model import Model
from sih.models.selfcheck import self_check

CPU = torch.device("cpu")
IDS = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))


def model_of(name: str, **changed) -> Model:
    return Model(made(name, **changed), CPU)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_class_adds_up_and_observing_changes_no_logit(name):
    model = model_of(name)
    assert max(self_check(model).values()) < 1e-5
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model.module(IDS, output_attentions=True, use_cache=False)
    seen = {}
    hidden = model.hidden(IDS, lambda layer, attn_BHTT, out_BTHK: seen.setdefault(layer, attn_BHTT))
    assert torch.allclose(model.unembed(hidden), plain.logits, atol=1e-5)
    assert list(seen) == list(range(model.n_layers))
    for layer, attn_BHTT in seen.items():
        assert torch.allclose(attn_BHTT, plain.attentions[layer], atol=1e-6)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma2", "olmo3"])
def test_sliding_windows_are_seen_as_they_are(name):
    """A window of 5 positions: none of the attention lies further back, in the layers that have one."""
    model, furthest = model_of(name), []
    model.hidden(IDS, lambda layer, attn_BHTT, out_BTHK: furthest.append(float(attn_BHTT.tril(-5).max())))
    full = [w for w, kind in zip(furthest, getattr(model.module.config, "layer_types", None) or [], strict=False)
            if kind == "full_attention"]  # fmt: skip
    assert min(furthest) == 0
    assert all(w > 0 for w in full)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2", "olmo2", "granite"])
def test_taking_a_head_out_before_the_output_projection_takes_it_out_of_the_stream(name):
    """The module that a layer names as its output reads z, head after head."""
    model, head = model_of(name), 2
    layer, d = model.layers[-1], model.d_head
    entered = []

    def without(module, args):
        z = args[0].clone()
        z[..., head * d : (head + 1) * d] = 0
        return (z,)

    hook = layer.output.register_forward_hook(lambda module, args, output: entered.append(output))
    z = []
    model.hidden(IDS, lambda _, attn_BHTT, out_BTHK: z.append(out_BTHK))
    pre = layer.output.register_forward_pre_hook(without)
    model.hidden(IDS)
    hook.remove()
    pre.remove()
    assert torch.allclose(entered[0] - entered[1], z[-1][:, :, head] @ layer.o_HDK[head].T, atol=1e-4)


def refusal(model: Model) -> str:
    with pytest.raises(SihError) as refused:
        self_check(model)
    assert not isinstance(refused.value, CheckpointError)  # no checkpoint of the series is any better
    return str(refused.value)


def changed(monkeypatch, name: str, change) -> Model:
    """The model with a wrong layout: `change` of every layer."""
    right = layouts.layers_of
    monkeypatch.setattr("sih.models.model.layers_of", lambda module: [change(layer) for layer in right(module)])
    return model_of(name)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "llama", "olmo2"])
def test_keys_for_values_are_refused(name, monkeypatch):
    def change(layer):
        at, d = layer.attention, layer.d_head
        if hasattr(at, "k_proj"):
            keys = at.k_proj.weight
        else:
            fused = at.c_attn.weight.T if hasattr(at, "c_attn") else at.query_key_value.weight
            keys = fused.unflatten(0, (-1, 3, d))[:, 1].flatten(0, 1) if name == "gpt_neox" else fused.chunk(3)[1]
        return replace(layer, v_GKD=heads_of(keys, d))

    why = refusal(changed(monkeypatch, name, change))
    assert "ForCausalLM" in why or "GPT2LMHeadModel" in why
    assert "W_V: off by" in why
    assert "W_O" not in why


@pytest.mark.parametrize("name", ["qwen3", "gemma"])
def test_a_head_width_from_the_model_width_is_refused(name, monkeypatch):
    """48 / 4 is not these models' head width, which is 20."""
    monkeypatch.setattr(split, "heads_of", lambda outputs, d: heads_of(outputs, 10))
    model = changed(monkeypatch, name, lambda layer: replace(layer, d_head=10))
    assert "shapes ((2, 8, 4, 20), (2, 4, 8, 8)); expected ((2, 8, 8, 10)" in refusal(model)


@pytest.mark.parametrize("name", ["olmo2", "gemma2"])
def test_a_missing_or_wrong_gain_is_refused(name, monkeypatch):
    model = changed(monkeypatch, name, lambda layer: replace(layer, after=None))
    assert "what attention adds to the stream: off by" in refusal(model)
    monkeypatch.undo()
    model = changed(monkeypatch, name, lambda layer: replace(layer, after=torch.nn.Identity()))
    assert "what attention adds to the stream: off by" in refusal(model)


def test_a_norm_where_there_is_none_is_refused(monkeypatch):
    """Llama's post_attention_layernorm is the norm before its MLP."""
    after = lambda layer: replace(layer, after=layer.block.post_attention_layernorm)  # noqa: E731
    assert "what attention adds to the stream: off by" in refusal(changed(monkeypatch, "llama", after))


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("llama", {"v_GKD": lambda layer: layer.v_GKD.flip(0)}, "W_V"),  # heads read the other group's values
        ("qwen2", {"v_bias_GK": lambda layer: None}, "W_V"),
        ("olmo", {"clip": lambda layer: None}, "W_V"),
        ("granite", {"scale": lambda layer: 1.0}, "what attention adds to the stream"),
    ],
)
def test_wrong_groups_biases_and_scales_are_refused(name, change, part, monkeypatch):
    model = changed(monkeypatch, name, lambda layer: replace(layer, **{k: of_(layer) for k, of_ in change.items()}))
    assert f"{part}: off by" in refusal(model)


def test_scaled_embeddings_and_capped_logits_that_are_not_known_are_refused(monkeypatch):
    model = model_of("granite")
    plain = Model.embed
    monkeypatch.setattr(Model, "embed", lambda self, ids: plain(self, ids) / 3)
    assert "embedding: off by 0.67" in refusal(model)
    monkeypatch.undo()
    model = model_of("gemma2")
    monkeypatch.setattr(Model, "unembed", lambda self, hidden: self.module.lm_head(hidden))
    assert "logits: off by" in refusal(model)


def test_a_block_that_normalises_the_sum_of_stream_and_attention_is_refused():
    """OPT-350m's: no head of it adds anything to a stream."""
    module = of("opt", **(ARCHITECTURES["opt"][1] | {"do_layer_norm_before": False}))
    assert "OPTForCausalLM" in refusal(Model(module, CPU))


def test_attention_that_looks_ahead_or_leaks_is_refused(monkeypatch):
    model = model_of("llama")
    real = selfcheck._watched

    def leaking(*args, **kwargs):
        hidden, seen = real(*args, **kwargs)
        for of_layer in seen:
            of_layer.attn_BHTT[0] = of_layer.attn_BHTT[0].flip(-1) * 0.9
        return hidden, seen

    monkeypatch.setattr(selfcheck, "_watched", leaking)
    why = refusal(model)
    assert "rows of attention sum to 1: off by 0.1" in why
    assert "attention is causal: off by" in why


def test_weights_that_are_not_numbers_are_the_checkpoint_s_fault():
    model = model_of("llama")
    model.module.model.layers[0].self_attn.v_proj.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN"):
        self_check(model)


def test_weights_that_are_all_zero_pass():
    """As some begin training: what is not there adds up too."""
    model = model_of("llama")
    for layer in model.layers:
        layer.output.weight.zero_()
    assert max(self_check(model).values()) < 1e-5


@pytest.mark.parametrize("name", UNSEEN)
def test_attention_that_cannot_be_observed_is_refused_by_name(name, tmp_path):
    AutoConfig.for_model(name, **UNSEEN[name]).save_pretrained(tmp_path)
    with pytest.raises(SihError, match=r"ForCausalLM computes attention by itself.*cannot be observed"):
        shape_of(tmp_path)


def test_no_causal_language_model_and_code_of_one_s_own_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(SihError, match="architecture vit; expected a causal language model"):
        shape_of(tmp_path)
    own = {"model_type": "my_own", "auto_map": {"AutoConfig": "configuration_olmo.OLMoConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "configuration_olmo.py").write_text("raise SystemExit('code from a model was run')")
    with pytest.raises(SihError, match="code of its own, which is never run"):
        shape_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "my_own"}))
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        shape_of(tmp_path)


def test_a_layout_that_nobody_knows_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(layouts, "LAYOUTS", (gpt_neox,))
    with pytest.raises(SihError, match="LlamaForCausalLM: 0 of 3 layers have attention as one of gpt_neox keeps it"):
        _ = model_of("llama").layers


@pytest.mark.parametrize("name", ["gpt2-crfm", "llama-biases", "qwen3", "gemma2", "olmo2"])
def test_a_saved_checkpoint_is_loaded_as_it_was(name, tmp_path):
    """Tied embeddings have one matrix in the file; old GPT-2 files have buffers beside the weights."""
    module = made(name)
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    if module.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    if name == "gpt2-crfm":
        weights |= {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64),
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        }
    module.config.save_pretrained(tmp_path)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    model = load(tmp_path, CPU)
    assert type(model.module) is type(module)
    assert max(self_check(model).values()) < 1e-5
    with torch.no_grad():
        assert torch.allclose(model.unembed(model.hidden(IDS)), module(IDS, use_cache=False).logits, atol=1e-4)
    shape = shape_of(tmp_path)
    assert (shape.layers, shape.heads, shape.width, shape.context) == (3, 4, 48, 64)
    assert (model.n_layers, model.n_heads, model.vocab_size) == (3, 4, shape.vocabulary)

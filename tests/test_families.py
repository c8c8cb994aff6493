"""Sweeps and audits over the loopback Hub, of random weights that lie as those of each family do."""

import json
from pathlib import Path

import pytest
import torch
from conftest import composed, generated_texts, run_at
from hub_server import Hub
from huggingface_hub import constants
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

from sih import sweep
from sih.checkpoints import corpus
from sih.checkpoints.files import Sha256
from sih.checkpoints.schedule import grid_of
from sih.checkpoints.sources import hub_model
from sih.checkpoints.training import tokenizer_of_corpus
from sih.errors import CheckpointError, SihError
from sih.models.hf_olmo import llama_config
from sih.models.loading import load
from sih.models.stored import stored_types
from sih.models.tokenizer import checked_tokenizer
from sih.running.audited import show

FEW = [
    "scores=[induction,loss_reduction]", "scores.induction.sequences=4", "scores.induction.length=8",
    "model.layers=2", "model.heads=2", "model.width=16",
]  # fmt: skip
WORDS = len(corpus.VOCABULARY)
CPU = torch.device("cpu")


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """`swept(hub, *overrides)`: the exit code and the run of a small sweep of that family."""
    monkeypatch.setenv("SIH_CACHE", str(tmp_path / "cache"))

    def sweep_of(hub: Hub, *overrides: str):
        address = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT sets, once, at import
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        kept = [o for o in generated_texts(tmp_path) if not o.startswith("scores.")]
        config = composed(*overrides, *kept, *FEW, "checkpoints.attempts=1")
        return sweep.run(config), run_at(config)

    return sweep_of


def gpt2(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    ids = {"bos_token_id": 256, "eos_token_id": 256}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
                   scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True, **ids)
    ).eval()  # fmt: skip


def crfm(folder: Path, step: int) -> Path:
    """As a branch of stanford-crfm's: .bin, float16 after step 0, GPT-2's two tokenizer files, and what is not for us."""
    module = gpt2(step)
    folder.mkdir(parents=True)
    module.config.save_pretrained(folder)
    weights = module.state_dict() if step == 0 else module.half().state_dict()
    weights |= {
        f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4).to(weights["lm_head.weight"].dtype) for n in range(2)
    }
    torch.save({k: v.clone() for k, v in weights.items()}, folder / "pytorch_model.bin")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    (folder / "vocab.json").write_text(json.dumps({c: n for n, c in enumerate([*letters, "<|endoftext|>"])}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    deep = folder / f"global_step{step}"
    deep.mkdir()
    for file in (deep / "mp_rank_00_model_states.pt", folder / "training_args.bin", folder / "optimizer.pt",
                 folder / "scheduler.pt"):  # fmt: skip
        file.write_bytes(b"\x80never unpickled")
    return folder


def test_a_series_like_crfms(swept, tmp_path):
    steps = (0, 10, 20, 99000, 400000)
    name = "stanford-crfm/battlestar-gpt2-small-x49"
    folders = {f"checkpoint-{step}": crfm(tmp_path / str(step), step) for step in steps}
    with Hub({name: {**folders, "main": folders["checkpoint-99000"]}}) as hub:
        code, run = swept(hub, "model=crfm-gpt2-small", "model.seed=49", "steps=all")
        fetched = {path.rsplit("/", 1)[1] for path in hub.fetched()}
    assert code == 0  # main is another step's, and convicts nobody
    assert run.name == "crfm-gpt2-small-seed49"
    assert run.steps() == list(steps)
    assert fetched == {"config.json", "pytorch_model.bin", "vocab.json", "merges.txt"}
    assert [run.manifest(s)["stored_dtypes"] for s in (0, 10)] == [["float32"], ["float16"]]
    assert run.manifest(10)["dtype"] == "float32"
    assert run.manifest(400000)["tokens"] == 400000 * 524288
    assert run.manifest(20)["revision"] == "checkpoint-20"
    assert run.record.model["licence"] == "Apache-2.0"


def olmo_names(module: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Llama's tensors as OLMo's."""
    w = module.state_dict()
    found = {"wte": w["model.embed_tokens.weight"], "ln_f": w["model.norm.weight"], "ff_out": w["lm_head.weight"]}
    for n in range(module.config.num_hidden_layers):
        at, to = f"model.layers.{n}.", f"blocks.{n}."
        found[f"{to}att_proj"] = torch.cat([w[f"{at}self_attn.{p}_proj.weight"] for p in "qkv"])
        found[f"{to}attn_out"] = w[f"{at}self_attn.o_proj.weight"]
        found[f"{to}ff_proj"] = torch.cat([w[f"{at}mlp.{p}_proj.weight"] for p in ("up", "gate")])
        found[f"{to}ff_out"] = w[f"{at}mlp.down_proj.weight"]
        found[f"{to}attn_norm"] = w[f"{at}input_layernorm.weight"]
        found[f"{to}ff_norm"] = w[f"{at}post_attention_layernorm.weight"]
    return {f"model.transformer.{name}.weight": tensor.clone() for name, tensor in found.items()}


OLMO = {
    "model_type": "hf_olmo", "architectures": ["OLMoForCausalLM"], "activation_type": "swiglu",
    "auto_map": {"AutoConfig": "configuration_olmo.OLMoConfig"}, "block_type": "sequential", "rope": True,
    "alibi": False, "layer_norm_type": "rms", "layer_norm_with_affine": True, "attention_layer_norm": False,
    "include_bias": False, "bias_for_layer_norm": False, "d_model": 16, "n_heads": 2, "n_layers": 2, "mlp_ratio": 8,
    "embedding_size": WORDS, "vocab_size": WORDS, "max_sequence_length": 128, "weight_tying": False,
    "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip


def datadecide(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    module = LlamaForCausalLM(
        LlamaConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                    max_position_embeddings=128, initializer_range=0.3, rms_norm_eps=1e-5)
    )  # fmt: skip
    for name, tensor in module.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    folder.mkdir(parents=True)
    save_file(olmo_names(module), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(OLMO))
    (folder / "configuration_olmo.py").write_text("raise SystemExit('code from a hub was run')")
    tokenizer_of_corpus().save(str(folder / "tokenizer.json"))
    return folder


def test_a_series_like_datadecides(swept, tmp_path):
    folders = {}
    for seed, name in enumerate(("default", "small-aux-2", "small-aux-3")):
        for step in (0, 1250, 2500):
            folders[f"step{step}-seed-{name}"] = datadecide(tmp_path / f"{seed} {step}", 10 * seed + step)
    with Hub({"allenai/DataDecide-c4-60M": {**folders, "main": folders["step2500-seed-default"]}}) as hub:
        code, run = swept(hub, "model=datadecide-60m", "model.recipe=c4", "model.seed=2")
        fetched = {path.rsplit("/", 1)[1] for path in hub.fetched()}
    assert code == 0
    assert run.name == "datadecide-60m-c4-seed2"
    assert run.steps() == [0, 1250, 2500]
    assert {run.manifest(s)["revision"].split("-seed-")[1] for s in run.steps()} == {"small-aux-2"}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json"}
    assert run.manifest(1250)["tokens"] == 1250 * 196608


@pytest.mark.parametrize(
    ("size", "width", "layers", "steps"),
    [("20m", 192, 16, 14584), ("60m", 384, 16, 29042), ("90m", 528, 16, 29901), ("150m", 768, 12, 38157)],
)
def test_datadecides_tokens_per_step_are_those_of_its_ladder(size, width, layers, steps):
    """Batches grow as the parameters to the power 2/3, and training ends at 100 tokens a parameter. `steps` are the
    paper's; parameters are counted from the shape, with one embedding: 16 D^2 of matrices and two norms in a layer."""
    model = composed(f"model=datadecide-{size}").model
    parameters = 50304 * width + layers * (16 * width**2 + 2 * width) + width
    sequences = 32 * round(160 * (parameters / 108e6) ** (2 / 3) / 32)
    assert model.tokens_per_step == sequences * model.context
    assert steps * model.tokens_per_step == pytest.approx(100 * parameters, rel=0.02)  # 150m: 100 * 150 million
    last = grid_of(model.grid)[-1]
    assert last <= steps < last + 1250


def olmo_logits(w: dict[str, torch.Tensor], ids: list[int], heads: int) -> torch.Tensor:
    """OLMo's own definition, position by position: a root-mean-square norm with a gain, rotary halves, SwiGLU."""
    w = {name.removeprefix("model.transformer.").removesuffix(".weight"): t for name, t in w.items()}
    x_TD = w["wte"][ids]
    d_head = x_TD.shape[1] // heads
    angle_TK = torch.outer(torch.arange(len(ids)), 10000.0 ** -(torch.arange(0, d_head, 2) / d_head)).repeat(1, 2)

    def norm(x, gain):
        return gain * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    def turned(x_TK):
        a, b = x_TK.chunk(2, dim=-1)
        return x_TK * angle_TK.cos() + torch.cat([-b, a], dim=-1) * angle_TK.sin()

    for n in range(OLMO["n_layers"]):
        at = f"blocks.{n}."
        q, k, v = (norm(x_TD, w[f"{at}attn_norm"]) @ w[f"{at}att_proj"].T).chunk(3, dim=-1)
        out = []
        for h in range(heads):
            part = slice(h * d_head, (h + 1) * d_head)
            score_TT = turned(q[:, part]) @ turned(k[:, part]).T / d_head**0.5
            score_TT = score_TT.masked_fill(torch.ones_like(score_TT).triu(1).bool(), -torch.inf)
            out.append(score_TT.softmax(-1) @ v[:, part])
        x_TD = x_TD + torch.cat(out, dim=-1) @ w[f"{at}attn_out"].T
        up, gate = (norm(x_TD, w[f"{at}ff_norm"]) @ w[f"{at}ff_proj"].T).chunk(2, dim=-1)  # OLMo's SwiGLU: x, gate
        x_TD = x_TD + (torch.nn.functional.silu(gate) * up) @ w[f"{at}ff_out"].T
    return norm(x_TD, w["ln_f"]) @ w["ff_out"].T


def test_olmos_names_give_what_olmo_computes(tmp_path):
    from safetensors.torch import load_file

    folder = datadecide(tmp_path / "olmo", 3)
    model = load(folder, CPU)
    ids = torch.randint(0, WORDS, (1, 20), generator=torch.Generator().manual_seed(0))
    wanted = olmo_logits(load_file(folder / "model.safetensors"), ids[0].tolist(), OLMO["n_heads"])
    torch.testing.assert_close(model.unembed(model.hidden(ids))[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "other", [{"layer_norm_type": "default"}, {"alibi": True}, {"attention_layer_norm": True}, {"clip_qkv": 8.0},
              {"rope": False}, {"include_bias": True}, {"norm_after": True}],
)  # fmt: skip
def test_an_olmo_that_is_no_llama_is_refused(other):
    with pytest.raises(SihError, match=f"{next(iter(other))}=.*can be read as Llama"):
        llama_config(OLMO | other, Path("folder"))


def test_unknown_tensors_of_an_olmo_are_refused(tmp_path):
    folder = datadecide(tmp_path / "olmo", 3)
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.transformer.blocks.0.q_norm.weight"] = torch.ones(16)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"do not fit LlamaForCausalLM.*q_norm"):
        load(folder, CPU)


def olmo2(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    module = Olmo2ForCausalLM(
        Olmo2Config(vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                    max_position_embeddings=128, initializer_range=0.3, pad_token_id=1, bos_token_id=None,
                    eos_token_id=0)
    )  # fmt: skip
    module.to(torch.bfloat16 if seed else torch.float32).save_pretrained(folder, max_shard_size="20KB")
    tokenizer_of_corpus().save(str(folder / "tokenizer.json"))
    return folder


def test_a_series_like_olmo2s_in_two_repositories(swept, tmp_path, capsys):
    """Steps of both come once, a later stage's never; tokens are counted from the step, not from the label."""
    folders = {step: olmo2(tmp_path / str(step), step) for step in (0, 300, 1000, 2000, 10000)}
    main = {f"stage1-step{s}-tokens{t}B": folders[s] for s, t in ((0, 0), (300, 1), (10000, 21))}
    main |= {"stage2-ingredient1-step300-tokens1B": folders[2000], "main": folders[2000]}
    early = {f"stage1-step{s}-tokens{t}B": folders[s] for s, t in ((1000, 3), (2000, 5), (10000, 21))}
    names = "allenai/OLMo-2-0425-1B", "allenai/OLMo-2-0425-1B-early-training"
    with Hub(dict(zip(names, (main, early), strict=True))) as hub:
        code, run = swept(hub, "model=olmo2-1b", "steps=all")
        model = composed("model=olmo2-1b").model
        audit = hub_model(model, composed().checkpoints, Sha256(), lambda *_: None).audit
    assert code == 0
    assert run.steps() == [0, 300, 1000, 2000, 10000]
    assert [run.manifest(s)["repo"] for s in run.steps()] == [names[0], names[0], names[1], names[1], names[0]]
    assert run.manifest(1000)["tokens"] == 1000 * 2097152
    assert [run.manifest(s)["stored_dtypes"] for s in (0, 300)] == [["float32"], ["bfloat16"]]
    assert list(audit.again) == [10000]
    assert audit.suspect == {}
    capsys.readouterr()
    show(audit, [0], 10**9, Console(width=200), ["something"])
    said = capsys.readouterr().out
    assert f"Also in {names[1]}, with the same weight files: steps 10000" in said
    assert "Known: something" in said


def test_a_repository_with_one_trained_model_and_tags(swept, tmp_path):
    folders = {"v5": olmo2(tmp_path / "5", 5), "v7": olmo2(tmp_path / "7", 7), "main": olmo2(tmp_path / "9", 9)}
    with Hub({"me/mine": folders}) as hub:
        hub.tags = {"v5", "v7"}
        named = ["model=hub", "model.repo=me/mine", "'model.revisions=\"v(?P<step>\\d+)\"'"[1:-1]]
        code, run = swept(hub, *named, "model.main=9")
    assert code == 0
    assert run.name == "mine"
    assert {s: run.manifest(s)["revision"] for s in run.steps()} == {5: "v5", 7: "v7", 9: "main"}


def test_mixed_types_are_read_and_named(tmp_path):
    module = gpt2(1)
    module.transformer.h[1].half()
    module.config.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    assert stored_types([tmp_path / "pytorch_model.bin"]) == ["float16", "float32"]
    loaded = load(tmp_path, CPU)
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


def test_code_in_a_bin_file_is_never_run(tmp_path):
    import os

    gpt2(1).config.save_pretrained(tmp_path)

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'was_run'}",)

    torch.save({"x": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than plain tensors"):
        load(tmp_path, CPU)
    assert not (tmp_path / "was_run").exists()


def test_custom_code_is_refused(tmp_path):
    folder = olmo2(tmp_path / "own", 1)
    config = {"model_type": "my_own", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    with pytest.raises(SihError, match="code of its own, which is never run"):
        load(folder, CPU)
    assert not (tmp_path / "was_run").exists()


def test_a_tokenizer_that_does_not_belong_to_the_weights(tmp_path):
    module = GPT2LMHeadModel(GPT2Config(vocab_size=5000, n_positions=32, n_embd=8, n_layer=1, n_head=1))
    module.save_pretrained(tmp_path)
    tokenizer_of_corpus().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="150 ids for 5000 embedding rows, more than padding explains"):
        checked_tokenizer(tmp_path)

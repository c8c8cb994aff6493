"""Fixtures: a small random model, the real data when it is there, and whole sweeps to look at."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

import sih
from sih.checkpoints import corpus
from sih.checkpoints.files import cache_folder, sha256_of
from sih.checkpoints.training import tokenizer_of_corpus
from sih.config import Config, folder_of
from sih.models import loading
from sih.models.model import Model
from sih.results.run import Run
from sih.texts.datafiles import FILES

# A shell makes what it starts with `&` ignore interrupts, and so would the sweeps that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no test reaches the real Hub
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_NUM_THREADS"] = "1"  # models this small gain nothing from more, and lose much on a busy machine
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _data_folder(name: str) -> Path | None:
    for folder in (os.environ.get("SIH_DATA"), SHARED, cache_folder() / "data"):
        if folder and (Path(folder) / name).is_file():
            return Path(folder)
    return None


def _real(name: str) -> Path:
    folder = _data_folder(name)
    if folder is None:
        pytest.skip(f"{name} is not on this machine; fetch it with: make data")
    file = folder / name
    assert sha256_of(file) == FILES[name].sha256
    return file


@pytest.fixture(scope="session")
def agenda_file() -> Path:
    return _real("agenda-test.tsv")


@pytest.fixture(scope="session")
def treebank_file() -> Path:
    return _real("en_ewt-ud-dev.conllu")


@pytest.fixture(scope="session")
def treebank_test_file() -> Path:
    return _real("en_ewt-ud-test.conllu")


@pytest.fixture(scope="session")
def wikitext_file() -> Path:
    return _real("wikitext2-raw-test.txt")


@pytest.fixture(scope="session")
def pythia_tokenizer_file() -> Path:
    return _real("pythia-tokenizer.json")


@pytest.fixture(scope="session")
def pythia_tokenizer(pythia_tokenizer_file: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(pythia_tokenizer_file))


@pytest.fixture(scope="session")
def corpus_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer_of_corpus())


def random_module(vocab: int, seed: int = 0, layers: int = 2, heads: int = 4, width: int = 32, context: int = 128):
    """A GPT-NeoX with weights large enough that attention and logits are far from uniform."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=context,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXForCausalLM(config).eval()


def write_checkpoint(folder: Path, module: GPTNeoXForCausalLM, tokenizer: Tokenizer | Path) -> Path:
    """One ordinary step{N}/ folder."""
    module.save_pretrained(folder)
    if isinstance(tokenizer, Path):
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory) -> Path:
    """A random checkpoint in the embedded series' vocabulary."""
    folder = tmp_path_factory.mktemp("series") / "step7"
    return write_checkpoint(folder, random_module(len(corpus.VOCABULARY)), tokenizer_of_corpus())


@pytest.fixture
def model(checkpoint_folder: Path) -> Model:
    return loading.load(checkpoint_folder, torch.device("cpu"))


def composed(*overrides: str) -> Config:
    """The configuration that the command line would give."""
    with initialize_config_dir(config_dir=str(sih.CONF), version_base="1.3"):
        found = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    assert isinstance(found, Config)
    return found


# A series small enough to train in seconds, and measurements small enough for every test.
SMALL = [
    "model.train.steps=[0,1,2,4,8]",
    "model.train.width=16",
    "model.train.heads=2",
    "relations.generated.documents=48",
    "relations.per_relation=20",
    "scores.induction.sequences=4",
    "icl.loss.documents=8",
    "icl.few_shot.episodes=4",
    "interventions=none",
    "scores.function_vectors.clean=4",
    "scores.function_vectors.corrupted=4",
    "icl.effects.documents=4",
    "icl.effects.sequences=3",
    "icl.effects.episodes=4",
    "emergence.bootstrap=50",
    "emergence.min_events=5",
    "batch_tokens=1024",
    "tracker.mode=disabled",
    "figures=false",
    "device=cpu",
]
STEPS = [0, 1, 2, 4, 8]
# Enough episodes for a checkpoint to take seconds, in which it can be killed.
LONG = ["icl.few_shot.episodes=200"]


def run_at(config: Config) -> Run:
    """The run of a configuration, as the commands that read it would open it."""
    return Run.open(folder_of(config))


def result_tables(run: Run) -> dict[str, bytes]:
    """Everything that is a result, without the manifests, which name times and hosts."""
    cells = ["*/*/step*/*.parquet", "*/*/*.jsonl", "*/*/*.csv", "*/*/setting.yaml", "*/*/series.json"]
    files = [f for name in (*cells, "emergence*") for f in run.root.glob(name)]
    return {str(f.relative_to(run.root)): f.read_bytes() for f in files}


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small(tmp_path: Path, small_cache: Path, monkeypatch):
    """`small(*overrides)`: a quick configuration whose results go to this test's folder."""
    monkeypatch.setenv("SIH_CACHE", str(small_cache))

    def of(*overrides: str) -> Config:
        chosen = re.search(r"(?:^|\s)scores=\[([^\]]*)\]", " ".join(overrides))
        kept = [o for o in SMALL if not (chosen and o.startswith("scores.")) or o.split(".")[1] in chosen[1]]
        return composed(*kept, f"output={tmp_path / 'runs'}", *overrides)

    return of


def generated_texts(folder: Path) -> list[str]:
    """Options for a quick sweep of any checkpoints in the generated vocabulary, on texts of that language."""
    text, bank = folder / "texts.jsonl", folder / "bank.conllu"
    documents = corpus.documents(1, "test", 8, 96, 0.2, 0.2)
    text.write_text("".join(json.dumps({"text": " ".join(d.words)}) + "\n" for d in documents))
    bank.write_text(generated_treebank())
    kept = [o for o in SMALL if not o.startswith(("model.train", "relations.generated"))]
    return [
        "relations=treebank", f"relations.treebank.paths=[{bank}]", "icl=generated", f"icl.loss.texts={text}",
        f"output={folder / 'runs'}", *kept,
    ]  # fmt: skip


def generated_treebank() -> str:
    """Scenes of the generated language as CoNLL-U."""
    rng = np.random.default_rng(0)
    blocks = []
    for n in range(30):
        a, b = rng.choice(corpus.ADJECTIVES, 2)
        noun, verb, thing = rng.choice(corpus.NOUNS), rng.choice(corpus.VERBS), rng.choice(corpus.THINGS)
        words = [("the", 3, "det"), (a, 3, "amod"), (noun, 4, "nsubj"), (verb, 0, "root"),
                 ("the", 7, "det"), (b, 7, "amod"), (thing, 4, "obj"), (".", 4, "punct")]  # fmt: skip
        lines = [f"{i}\t{w}\t_\t_\t_\t_\t{h}\t{d}\t_\t_" for i, (w, h, d) in enumerate(words, 1)]
        blocks.append(f"# newdoc id = doc{n // 2}\n" + "\n".join(lines) + "\n\n")
    return "".join(blocks)

"""The embedded series: a small GPT-NeoX that sih trains itself, once, on the generated language.

It is kept in the cache folder as ordinary step{N}/ folders. The same recipe on the same machine gives the
same bytes.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from sih import aside, corpus
from sih.checkpoints import Sha256
from sih.checkpoints.local import LocalFolder
from sih.checkpoints.schedule import revision
from sih.config import TrainConfig
from sih.errors import SihError
from sih.quiet import quiet_transformers

# Training loss of a step is reported as progress(step, steps, loss).
Progress = Callable[[int, int, float], None]
THREADS = 2  # fixed, because sums over another number of threads round differently


def recipe(train: TrainConfig, seed: int) -> dict:
    """Everything that the trained bytes depend on, the machine aside."""
    return {
        "train": asdict(train),
        "seed": seed,
        "corpus": hashlib.sha256(Path(corpus.__file__).read_bytes()).hexdigest(),
        "trainer": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def digest(recipe: dict) -> str:
    """12 hex digits that name a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


class TinySeries(LocalFolder):
    """The series of one recipe; trained when it is not in `cache` yet."""

    def __init__(self, train: TrainConfig, seed: int, cache: Path, progress: Progress, hashes: Sha256) -> None:
        written = recipe(train, seed)
        folder = cache / "tiny" / digest(written)
        if not folder.is_dir():
            _train_aside(folder, train, seed, written, progress)
        super().__init__(folder, hashes)


def _train_aside(folder: Path, train: TrainConfig, seed: int, written: dict, progress: Progress) -> None:
    """Train into a folder beside and rename it when it is whole; of two at once, the first one is kept."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.clear_dead(folder.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=aside.prefix(), dir=folder.parent))
    except OSError as error:
        raise SihError(f"the cache folder {folder.parent} cannot be written ({error}); set SIH_CACHE") from None
    try:
        with quiet_transformers():
            _train(unfinished, train, seed, progress)
        (unfinished / "recipe.json").write_text(json.dumps(written, indent=2) + "\n")
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # else another process has finished the same series
                raise
    except OSError as error:
        raise SihError(
            f"the embedded series cannot be written to {folder} ({error}); free room or set SIH_CACHE"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _train(out: Path, train: TrainConfig, seed: int, progress: Progress) -> None:
    last = max(train.steps)
    threads, rng_state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    ids_BT = _training_ids(train, seed, last)
    model = GPTNeoXForCausalLM(_config(train))
    tokenizer = tokenizer_of_corpus()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=train.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    order = torch.Generator().manual_seed(seed)
    try:
        for step in range(last + 1):
            if step in train.steps:
                model.save_pretrained(out / revision(step))
                tokenizer.save(str(out / revision(step) / "tokenizer.json"))
            if step == last:
                break
            for group in optimizer.param_groups:
                group["lr"] = train.learning_rate * _schedule(step, last)
            batch_BT = ids_BT[torch.randint(len(ids_BT), (train.batch,), generator=order)]
            loss = model(batch_BT, labels=batch_BT).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress(step + 1, last, loss.item())
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(rng_state)


def _schedule(step: int, last: int) -> float:
    """Linear warm-up over 50 steps, then a cosine to a tenth: Pythia's form."""
    return min(1.0, (step + 1) / 50) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / last)))


def _config(train: TrainConfig) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=len(corpus.VOCABULARY),
        hidden_size=train.width,
        num_hidden_layers=train.layers,
        num_attention_heads=train.heads,
        intermediate_size=4 * train.width,
        max_position_embeddings=train.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": train.rotary_share},
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def _training_ids(train: TrainConfig, seed: int, last: int) -> torch.Tensor:
    """A third as many documents as training draws: each is seen about three times."""
    count = max(1, train.batch * last // 3)
    drawn = corpus.documents(seed, "train", count, train.context, train.few_shot_lists, train.recitals)
    index = {word: i for i, word in enumerate(corpus.VOCABULARY)}
    return torch.tensor([[index[w] for w in document.words] for document in drawn])


def held_out(train: TrainConfig, seed: int, count: int) -> list[corpus.Document]:
    """`count` documents that training never draws from, of the same kinds and length."""
    return corpus.documents(seed, "held-out", count, train.context, train.few_shot_lists, train.recitals)


def tokenizer_of_corpus() -> Tokenizer:
    """One token a word, in the vocabulary's order."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(corpus.VOCABULARY)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer

"""Training of the embedded series; apart from tiny.py, since torch and transformers take seconds to import."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from sih.checkpoints import corpus
from sih.checkpoints.quiet import quiet_transformers
from sih.checkpoints.schedule import revision
from sih.config import TrainConfig

THREADS = 2  # fixed, because sums over another number of threads round differently


def train_into(folder: Path, train: TrainConfig, seed: int, progress: Callable[[int, int, float], None]) -> None:
    """Write a step{N}/ checkpoint for each of `train.steps`; `progress` is told (step, steps, loss)."""
    with quiet_transformers():
        _train(folder, train, seed, progress)


def _train(out: Path, train: TrainConfig, seed: int, progress: Callable[[int, int, float], None]) -> None:
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
    try:
        for step in range(last + 1):
            if step in train.steps:
                model.save_pretrained(out / revision(step))
                tokenizer.save(str(out / revision(step) / "tokenizer.json"))
            if step == last:
                break
            for group in optimizer.param_groups:
                group["lr"] = train.learning_rate * _schedule(step, last)
            batch_BT = ids_BT[step * train.batch : (step + 1) * train.batch]
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
    """Linear warm-up over 50 steps, then constant; over the last quarter linear to a tenth."""
    return min(1.0, (step + 1) / 50, max(0.1, 0.1 + 0.9 * (last - step) / (last / 4)))


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
        initializer_range=train.initializer_range,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def _training_ids(train: TrainConfig, seed: int, last: int) -> torch.Tensor:
    """As many documents as training reads, (B, T): each is seen once."""
    drawn = corpus.documents(
        seed, "train", max(1, train.batch * last), train.context, train.few_shot_lists, train.recitals
    )
    index = {word: i for i, word in enumerate(corpus.VOCABULARY)}
    return torch.tensor([[index[w] for w in document.words] for document in drawn])


def tokenizer_of_corpus() -> Tokenizer:
    """One token a word, in the vocabulary's order."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(corpus.VOCABULARY)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer

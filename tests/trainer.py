"""`python trainer.py FOLDER RESULTS`: transformers' own Trainer, with a GPT-2 that keeps its last two checkpoints.

It saves every second step, and goes on when the last checkpoint is measured: when RESULTS holds its cell.
"""

import sys
import time
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sih.checkpoints import corpus
from sih.checkpoints.training import tokenizer_of_corpus
from sih.results.cells import folder_name

STEPS, EVERY, KEPT = 8, 2, 2


class UntilMeasured(TrainerCallback):
    def __init__(self, results: Path) -> None:
        self.results = results

    def on_save(self, args, state, control, **kwargs) -> None:
        while not list(self.results.glob(f"*/*/{folder_name(state.global_step)}/manifest.json")):
            time.sleep(0.1)


def train(folder: Path, results: Path) -> None:
    torch.manual_seed(0)
    n = len(corpus.VOCABULARY)
    config = GPT2Config(
        vocab_size=n, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(n, (64, 32))]
    args = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=EVERY, save_total_limit=KEPT, per_device_train_batch_size=2,
        learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of_corpus(), pad_token="<end>")
    Trainer(
        model=GPT2LMHeadModel(config), args=args, train_dataset=rows, processing_class=tokenizer,
        callbacks=[UntilMeasured(results)],
    ).train()  # fmt: skip


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))

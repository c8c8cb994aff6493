"""The relation index over one bare forward pass of the same tokens: a ratio within one process.

    python benchmarks/relation_index.py [shape ...]      # shapes of benchmarks/relation_index.py: SHAPES

The bare pass is transformers' own with sdpa attention and no logits. Both run on the same AGENDA and English-EWT
sentences (SIH_DATA, the cache, or fetched), alternating; the median of the rounds is reported. The slow loop of
tests/oracle.py is timed on a few texts and scaled by tokens.
"""

import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from sih.datafiles import located
from sih.heads import relation_index
from sih.model import Model
from sih.relations import Exclusions, agenda, balanced, treebank

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import oracle
from conftest import composed

SHAPES = {"14m": (6, 4, 128), "70m": (6, 8, 512), "160m": (12, 12, 768), "410m": (24, 16, 1024)}
ROUNDS = 5


def main() -> None:
    config = composed("model=pythia-70m")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(located("pythia-tokenizer.json")))
    found = agenda.read(located("agenda-test.tsv"), config.relations.agenda, tokenizer, 256, 0, Exclusions())
    names = config.relations.treebank.relations
    found += treebank.read(located("en_ewt-ud-dev.conllu"), names, tokenizer, 256, Exclusions())
    examples = balanced(found, 40, 0, Exclusions())
    planned = relation_index.plan(examples, 0, 8192)
    tokens = sum(len(e.token_ids) for e in examples)
    triplets = sum(len(e.triplets) for e in examples)
    print(f"{len(examples)} texts, {tokens} tokens, {triplets} triplets; torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads; median of {ROUNDS}")  # fmt: skip
    print("| shape | bare pass, s | relation index, s | ratio | slow loop / ours |")
    print("|---|---|---|---|---|")
    for shape in sys.argv[1:] or ["14m", "70m", "160m"]:
        layers, heads, width = SHAPES[shape]
        torch.manual_seed(0)
        module = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=50304,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                tie_word_embeddings=False,
            )
        ).eval()
        model = Model(module, torch.device("cpu"))
        bare, ours = [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for batch in planned.batches:
                model.hidden(batch.ids_BT)
            bare.append(time.perf_counter() - started)
            started = time.perf_counter()
            relation_index.measure(model, planned, config.relations.tau)
            ours.append(time.perf_counter() - started)
        a, b = statistics.median(bare), statistics.median(ours)
        loop = slow(module, examples[:2], config.relations.tau) / sum(len(e.token_ids) for e in examples[:2])
        print(f"| {shape} | {a:.2f} | {b:.2f} | {b / a:.2f} | {loop / (b / tokens):.0f} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.2f} GiB")


def slow(module: GPTNeoXForCausalLM, examples: list, tau: float) -> float:
    """Seconds of the loop over the whole vocabulary, both directions."""
    module.requires_grad_(False)
    started = time.perf_counter()
    for direction in relation_index.DIRECTIONS:
        oracle.relation_index(module, examples, tau, direction)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

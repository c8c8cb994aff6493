"""What every score costs relative to bare forward passes of the same tokens, and to other ways of computing it.

    python benchmarks/cost.py [shape ...] [--device cuda] [--rounds 5] [--episodes 4] [--options NAME=VALUE ...]
                              [--skip icl whole slow lens memory growth]

Uses random weights at the shapes of Pythia, GPT-2 and SmolLM2, AGENDA and English-EWT sentences, WikiText-2 pieces and
few-shot episodes (from SIH_DATA, the cache, or fetched). All shapes read the ids of Pythia's tokenizer, so all have its
number of embedding rows. A bare pass is transformers' own with sdpa attention; where scores need logits, it includes
them at those positions. Ours and bare passes alternate in one process; prints medians of the rounds. Times are
processor time on a CPU (the machine may have other work), else wall time; OMP_NUM_THREADS=1 keeps waiting threads out.
With glibc, set MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000, so that freed memory stays in the process:
otherwise chance decides which passes get it from the kernel again, page by page, at up to 7 % of their time.
"""

import argparse
import itertools
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from drawn import VOCABULARY, Inputs, drawn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from sih.models.loading import load
from sih.models.model import Model
from sih.results.cells import Cells
from sih.scores import asking, events, few_shot, induction, layout, loss_reduction, relation_index

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import oracle
from conftest import composed
from lens import hooked

SHAPES = {
    "14m": (6, 4, 128), "31m": (6, 8, 256), "70m": (6, 8, 512), "160m": (12, 12, 768), "410m": (24, 16, 1024),
    "1b": (16, 8, 2048), "1.4b": (24, 16, 2048),
}  # fmt: skip
OPTIONS = [
    "model=pythia-70m",
    "scores=[relation_index,induction,loss_reduction,few_shot]",
    "relations.per_relation=20",
    "scores.induction.sequences=8",
    "icl.loss.documents=5",
]
BATCH_TOKENS = 8192


def neox(layers: int, heads: int, width: int) -> PreTrainedConfig:
    return GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, tie_word_embeddings=False,
    )  # fmt: skip


# Shapes of other layouts: fused and transposed weights; grouped keys and values, and a matrix for each.
OTHERS = {
    "gpt2-small": GPT2Config(vocab_size=VOCABULARY),
    "smollm2-135m": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, tie_word_embeddings=True,
    ),
}  # fmt: skip


def config_of(shape: str) -> PreTrainedConfig:
    return OTHERS[shape] if shape in OTHERS else neox(*SHAPES[shape])


def made(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def inputs_of(episodes: int = 4, options: Sequence[str] = ()) -> Inputs:
    return drawn(composed(*OPTIONS, f"icl.few_shot.episodes={episodes}", *options))


def plan_of(inputs: Inputs) -> layout.Plan:
    return inputs.of_score["relation_index"].plan(BATCH_TOKENS)


def taus_of(inputs: Inputs) -> list[float]:
    return inputs.scores["relation_index"].taus


def timed(run: Callable[[], object], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def ratio(ours: Callable, bare: Callable, rounds: int, device: torch.device) -> tuple[float, float]:
    """Median times of ours and bare, alternating, after one warm-up round."""
    times = [(timed(ours, device), timed(bare, device)) for _ in range(rounds + 1)][1:]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def bare_relations(model: Model, inputs: Inputs) -> None:
    for batch in plan_of(inputs).batches:
        model.hidden(batch.ids_BT)


def bare_induction(model: Model, inputs: Inputs) -> None:
    ids_BT = inputs.random_tokens.repeated_BT
    for chunk_BT in ids_BT.split(max(1, BATCH_TOKENS // ids_BT.shape[1])):
        model.hidden(chunk_BT)


def bare_icl(model: Model, inputs: Inputs) -> None:
    """The forward passes, and the logits where a loss or a label is read; nothing is scored."""
    for ids_BT, positions in inputs.loss_passes:
        for chunk_BT in ids_BT.split(max(1, BATCH_TOKENS // ids_BT.shape[1])):
            for hidden_PD in model.hidden(chunk_BT)[:, positions]:
                model.unembed(hidden_PD)
    for batch in asking.batches(inputs.episodes, BATCH_TOKENS):
        hidden_PD = model.hidden(batch.ids_BT)[batch.row_P.to(model.device), batch.position_P.to(model.device)]
        for hidden in hidden_PD.split(asking.AT_ONCE):
            model.unembed(hidden)


def head_scores(model: Model, inputs: Inputs) -> None:
    events.measure(model, plan_of(inputs), taus_of(inputs))
    induction.attention_scores(model, inputs.random_tokens, BATCH_TOKENS)
    induction.copying_score(model, inputs.random_tokens)


def icl_scores(model: Model, inputs: Inputs) -> None:
    for ids_BT, positions in inputs.loss_passes:
        loss_reduction.token_losses(model, ids_BT, positions, BATCH_TOKENS)
    few_shot.answer(model, inputs.episodes, BATCH_TOKENS)


def whole(folder: Path, inputs: Inputs, device: torch.device, out: Path) -> None:
    """Load a checkpoint, measure every score, and keep its cells."""
    model = load(folder, device)
    for name, score in inputs.scores.items():
        cells = Cells(out / name / "key")
        cells.root.mkdir(parents=True)
        cells.write(0, score.measure(model, inputs.of_score[name], BATCH_TOKENS), {})


def through_lens(lens, texts: list) -> None:
    """The relation index (argmax, current) as one would write it with `run_with_cache`.

    One text at a time, over the whole vocabulary, with one product for all positions of a head.
    """
    with torch.no_grad():
        for example in texts:
            ids = torch.tensor([example.token_ids])
            _, cache = lens.run_with_cache(ids)
            for layer in range(lens.cfg.n_layers):
                pattern_HTT = cache["pattern", layer][0]
                for head in range(lens.cfg.n_heads):
                    ov_TD = lens.W_E[ids[0]] @ lens.W_V[layer, head] @ lens.W_O[layer, head]
                    p_TV = torch.softmax(ov_TD @ lens.W_U, dim=-1)
                    for triplet in example.triplets:
                        for s, o in ((triplet.subject, triplet.object), (triplet.object, triplet.subject)):
                            for j in range(max(s, o), ids.shape[1]):
                                if int(pattern_HTT[head, j, : j + 1].argmax()) == s:
                                    seen = ids[0, : j + 1].unique()
                                    q = (p_TV[j, seen] - p_TV[j, seen].mean()).clamp_min(0)
                                    _ = q[seen == ids[0, o]] / q.sum()


def slow(module: PreTrainedModel, texts: list, taus: list[float]) -> None:
    """The loop of tests/oracle.py; its contextual variant would repeat the whole pass for every event."""
    kept = oracle.output_probabilities
    oracle.output_probabilities = lambda *_: torch.full((VOCABULARY,), 1 / VOCABULARY)
    for direction in layout.DIRECTIONS:
        oracle.relation_index(module, texts, taus, direction, lambda *_: (None, None))
    oracle.output_probabilities = kept


def peak(shape: str, of: tuple[int, Sequence[str]], scored: bool, out) -> None:
    """Put the peak memory of this fresh process, GiB, into the queue `out`; `of`: as for `inputs_of`."""
    inputs, model = inputs_of(*of), Model(made(config_of(shape)), torch.device("cpu"))
    for run in (head_scores, icl_scores) if scored else (bare_relations, bare_induction, bare_icl):
        run(model, inputs)
    out.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def peaks(shape: str, of: tuple[int, Sequence[str]]) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    found = []
    for scored in (True, False):
        out = context.Queue()
        process = context.Process(target=peak, args=(shape, of, scored, out))
        process.start()
        found.append(out.get())
        process.join()
    return found[0], found[1]


def beside_bare(model: Model, inputs: Inputs, rounds: int, device: torch.device) -> tuple[float, float]:
    """Times of the relation index as Ren defines it (x_j the current token), and of the bare pass."""
    return ratio(
        lambda: events.measure(model, plan_of(inputs), taus_of(inputs), ("current",)),
        lambda: bare_relations(model, inputs),
        rounds,
        device,
    )


def growth(inputs: Inputs, device: torch.device) -> None:
    """Print the seconds of the relation index by texts, and by layers x heads."""
    model = Model(made(neox(6, 8, 256)).to(device), device)
    print("\n| texts | tokens | relation index, s | per 1,000 tokens |\n|---|---|---|---|")
    for share in (4, 2, 1):
        fewer = relation_index.Inputs(inputs.examples[::share], inputs.of_score["relation_index"].seed)
        part = replace(inputs, of_score={**inputs.of_score, "relation_index": fewer})
        tokens = part.tokens()["relation_index"]
        took, _ = beside_bare(model, part, 3, device)
        print(f"| {len(part.examples)} | {tokens} | {took:.2f} | {1000 * took / tokens:.3f} |", flush=True)
    print("\n| layers x heads | relation index, s | per head |\n|---|---|---|")
    for layers, heads in ((6, 8), (12, 8), (12, 16), (24, 16)):
        model = Model(made(neox(layers, heads, 32 * heads)).to(device), device)
        took, bare = beside_bare(model, inputs, 3, device)
        took -= bare
        print(
            f"| {layers} x {heads} | {took:.2f} beyond the pass | {1000 * took / layers / heads:.1f} ms |", flush=True
        )


def ratio_of_whole(
    module: PreTrainedModel, model: Model, inputs: Inputs, rounds: int, device: torch.device
) -> tuple[float, float]:
    """Times of loading, measuring and writing one checkpoint, and of all its bare passes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "step0"
        module.save_pretrained(folder)
        outs = (Path(scratch) / f"out{n}" for n in itertools.count())
        return ratio(
            lambda: whole(folder, inputs, device, next(outs)),
            lambda: (bare_relations(model, inputs), bare_induction(model, inputs), bare_icl(model, inputs)),
            rounds,
            device,
        )


def row(
    shape: str, inputs: Inputs, of: tuple[int, Sequence[str]], device: torch.device, rounds: int, skip: list[str]
) -> list[str]:
    """The table's cells of one shape; `of`: what the inputs were drawn with, see `inputs_of`."""
    module = made(config_of(shape)).to(device)
    model = Model(module, device)
    relations, bare = beside_bare(model, inputs, rounds, device)
    heads, bare_heads = ratio(
        lambda: head_scores(model, inputs),
        lambda: (bare_relations(model, inputs), bare_induction(model, inputs)),
        rounds,
        device,
    )
    cells = [f"{bare:.2f}", f"{relations / bare:.2f}", f"{heads / bare_heads:.2f}"]
    if "icl" in skip:
        cells.append("")
    else:
        icl, bare_of_icl = ratio(lambda: icl_scores(model, inputs), lambda: bare_icl(model, inputs), rounds, device)
        cells.append(f"{icl / bare_of_icl:.2f}")
    if "whole" in skip:
        cells.append("")
    else:
        everything, bare_of_all = ratio_of_whole(module, model, inputs, rounds, device)
        cells.append(f"{everything / bare_of_all:.2f}")
    few = inputs.examples[:: len(inputs.examples) // 8]
    few_tokens, all_tokens = (sum(len(e.token_ids) for e in texts) for texts in (few, inputs.examples))
    ours = relations / all_tokens * few_tokens
    module = module.cpu()
    cells.append("" if "slow" in skip else f"{timed(lambda: slow(module, few, taus_of(inputs)), device) / ours:.0f}")
    lens = None if "lens" in skip else hooked(module)
    cells.append("" if lens is None else f"{timed(lambda: through_lens(lens, few), device) / ours:.0f}")
    if "memory" in skip:
        return [*cells, ""]
    scored, unscored = peaks(shape, of)
    return [*cells, f"{scored / unscored:.2f} ({scored:.1f} GiB)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["14m", "70m", "160m"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=4, help="few-shot episodes of each task")
    parser.add_argument("--options", nargs="*", default=[], help="of python -m sih.sweep, for other sizes of inputs")
    parser.add_argument("--skip", nargs="*", default=[], choices=["icl", "whole", "slow", "lens", "memory", "growth"])
    args = parser.parse_args()
    device = torch.device(args.device)
    of = (args.episodes, args.options)
    inputs = inputs_of(*of)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, CPU"
    print(f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}, float32, medians of {args.rounds}")  # fmt: skip
    tokens = inputs.tokens()
    print(f"{len(inputs.examples)} texts with {sum(len(e.triplets) for e in inputs.examples)} triplets, "
          f"{tokens['relation_index']} tokens; {len(inputs.episodes)} episodes of {tokens['few_shot']} tokens; "
          f"{tokens['loss_reduction']} tokens for the loss, {tokens['induction']} for induction")  # fmt: skip
    print("| shape | bare, s | relation index | all head scores | all ICL scores | whole checkpoint | slow loop / ours "
          "| TransformerLens / ours | peak memory |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for shape in args.shapes:
        print(f"| {shape} | {' | '.join(row(shape, inputs, of, device, args.rounds, args.skip))} |", flush=True)
    if "growth" not in args.skip:
        growth(inputs, device)


if __name__ == "__main__":
    main()

"""What interventions cost, relative to bare forward passes of the same inputs; random weights at Pythia's shapes.

    python benchmarks/interventions.py [shape ...] [--device cuda] [--rounds 3] [--documents 2] [--episodes 1]

Times are processor time on a CPU (the machine may have other work), else wall time. Bare passes read the same logits.
"""

import argparse
import itertools
import statistics

import torch
from cost import BATCH_TOKENS, composed, config_of, made, timed
from drawn import VOCABULARY, drawn

from sih.models import replacing
from sih.models.model import Model
from sih.scores import outcomes
from sih.scores.attribution import attributions
from sih.scores.dual_route import DualRoute, Prompt
from sih.scores.function_vectors import indirect_effects
from sih.scores.knock_outs import knocked_out
from sih.scores.outcomes import Inputs, Reading


def bare(model: Model, readings: list[Reading], batch_tokens: int = BATCH_TOKENS) -> None:
    with torch.inference_mode():
        for reading in readings:
            for batch in reading.batches(batch_tokens):
                outcomes.read(model, batch, model.hidden(batch.ids_BT))


def bare_from(model: Model, inputs: Inputs, first: int) -> float:
    """Seconds of passes over the kept streams from a layer on, with nothing replaced."""
    found = 0.0
    with torch.inference_mode():
        for reading in inputs.readings:
            for batch in reading.batches(BATCH_TOKENS):
                with replacing.streams_kept(model, [first]) as streams:
                    model.hidden(batch.ids_BT)
                with replacing.begun_at(model, first, streams[first]):
                    run = lambda batch=batch: outcomes.read(model, batch, model.hidden(batch.ids_BT))  # noqa: E731
                    found += timed(run, model.device)
    return found


def linear(model: Model, inputs: Inputs, mean_LHK: torch.Tensor) -> None:
    for reading in inputs.by_gradient:
        attributions(model, reading, mean_LHK, BATCH_TOKENS)


def exact(model: Model, inputs: Inputs, mean_LHK: torch.Tensor, sets: list[tuple]) -> None:
    for reading in inputs.readings:
        knocked_out(model, reading, sets, "mean", mean_LHK, inputs.reference_BT, BATCH_TOKENS)


def of_copying(score: DualRoute, model: Model, prompts: list[Prompt]) -> float:
    """Token and concept copying of every head over bare passes of its prompts with logits where it reads them."""

    def alone() -> None:
        with torch.inference_mode():
            for _, alike in itertools.groupby(sorted(prompts, key=lambda p: len(p.clean)), lambda p: len(p.clean)):
                for ids in zip(*((p.clean, p.corrupted) for p in alike), strict=True):
                    model.unembed(model.hidden(torch.tensor(ids))[:, -2:])

    bare = timed(alone, model.device)
    return timed(lambda: score.measure(model, prompts, BATCH_TOKENS), model.device) / bare


def ratios(
    model: Model, inputs: Inputs, prompts: list[tuple[str, tuple[int, ...], int]], rounds: int
) -> dict[str, list[float]]:
    """Alternating rounds: attribution, knock-outs that begin at each third of the layers, function vectors."""
    mean_LHK = replacing.mean_outputs(model, inputs.reference_BT[:1], BATCH_TOKENS)
    layers, found = model.n_layers, {}
    width = len(prompts[0][1])
    ids_BT = torch.tensor([ids for _, ids, _ in prompts if len(ids) == width][:2])
    answer_B = torch.tensor([answer for _, ids, answer in prompts if len(ids) == width][:2])
    heads = layers * model.n_heads

    def slow() -> None:
        for layer in range(layers):
            with replacing.replaced(model, [(layer, 0)], mean_LHK, torch.full((len(ids_BT),), width - 1)):
                model.unembed(model.hidden(ids_BT)[:, -1])

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(rounds):
        once = timed(lambda: bare(model, inputs.readings), model.device)
        add("bare pass, s", once)
        graded = timed(lambda: bare(model, inputs.by_gradient), model.device)
        add("attribution / its bare passes", timed(lambda: linear(model, inputs, mean_LHK), model.device) / graded)
        nothing = timed(lambda: exact(model, inputs, mean_LHK, []), model.device)
        for first in sorted({0, layers // 3, 2 * layers // 3}):
            sets = [((first, h),) for h in range(3)]
            of_sets = timed(lambda sets=sets: exact(model, inputs, mean_LHK, sets), model.device) - nothing
            add(f"set from layer {first} / bare pass", of_sets / 3 / once)
            add(f"set from layer {first} / bare pass from there on", of_sets / 3 / bare_from(model, inputs, first))
        fast = timed(lambda: indirect_effects(model, ids_BT, answer_B, mean_LHK), model.device)
        add("function vectors, a pass for each head / ours", timed(slow, model.device) / layers * heads / fast)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=["70m", "160m"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=1)
    chosen = parser.parse_args()
    options = [
        f"icl.effects.documents={chosen.documents}", f"icl.effects.episodes={chosen.episodes}",
        "icl.effects.sequences=4", "scores.function_vectors.clean=2", "scores.function_vectors.corrupted=2",
    ]  # fmt: skip
    drawn_ = drawn(composed("model=pythia-70m", *options))
    inputs = drawn_.of_score["attribution"]
    prompts = drawn_.of_score["function_vectors"][0].corrupted
    tokens = sum(r.ids_BT.numel() for r in inputs.readings)
    print(f"{tokens:,} tokens, vocabulary {VOCABULARY}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in chosen.shapes:
        device = torch.device(chosen.device)
        model = Model(made(config_of(name)).to(device), device)
        bare(model, inputs.readings)
        found = ratios(model, inputs, prompts, chosen.rounds)
        copying = drawn_.scores["dual_route"], model, drawn_.of_score["dual_route"]
        found["token and concept copying / its bare passes"] = [of_copying(*copying) for _ in range(chosen.rounds)]
        for what, values in found.items():
            print(
                f"{name:5} {what:55} {statistics.median(values):8.2f}   {min(values):.2f}-{max(values):.2f}", flush=True
            )


if __name__ == "__main__":
    main()

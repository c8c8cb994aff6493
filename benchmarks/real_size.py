"""A store of the main use's size, made without the model: what follows measuring costs, and whether it tells the truth.

    python benchmarks/real_size.py make 410m [--output /tmp/real]      also 12b, tiny, or LAYERSxHEADS
    python benchmarks/real_size.py told /tmp/real/pythia-410m          onsets that were put in, against those told
    python benchmarks/real_size.py cost /tmp/real/pythia-410m          time and peak memory of what follows measuring
    python benchmarks/real_size.py published /tmp/real/pythia-410m     what a loopback W&B receives, against the store

`make` measures one checkpoint of a small random model, with all defaults and the real texts (`make data`). It tiles
that model's heads over the wanted shape at each of Pythia's 154 steps. A tenth of the heads rise in each score, at
onsets of their own, and so do the headline scores of in-context learning; NAME.put_in.json beside the run has them.
Which tables and columns that concerns is read from the scores' own descriptions.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sih.checkpoints.schedule import PYTHIA_STEPS, choose, tokens_of
from sih.results.run import Run
from sih.scores import HeadMap, Series
from sih.texts.datafiles import located
from sih.tracker.contents import ALL, metric

SHAPES = {"tiny": (2, 4), "70m": (6, 8), "160m": (12, 12), "410m": (24, 16), "2.8b": (32, 32), "12b": (36, 40)}
RISING = 0.1  # share of the heads that rise
OCTAVES = (8.0, 14.0)  # between which the onsets lie: steps 255 to 16,383
WIDTH = 0.35  # of the logistic rise, octaves
TOKENS = 2_097_152  # a step, as Pythia has them
COMMANDS = {  # in the order in which a sweep makes them; what each needs is made by those before it
    "correlate": ["correlate", "figures=false"],
    "figures and report": ["report"],
    "publish": ["publish"],
}


def measured_once(folder: Path) -> Run:
    """A run of one checkpoint of a small random model, with every default but the model."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from conftest import composed, random_module, write_checkpoint

    from sih import sweep

    series = folder / "pythia"
    module = random_module(50304, layers=2, heads=4, width=32, context=2048)
    write_checkpoint(series / "step0", module, located("pythia-tokenizer.json"))
    start = 'model.document_start="<|endoftext|>"'
    options = ["model=local", f"model.path={series}", start, f"output={folder / 'runs'}", "tracker=disabled"]
    sweep.run(composed(*options, "figures=false", "device=cpu"))
    return Run.open(folder / "runs" / "pythia")


class Store:
    """The wanted run: one measured checkpoint, tiled over heads and steps."""

    def __init__(
        self, measured: Run, root: Path, shape: tuple[int, int], steps: list[int], seed: int, gaps: float
    ) -> None:
        self.measured, self.shape, self.steps, self.seed, self.gaps = measured, shape, steps, seed, gaps
        self.heads = shape[0] * shape[1]
        record = replace(
            measured.record,
            model={**measured.record.model, "name": root.name, "source": "hub", "repo": f"EleutherAI/{root.name}",
                   "tokens_per_step": TOKENS},
            weights=f"hub EleutherAI/{root.name}", offered=list(steps), steps=list(steps),
        )  # fmt: skip
        self.run = Run(root, record)
        self.put_in = {score: self._drawn(score, description) for score, description in measured.descriptions().items()}
        self.tables = {
            score: {t: _tiled(pq.read_table(cells.table_file(0, t)), self.heads, shape[1])
                    for t in cells.manifest(0)["tables_sha256"]}
            for score, cells in measured.scores.items()
        }  # fmt: skip

    def _drawn(self, score: str, description: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
        """The rises of a score, by head or by series: onset (octaves), and size (share of the scale)."""
        rng = np.random.default_rng([self.seed, *score.encode()])
        specs = [Series(**s) for s in description["series"]]
        found: dict[str, dict[str, list[float]]] = {"heads": {}, "series": {}}
        if any(s.kind == "heads" for s in specs):
            for h in sorted(rng.choice(self.heads, max(1, round(RISING * self.heads)), replace=False).tolist()):
                found["heads"][f"L{h // self.shape[1]}H{h % self.shape[1]}"] = _rise(rng)
        for name in dict.fromkeys(s.family or s.name for s in specs if s.kind == "icl" and s.headline):
            found["series"][name] = _rise(rng)
        return found

    def begin(self) -> None:
        """The folders of all scores, and run.yaml."""
        for score, cells in self.run.scores.items():
            old = self.measured.scores[score]
            files = [f for f in old.root.iterdir() if f.is_file() and f.name not in ("setting.yaml", "series.json")]
            cells.begin(old.setting, {f.name: f.read_text(encoding="utf-8") for f in files})
            cells.describe(old.description() or {})
        self.run.write_record()

    def write(self, step: int) -> None:
        """All cells of one step."""
        for score, tables in self.tables.items():
            old = self.measured.scores[score].manifest(0)
            weights = {"model.safetensors": f"{step:064x}"}
            manifest = {
                **{k: v for k, v in old.items() if k != "tables_sha256"},
                "model": self.run.name, "step": step, "tokens": tokens_of(step, TOKENS), "revision": f"step{step}",
                "weights_sha256": weights, "shape": {"layers": self.shape[0], "heads": self.shape[1]},
                "seconds": {"load": 2.0, "measure": 30.0},
            }  # fmt: skip
            self.run.scores[score].write(step, self.at(score, tables, step), manifest)

    def at(self, score: str, tables: dict[str, pa.Table], step: int) -> dict[str, pa.Table]:
        """A score's tables at one step: what was measured, with this step's jitter and what has risen by then."""
        description = self.measured.descriptions()[score]
        specs = [Series(**s) for s in description["series"]]
        rng = np.random.default_rng([self.seed, step, *score.encode()])
        up_H = np.zeros(self.heads)
        for name, rise in self.put_in[score]["heads"].items():
            layer, head = map(int, name[1:].split("H"))
            up_H[layer * self.shape[1] + head] = _risen(rise, step)
        jitter_H = rng.normal(0, 0.01, self.heads)
        raised = {name: _Raised(table, self.shape[1], rng) for name, table in tables.items()}
        done: set[tuple[str, str]] = set()
        for spec in (s for s in specs if s.kind == "heads"):
            pairs = [(spec.value, spec.count), *((own, count) for _, own, count in spec.nulls.values())]
            for column, count in pairs:
                if (spec.table, column) not in done:
                    done.add((spec.table, column))
                    raised[spec.table].lift_heads(column, count, up_H + jitter_H)
        for wanted in (HeadMap(**m) for m in description["maps"]):
            if wanted.picture and (wanted.table, wanted.total[0]) not in done:
                done.add((wanted.table, wanted.total[0]))
                raised[wanted.table].lift_heads(wanted.total[0], None, up_H + jitter_H)
        for spec in (s for s in specs if s.kind == "icl" and s.headline):
            rise = self.put_in[score]["series"][spec.family or spec.name]
            raised[spec.table].lift(spec, _risen(rise, step))
        counted = {s.table for s in specs if s.kind == "heads" and s.count is not None}
        seen_H = rng.uniform(size=self.heads) >= self.gaps
        return {name: r.table(seen_H if name in counted else None) for name, r in raised.items()}


class _Raised:
    """A table whose columns are raised, some of them, at one step."""

    def __init__(self, table: pa.Table, width: int, rng: np.random.Generator) -> None:
        self.whole, self.rng, self.new = table, rng, dict[str, np.ndarray]()
        if "layer" in table.column_names:
            layer, head = (table[c].to_numpy().astype(int) for c in ("layer", "head"))
            self.head_R = layer * width + head

    def lift_heads(self, column: str, count: str | None, up_H: np.ndarray) -> None:
        """Add each head's rise to its rows; with a count, to each of the counted events. Rows scatter by a tenth."""
        old = self.whole[column].to_numpy().astype(np.float32)
        most = np.float32(1) if count is None else self.whole[count].to_numpy().astype(np.float32)
        up_R = up_H.astype(np.float32)[self.head_R]
        if len(old) > 10 * len(up_H):  # documents
            noise_R = self.rng.standard_normal(len(old), dtype=np.float32)
            up_R, old = up_R * (1 + np.float32(0.2) * noise_R), old * (1 + np.float32(0.1) * noise_R)
        self.new[column] = np.where(np.isnan(old), old, np.clip(old + most * up_R, 0, most))

    def lift(self, spec: Series, up: float) -> None:
        """Raise a score of in-context learning: answers turn right one by one, other values by up to a unit."""
        if spec.value not in self.new:
            self.new[spec.value] = self.whole[spec.value].to_numpy().astype(float)
        mine = np.ones(len(self.whole), dtype=bool)
        for column, values in spec.where.items():
            mine &= np.asarray(pc.is_in(self.whole[column], pa.array(list(values))))
        value = self.new[spec.value]
        if spec.unit == "nats":
            value[mine] += spec.sign * up + self.rng.normal(0, 0.01)
        else:
            lucky_R = np.random.default_rng(list(spec.name.encode())).uniform(size=len(value))
            value[mine & (lucky_R < up)] = 1

    def table(self, seen_H: np.ndarray | None) -> pa.Table:
        """The table, with its own types; with `seen_H`, only the rows of these heads."""
        table = self.whole
        for name, values in self.new.items():
            place = table.schema.get_field_index(name)
            field = table.schema.field(place)
            table = table.set_column(place, field, pa.array(values.astype(field.type.to_pandas_dtype())))
        return table if seen_H is None else table.filter(pa.array(seen_H[self.head_R]))


def _tiled(table: pa.Table, heads: int, width: int) -> pa.Table:
    """The rows of 8 measured heads repeated for `heads` heads of `width` a layer, in the order in which they stood."""
    if "layer" not in table.column_names:
        return table
    layer, head = (table[c].to_numpy().astype(int) for c in ("layer", "head"))
    code_R = layer * 4 + head
    block_R = np.cumsum(np.diff(code_R, prepend=code_R[:1]) < 0)
    rows = [np.flatnonzero(code_R == h % 8) for h in range(heads)]
    target = np.repeat(np.arange(heads), list(map(len, rows)))
    source = np.concatenate(rows)
    order = np.lexsort((target, block_R[source]))
    source, target = source[order], target[order]
    found = table.take(pa.array(source))
    for name, values in (("layer", target // width), ("head", target % width)):
        place = found.schema.get_field_index(name)
        kind = found.schema.field(place)
        found = found.set_column(place, kind, pa.array(values.astype(kind.type.to_pandas_dtype())))
    return found.combine_chunks()


def _rise(rng: np.random.Generator) -> list[float]:
    return [float(rng.uniform(*OCTAVES)), float(rng.uniform(0.2, 0.6))]


def _risen(rise: list[float], step: int) -> float:
    """How much of a rise is there at a step."""
    onset, size = rise
    return size / (1 + np.exp(-(np.log2(step + 1) - onset) / WIDTH))


_STORE: Store


def _write(step: int) -> None:
    _STORE.write(step)


def make(name: str, output: Path, schedule: str, seed: int, processes: int, gaps: float) -> Path:
    """Write the run, and beside it what was put in; returns the run's folder."""
    global _STORE
    shape = SHAPES[name] if name in SHAPES else tuple(map(int, name.split("x")))
    steps = choose(schedule, list(PYTHIA_STEPS))
    root = output / (f"pythia-{name}" if schedule == "all" else f"pythia-{name}-{schedule}")
    shutil.rmtree(root, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        measured = measured_once(Path(folder))
        print(f"measured one checkpoint in {time.perf_counter() - started:.0f} s")
        started = time.perf_counter()
        _STORE = Store(measured, root, (shape[0], shape[1]), steps, seed, gaps)
        _STORE.begin()
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            pool.map(_write, steps, chunksize=1)
    put_in = {
        score: {what: {n: {"step": 2**onset - 1, "size": size} for n, (onset, size) in rises.items()}
                for what, rises in of_score.items()}
        for score, of_score in _STORE.put_in.items()
    }  # fmt: skip
    (output / f"{root.name}.put_in.json").write_text(json.dumps(put_in, indent=1) + "\n")
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
    print(f"{root}: {shape[0]} x {shape[1]} heads, {len(steps)} steps, {size / 1e6:,.0f} MB, "
          f"{time.perf_counter() - started:.0f} s")  # fmt: skip
    return root


def told(root: Path) -> None:
    """Print, for every score, which of the rises that were put in were told, and how far off their onsets are."""
    put_in = json.loads((root.parent / f"{root.name}.put_in.json").read_text())
    emergence = json.loads((root / "emergence.json").read_text())
    described = Run.open(root).descriptions()
    score_of = {s["name"]: score for score, found in described.items() for s in found["series"]}
    print("| series | heads put in | told | of them put in | median error, octaves | largest |")
    print("|---|---|---|---|---|---|")
    for row in emergence["heads"]:
        given = put_in[score_of[row["series"]]]["heads"]
        step_of = dict(zip(row["emerged"], row["t50_step"], strict=True))
        off = [abs(np.log2((s + 1) / (given[h]["step"] + 1))) for h, s in step_of.items() if h in given]
        ends = f"{np.median(off):.2f} | {max(off):.2f}" if off else "- | -"
        print(f"| {row['series']} | {len(given)} | {len(step_of)} | {len(off)} | {ends} |")
    print("\n| series | put in | told | 95 % interval |\n|---|---|---|---|")
    for row in emergence["series"]:
        given = {name: r for score in put_in.values() for name, r in score["series"].items()}
        if row["series"] in given:
            ends = [2 ** row[f"ci_jump_{e}_log2"] - 1 for e in ("lo", "hi")] if row["emerged"] else None
            when = f"{row['t50_step']:,.0f} | {ends[0]:,.0f} to {ends[1]:,.0f}" if ends else "no onset | -"
            print(f"| {row['series']} | {given[row['series']]['step']:,.0f} | {when} |")


def cost(root: Path, repeats: int, only: list[str]) -> None:
    """Print wall time, processor time and peak memory of each command, the median of `repeats`, each from nothing."""
    print("| command | wall, s | processor, s | peak memory, GB | written, MB |\n|---|---|---|---|---|")
    for name, (command, *options) in COMMANDS.items():
        if only and command not in only:
            continue
        found = []
        for _ in range(repeats):
            _forget(root, command)
            before = _size(root)
            started = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, "-m", f"sih.{command}", f"run={root}", *options], stdout=subprocess.DEVNULL
            )
            _, status, used = os.wait4(child.pid, 0)
            if status:
                raise SystemExit(f"{command} failed")
            wall = time.perf_counter() - started
            found.append((wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6, (_size(root) - before) / 1e6))
        wall, cpu, memory, written = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {memory:.2f} | {written:.1f} |", flush=True)


def published(root: Path) -> None:
    """Publish twice to a loopback W&B; compare every number and file that it received with those of the store."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from wandb_server import Wandb

    run = Run.open(root)
    uploaded = []
    with Wandb() as backend, tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"WANDB_BASE_URL": backend.url, "WANDB_API_KEY": Wandb.key, "HOME": home}
        command = [sys.executable, "-m", "sih.publish", f"run={root}", "tracker=online", "force=true"]
        for _ in range(2):
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            uploaded.append(sum(len(f) for a in backend.artifacts.values() for f in a["files"].values()) / 1e6)
    shown = list(backend.runs.values())[-1]
    received = {int(row["train_step"]): row for row in shown.history if "tokens" in row}
    differences = [
        abs(received[step][name] / value - 1) if value else abs(received[step][name])
        for step, row in _stored(run).items()
        for name, value in row.items()
    ]
    files = [(run.root / name, body) for a in backend.artifacts.values() for name, body in a["files"].items()]
    same = [path.read_bytes() == body for path, body in files if path.is_file()]
    print(f"{len(received)} steps, {len(differences)} numbers: largest relative difference {max(differences):.1e}")
    print(f"{len(same)} files in {len(backend.artifacts)} artifacts: {same.count(False)} differ from the store's")
    print(f"uploaded as artifacts: {uploaded[0]:.1f} MB, and {uploaded[1] - uploaded[0]:.1f} MB when published again")


def _stored(run: Run) -> dict[int, dict[str, float]]:
    """What the dashboard should show at each step, from emergence.json and, through pandas, from the heads' tables."""
    emergence = json.loads((run.root / "emergence.json").read_text())
    found: dict[int, dict[str, float]] = {step: {} for step in emergence["steps"]}
    for row in (r for r in emergence["series"] if r["series"] in emergence["headline"]):
        for name, values in ((row["series"], row["value"]), (f"{row['series']} null", row["null"])):
            for step, value in zip(emergence["steps"], values or (), strict=False):
                if value is not None:
                    found[step][metric(row["kind"], name)] = value
    maps = [HeadMap(**m) for d in run.descriptions().values() for m in d["maps"] if m["summary"]]
    for step, wanted in itertools.product(emergence["steps"], maps):
        table = run.table(wanted.table, [step])
        for column, values in wanted.where.items():
            table = table[table[column].isin(list(values))]
        counted = 1.0 if wanted.over is None else table[wanted.over]
        of_row = table.assign(total=table[list(wanted.total)].prod(axis=1), count=counted)
        by_head = of_row.groupby(["layer", "head"])[["total", "count"]].sum()
        value_H = (by_head["total"] / by_head["count"])[by_head["count"] > 0]
        if len(value_H):
            found[step][metric(ALL, wanted.name)] = float(getattr(value_H, wanted.summary)())
    return found


def _forget(root: Path, command: str) -> None:
    """Delete what a command makes, so that it makes it again."""
    made = {
        "correlate": ["emergence.json"], "report": ["figures", "report.html", "views.json"],
        "publish": ["publication.json", "wandb"],
    }  # fmt: skip
    for name in made[command]:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).unlink(missing_ok=True)


def _size(root: Path) -> int:
    return sum(f.lstat().st_size for f in root.rglob("*") if f.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("shape", help=f"{', '.join(SHAPES)} or LAYERSxHEADS")
    making.add_argument("--output", type=Path, default=Path("/tmp/real"))
    making.add_argument("--steps", default="all", help="a schedule: all, dense, log or smoke")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--processes", type=int, default=2)
    making.add_argument("--gaps", type=float, default=0.0, help="share of the heads without events at a checkpoint")
    telling = commands.add_parser("told")
    costing = commands.add_parser("cost")
    publishing = commands.add_parser("published")
    for reading in (telling, costing, publishing):
        reading.add_argument("run", type=Path)
    costing.add_argument("--repeats", type=int, default=3)
    costing.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    if args.command == "make":
        make(args.shape, args.output, args.steps, args.seed, args.processes, args.gaps)
    elif args.command == "told":
        told(args.run)
    elif args.command == "published":
        published(args.run)
    else:
        cost(args.run, args.repeats, args.only)


if __name__ == "__main__":
    main()

"""The rooms, and the one way data flows between them."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# A file imports only from rooms above its own; rooms in one set are peers and never import each other.
ROOMS = [
    {"errors", "quiet", "aside", "bars"},
    {"config", "corpus", "claims"},
    {"datafiles"},
    {"checkpoints"},
    {"model", "relations"},
    {"heads", "icl"},
    {"measurement"},
    {"results", "store"},
    {"trajectories"},
    {"tracker", "emergence"},
    {"analysis", "answer"},
]
# The commands stand at the end and know everything.
COMMANDS = {
    "sweep",
    "correlate",
    "publish",
    "figures",
    "audit",
    "report",
    "dashboard",
    "launch",
    "command",
    "loop",
    "survey",
    "conclude",
    "jobs",
    "status",
}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "sih"


def modules():
    for folder, package in ((ROOT / "sih", "sih"), (ROOT / "analysis", "sih.analysis"), (ROOT / "jobs", "sih.jobs")):
        for file in sorted(folder.rglob("*.py")):
            yield file, ".".join([package, *file.relative_to(folder).with_suffix("").parts])


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sih":
            if node.module == "sih":
                yield from (f"sih.{alias.name}" for alias in node.names if alias.name != "CONF")
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sih")


def rank(room: str) -> int:
    found = [i for i, rooms in enumerate(ROOMS) if room in rooms]
    assert found, f"{room} is no room of the house: give it a place in ROOMS"
    return found[0]


def test_data_flows_one_way():
    wrong = []
    for file, module in modules():
        own = room_of(module)
        if own in COMMANDS or own == "__init__":
            continue
        for imported in imports(file):
            other = room_of(imported)
            if other == own or other == "sih":
                continue
            if other in COMMANDS or rank(other) >= rank(own):
                # results and store, model and relations: named pairs where one peer serves the other.
                if (own, other) in {("results", "store"), ("relations", "model")}:
                    continue
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_only_the_model_room_knows_the_architecture():
    inside = ("query_key_value", "gpt_neox.layers", "embed_in")
    knowing = {module for file, module in modules() if any(word in file.read_text() for word in inside)}
    assert knowing == {"sih.model"}


def test_the_top_level_is_what_it_should_be():
    import subprocess

    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    wanted = {"pyproject.toml", "conf", "sih", "jobs", "tests", "analysis", "Makefile"}
    others = {"README.md", "CHANGELOG.md", "LICENSE", "benchmarks", "requirements.lock"}
    assert wanted <= top
    assert {t for t in top if not t.startswith(".")} <= wanted | others


def test_the_readme_tells_every_flag_as_the_report_does():
    from sih.emergence.answer import FLAGS

    told = re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert [(flag, meaning) for flag, meaning in told if flag in FLAGS] == [(f, m) for f, (_, m) in FLAGS.items()]
    timing = (ROOT / "sih" / "emergence" / "timing.py").read_text()
    assert {*re.findall(r'flags\.append\("([a-z_]+)"\)', timing), "no_emergence"} == set(FLAGS)


def test_every_default_stands_in_conf_alone():
    """A field with a default in the schema is one that conf/ may leave out, never a second copy of a number."""
    from dataclasses import MISSING, fields, is_dataclass

    from omegaconf import MISSING as MANDATORY

    from sih import config

    numbers = []
    for cls in vars(config).values():
        if isinstance(cls, type) and is_dataclass(cls):
            for f in fields(cls):
                if f.default not in (MISSING, MANDATORY, None, "all", 0):
                    numbers.append(f"{cls.__name__}.{f.name}")
    assert not numbers


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "model").glob("pythia-*.yaml")), ids=lambda f: f.stem)
def test_pythia_models(file):
    model = yaml.safe_load(file.read_text())
    assert model["name"] == file.stem
    assert model["repo"] == f"EleutherAI/{file.stem}"
    size = file.stem.split("-")[1]
    shapes = {
        "14m": (6, 4, 128),
        "31m": (6, 8, 256),
        "70m": (6, 8, 512),
        "160m": (12, 12, 768),
        "410m": (24, 16, 1024),
        "1b": (16, 8, 2048),
        "1.4b": (24, 16, 2048),
        "2.8b": (32, 32, 2560),
        "6.9b": (32, 32, 4096),
        "12b": (36, 40, 5120),
    }
    assert (model["layers"], model["heads"], model["width"]) == shapes[size]

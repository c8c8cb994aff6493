"""The rooms, and the one way data flows between them."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# From upstream to downstream: a file imports only from its own room and from rooms before it.
ROOMS = ["errors", "config", "checkpoints", "models", "texts", "scores", "results", "emergence", "tracker", "analysis"]
# What measures and what the commands call stands at the end and knows all rooms; the commands know only these two,
# and what they share.
LAST = ["running", "jobs"]
SHARED = {"command", "opened", "__init__"}
COMMANDS = {"sweep", "correlate", "report", "figures", "publish", "dashboard", "status", "audit"}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def modules():
    for folder, package in ((ROOT / "sih", "sih"), (ROOT / "analysis", "sih.analysis"), (ROOT / "jobs", "sih.jobs")):
        for file in sorted(folder.rglob("*.py")):
            yield file, ".".join([package, *file.relative_to(folder).with_suffix("").parts])


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sih":
            if node.module == "sih":
                yield from (f"sih.{alias.name}" for alias in node.names if alias.name not in ("CONF", "__version__"))
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sih."))


def test_the_top_holds_the_commands_and_what_they_share():
    top = {file.stem for file in (ROOT / "sih").glob("*.py")}
    assert top == COMMANDS | SHARED | {"config", "errors"}
    rooms = {folder.name for folder in (ROOT / "sih").iterdir() if (folder / "__init__.py").exists()}
    assert rooms == {*ROOMS, *LAST} - {"errors", "config", "analysis", "jobs"}
    for command in COMMANDS:
        lines = (ROOT / "sih" / f"{command}.py").read_text().splitlines()
        assert len(lines) <= 55, f"{command} is more than a screen"


def test_data_flows_one_way():
    order = {room: place for place, room in enumerate(ROOMS)}
    wrong = []
    for file, module in modules():
        own = room_of(module)
        for imported in imports(file):
            other = room_of(imported)
            if other == own:
                continue
            if own in COMMANDS | SHARED:
                allowed = other not in COMMANDS
            elif own in LAST:
                allowed = other not in COMMANDS | SHARED
            else:
                assert own in order, f"{own} is no room of the house"
                allowed = other in order and order[other] < order[own]
            if not allowed:
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_a_room_takes_its_own_part_of_the_configuration():
    """Only the commands, and what they call, ever see the whole."""
    whole = [
        module
        for file, module in modules()
        if room_of(module) in ROOMS[2:] and re.search(r"import .*\bConfig\b|config\.Config\b", file.read_text())
    ]
    assert not whole


def words_of(file: Path) -> set[str]:
    """Identifiers, and the words of strings, that a file's code has; docstrings and comments are no code."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found |= set(re.findall(r"\w+", node.value.replace("icl.few_shot", "")))  # an option of conf/
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {word for alias in node.names for word in alias.name.split(".")}
    return found


def test_no_score_is_named_outside_its_own_file():
    """But in conf/ and in the words of the answer. Names: of scores, of their tables, and of their series."""
    from conftest import composed

    from sih.scores.making import made

    scores = made(composed().scores)
    few = {"classes": 2, "shots": 20, "chance": defaultdict(float)}
    facts = {
        "induction": {"half": 4, "begins": False, "copied": 4},
        "relation_index": {"relations": {"facts": ["EATS"]}},
        "few_shot": {"tasks": dict.fromkeys(scores["few_shot"].tasks, few)},
    }
    assert {file.stem for file in (ROOT / "conf" / "scores").glob("*.yaml")} == set(scores)
    names_of = {
        score: {score, *made_.tables, *(re.split(r"\W", s.name)[0] for s in made_.series(facts.get(score, {})))}
        for score, made_ in scores.items()
    }
    wrong = []
    for file, module in modules():
        for score, names in names_of.items():
            if module in (f"sih.scores.{score}", "sih.emergence.answer"):
                continue
            known = {"few_shot", "context_gain"} if module == "sih.config" else set()  # the schema of conf/icl/
            wrong += [f"{module} names {name}" for name in (names & words_of(file)) - known]
    assert not wrong


def test_only_the_model_room_knows_the_architecture():
    inside = r"query_key_value|c_attn|[vo]_proj|head_dim|embed_in|get_\w+_embeddings|num_\w*heads|n_positions"
    knowing = {module for file, module in modules() if re.search(inside, file.read_text())}
    allowed = {"sih.checkpoints.training", "sih.checkpoints.tiny"}  # which train a model of their own
    assert {module for module in knowing if room_of(module) != "models"} <= allowed
    of_layouts = r"query_key_value|c_attn|c_proj|[vo]_proj|post_\w+norm"
    files = {file.stem for file in (ROOT / "sih" / "models").glob("*.py") if re.search(of_layouts, file.read_text())}
    assert files == {"gpt_neox", "gpt2", "split", "hf_olmo"}


def test_what_only_reads_a_run_needs_no_torch():
    """In a process of its own: the emergence room and the results are read without it."""
    import subprocess
    import sys

    code = (
        "import sys, sih.opened, sih.running.reading, sih.emergence.of_run, sih.analysis.drawing, sih.analysis.report\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_top_level_is_what_it_should_be():
    import subprocess

    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    wanted = {"pyproject.toml", "conf", "sih", "jobs", "tests", "analysis", "Makefile"}
    others = {"README.md", "CHANGELOG.md", "LICENSE", "benchmarks", "requirements.lock"}
    assert wanted <= top
    assert {t for t in top if not t.startswith(".")} <= wanted | others


def test_the_page_on_reading_tells_every_flag_as_the_report_does():
    from sih.emergence.answer import FLAGS

    page = (ROOT / "analysis" / "README.md").read_text()
    told = re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", page, flags=re.MULTILINE)
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

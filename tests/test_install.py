"""The built wheel, away from the checkout: conf/, analysis/ and the commands travel in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_installed_package_works_from_any_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("sih-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    conf = {str(p.relative_to(ROOT / "conf")) for p in (ROOT / "conf").rglob("*") if p.is_file()}
    assert {n.removeprefix("sih/conf/") for n in names if n.startswith("sih/conf/")} == conf
    assert {n.split("/")[0] for n in names if not n.split("/")[0].endswith(".dist-info")} == {"sih"}

    # -S leaves out the checkout's editable install; the dependencies' folder is named again behind the wheel.
    installed, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    elsewhere.mkdir()
    packages = next(p for p in map(Path, sys.path) if p.name == "site-packages")
    env = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{packages}", "SIH_CACHE": str(tmp_path / "cache")}
    small = ["model.train.steps=[0,1,2]", "relations.generated.documents=24", "icl.few_shot.episodes=4", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "-S", "-m", "sih.sweep", *small], cwd=elsewhere, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Answer:" in done.stdout
    assert list(elsewhere.glob("runs/tiny/figures/trajectories.png"))
    where = [sys.executable, "-S", "-c", "import sih; print(sih.__file__)"]
    said = subprocess.run(where, cwd=elsewhere, env=env, capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(installed))

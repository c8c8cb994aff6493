"""The default job on the whole embedded series: trained once into the user's cache, as `make run` does."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import composed, run_at

from sih import report, sweep
from sih.results.trajectories import Trajectories


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    config = composed(f"output={tmp_path_factory.mktemp('runs')}", "device=cpu")
    assert sweep.run(config) == 0
    run = run_at(config)
    return run, Trajectories(run, config.emergence)


def named(data: Trajectories, name: str):
    return next(s for s in data.series if s.name == name)


def clearly_above(series, peak: int, floor: float) -> bool:
    """By five standard errors over documents: more than the best of all checkpoints and relations would by luck."""
    value = series.value_C[peak]
    spread = series.numerator_DC[:, peak] - value * series.denominator_DC[:, peak]
    error = np.sqrt((spread**2).sum()) / series.denominator_DC[:, peak].sum()
    return series.sign * (value - floor) > 5 * error


def test_the_checkpoints_are_log_spaced_and_dense_across_the_transition(swept):
    run, data = swept
    assert {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512} <= set(run.steps())
    value_C = named(data, "prefix_matching").value_C
    half = run.steps()[int(np.argmax(value_C > value_C.max() / 2))]
    assert len([step for step in run.steps() if half - 128 <= step <= half + 128]) >= 7


@pytest.mark.parametrize(
    "name", ["prefix_matching", "context_gain", "loss_reduction/early_late", "format_gained", "constrained_accuracy"]
)
def test_the_dynamics_are_real_and_visible(swept, name):
    _, data = swept
    series = named(data, name)
    peak = int(np.argmax(series.sign * series.value_C))
    assert clearly_above(series, peak, series.value_C[0])
    assert clearly_above(series, peak, series.chance)


def test_format_comes_first_and_the_pattern_is_learnt_for_two_classes_and_four(swept):
    """Labels mean nothing but by the examples. Whether heads come before it is for the statistics to say."""
    run, data = swept
    last = len(run.steps()) - 1
    tasks = [s for s in data.series if s.name.startswith("constrained_accuracy/")]
    assert {series.chance for series in tasks} == {1 / 2, 1 / 4}
    for series in tasks:
        assert series.value_C[last] > 0.9
    format_first = int(np.argmax(named(data, "format_gained").value_C > 0.5))
    for series in (*tasks, named(data, "prefix_matching")):
        assert run.steps()[format_first] < run.steps()[int(np.argmax(series.value_C > series.value_C.max() * 0.75))]


def test_a_relation_rises_above_its_start_and_both_nulls_on_the_other_half_of_the_documents(swept):
    _, data = swept
    risen = []
    for series in (s for s in data.series if s.name.startswith("relation_index/")):
        value = np.nan_to_num(series.value_C, nan=-1)
        peak = int(np.argmax(value))
        if clearly_above(series, peak, series.value_C[0]) and clearly_above(series, peak, series.null_C[peak]):
            risen.append(series.name)
    assert risen


def test_the_answer_is_written_and_drawn(swept):
    run, _ = swept
    result = json.loads((run.root / "emergence.json").read_text())
    assert re.search(r"Half of the rise: prefix_matching at step \d+ \(\d+ to \d+", result["answer"])
    assert "ne run cannot exclude a common cause" in result["answer"]
    rows = {row["series"]: row for row in result["series"]}
    assert rows["prefix_matching"]["emerged"]
    assert rows["context_gain"]["emerged"]
    assert rows["constrained_accuracy"]["emerged"]
    assert rows["loss_reduction/early_late"]["emerged"]
    for name in (
        "trajectories",
        "curves_positions",
        "curves_shots",
        "heatmaps",
        "top_heads",
        "onsets",
        "lags",
        "routing",
        "head_overlap",
        "effects",
        "loads",
        "effects_check",
    ):
        assert (run.root / "figures" / f"{name}.png").stat().st_size > 20_000
        assert (run.root / "figures" / f"{name}.svg").read_text().startswith("<?xml")


def test_taking_out_the_previous_token_head_takes_answers_to_chance_and_that_is_told_undecided(swept):
    """Induction needs it. The two heads that match prefixes best are not needed: the others of their layer do the same."""
    run, _ = swept
    result = json.loads((run.root / "emergence.json").read_text())
    rows = {(row["group"], row["outcome"]): row for row in result["effects"]["rows"]}
    previous, prefix = (rows[group, "accuracy"] for group in ("previous_token", "prefix_matching"))
    assert previous["clean"][-1] > 0.9
    assert previous["clean"][-1] + previous["effect"][-1] < previous["chance"] + 0.15
    assert prefix["effect"][-1] > -0.1
    margin = rows["prefix_matching", "margin"]
    assert margin["few_controls"]
    assert margin["n_controls"][-1] == 15
    assert "is not decided by 7 to 15 control sets" in result["answer"]


def written_again(run):
    """report.html as `python -m sih.report` makes it."""
    file = run.root / "report.html"
    file.unlink()
    assert report.run(composed(f"run={run.root}")) == 0
    return file


def test_the_report_is_one_page_that_needs_nothing_else(swept):
    """The sentence, every headline score, every picture inside, nothing from elsewhere, and every link leads somewhere."""
    run, _ = swept
    emergence = json.loads((run.root / "emergence.json").read_text())
    file = written_again(run)
    assert file.stat().st_size < 5_000_000
    page = Page()
    page.feed(file.read_text())
    assert f"{emergence['answer']}." in page.text
    labels = {row["series"]: row["label"] for row in emergence["series"]}
    for name in emergence["headline"]:
        assert labels[name] in page.text
    pictures = [dict(attributes) for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(list((run.root / "figures").glob("*.png"))) >= 8
    for picture in pictures:
        kind, data_ = picture["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data_).startswith(b"\x89PNG")
        assert picture["alt"]
    targets = [value for _, attributes in page.tags for name, value in attributes if name in ("href", "src", "action")]
    inside = {value for _, attributes in page.tags for name, value in attributes if name == "id"}
    assert all(t.startswith("data:") or t.removeprefix("#") in inside for t in targets)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe")]
    assert run.manifest(512)["weights_sha256"]["model.safetensors"] in page.text


_PROBE = """<script>
const broken = [];
addEventListener("error", e => broken.push(e.message || e.target.tagName), true);
addEventListener("load", () => {
  const seen = {
    broken, images: document.images.length, wide: document.documentElement.scrollWidth - innerWidth,
    loaded: [...document.images].filter(i => i.complete && i.naturalWidth > 100).length,
    answer: document.querySelector(".answer").innerText,
  };
  const picture = () => document.querySelector("#explore svg").outerHTML;
  setTimeout(() => {
    const last = picture(), slider = document.querySelector("#explore input[type=range]");
    slider.value = 0;
    slider.dispatchEvent(new Event("input"));
    setTimeout(() => {
      seen.slid = picture() !== last;
      seen.requests = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length;
      document.body.dataset.seen = JSON.stringify(seen);
    }, 2500);
  }, 2500);
});
</script></head>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 500])
def test_the_report_in_a_browser(swept, tmp_path, width):
    """In headless Chromium: nothing is written to the console, every picture is there, nothing is cut off sideways."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "no chromium or google-chrome on this machine; on Debian: apt-get install chromium"
    run, _ = swept
    emergence = json.loads((run.root / "emergence.json").read_text())
    page = written_again(run).read_text()
    assert page.count("</head>") == 1
    file = tmp_path / "report.html"
    file.write_text(page.replace("</head>", _PROBE))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},1000",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=15000", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in shown.stderr
    parser = Page()
    parser.feed(shown.stdout)
    (body,) = [dict(attributes) for tag, attributes in parser.tags if tag == "body"]
    seen = json.loads(body["data-seen"])
    assert seen.pop("slid")  # the slider moves the picture
    assert seen.pop("requests") == 0
    drawn = len(list((run.root / "figures").glob("*.svg")))
    told = f"{emergence['answer']}."
    assert seen == {"broken": [], "images": drawn, "wide": seen["wide"], "loaded": drawn, "answer": told}
    assert drawn > 9
    assert seen["wide"] <= 0


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sih.checkpoints.naming import OWN, Naming
from sih.checkpoints.schedule import choose, grid_of, revision
from sih.errors import SihError

PYTHIA_STEPS = [0, *(2**k for k in range(10)), *range(1000, 143_001, 1000)]
SEEDS = r"step(?P<step>\d+)-seed-(?P<seed>.+)"


def test_pythias_steps():
    assert len(PYTHIA_STEPS) == 154
    assert PYTHIA_STEPS[:12] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert PYTHIA_STEPS[-1] == 143_000


@given(st.integers(0, 10**6))
def test_revision_and_step_are_inverse(step):
    assert OWN.step_of(revision(step)) == step


@pytest.mark.parametrize("name", ["main", "step", "step12x", "12", "step-1", "laststep1"])
def test_other_names_are_no_steps(name):
    assert OWN.step_of(name) is None


def test_a_seed_is_chosen_by_the_name():
    names = {"step10-seed-default": "a", "step10-seed-small-aux-2": "b", "step0-seed-default": "c", "main": "d"}
    assert Naming(SEEDS, "default").by_step(names, "here") == {0: "step0-seed-default", 10: "step10-seed-default"}
    assert Naming(SEEDS, "small-aux-2").by_step(names, "here") == {10: "step10-seed-small-aux-2"}
    assert Naming(SEEDS, "large").by_step(names, "here") == {}


def test_two_names_of_one_step_are_refused_unless_they_are_one_commit():
    naming = Naming(r"(?:step|checkpoint-)0*(?P<step>\d+)")
    assert naming.by_step({"step5": "a", "checkpoint-005": "a"}, "here") == {5: "checkpoint-005"}
    with pytest.raises(SihError, match="here: checkpoint-5 and step5 are both step 5; choose between them"):
        naming.by_step({"step5": "a", "checkpoint-5": "b"}, "here")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("step(", "no regular expression"),
        (r"step(\d+)", "no group named step"),
        ("(?P<step>.+)", "has the step 'main'"),
    ],
)
def test_bad_patterns(pattern, says):
    with pytest.raises(SihError, match=says):
        Naming(pattern).by_step({"main": "a"}, "here")


def test_grids():
    assert grid_of([0, 300, [1000, 3000, 1000]]) == [0, 300, 1000, 2000, 3000]
    assert grid_of(None) == []
    for wrong in ([[0, 10]], [["a", 1, 2]], [[0, 10, 0]], [[0, 10, 1, 1]]):
        with pytest.raises(SihError, match=r"model\.grid: .*expected steps, and \[first, last, every\]"):
            grid_of(wrong)


def test_named_schedules():
    everything = choose("all", PYTHIA_STEPS)
    dense, log, smoke = (choose(name, PYTHIA_STEPS) for name in ("dense", "log", "smoke"))
    assert everything == PYTHIA_STEPS
    assert set(smoke) <= set(log) <= set(everything)
    assert [s for s in PYTHIA_STEPS if s <= 5000] == [s for s in dense if s <= 5000]
    assert [s for s in PYTHIA_STEPS if s <= 512] == [s for s in log if s <= 512]
    assert log[-1] == dense[-1] == smoke[-1] == 143_000
    assert 30 <= len(log) <= 50 < len(dense) <= 80
    assert len(smoke) == 3


def test_lists_are_sorted_and_freed_of_repeats():
    assert choose([512, 0, 512], PYTHIA_STEPS) == [0, 512]
    assert choose(512, PYTHIA_STEPS) == choose("512", PYTHIA_STEPS) == [512]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([3], "step 3: no such checkpoint; nearest to 3: 0, 1, 2, 4"),
        ([0, 1500, 7], r"steps 7, 1500: no such checkpoint.*of 154, 0 to 143000"),
        ("logg", "did you mean log"),
        (["x"], "expected whole numbers"),
        ([], "expected at least one step"),
    ],
)
def test_bad_steps(steps, message):
    with pytest.raises(SihError, match=message):
        choose(steps, PYTHIA_STEPS)


@given(st.sets(st.integers(0, 200_000), min_size=1, max_size=60), st.sampled_from(["all", "dense", "log", "smoke"]))
def test_schedules_only_choose_what_is_offered_and_keep_the_last(offered, name):
    steps = sorted(offered)
    chosen = choose(name, steps)
    assert set(chosen) <= offered
    assert chosen == sorted(chosen)
    assert chosen[-1] == steps[-1]

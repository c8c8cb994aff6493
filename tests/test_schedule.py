import pytest
from hypothesis import given
from hypothesis import strategies as st

from sih.checkpoints.schedule import choose, revision, step_of
from sih.errors import SihError

PYTHIA_STEPS = [0, *(2**k for k in range(10)), *range(1000, 143_001, 1000)]


def test_pythias_steps():
    assert len(PYTHIA_STEPS) == 154
    assert PYTHIA_STEPS[:12] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert PYTHIA_STEPS[-1] == 143_000


@given(st.integers(0, 10**6))
def test_revision_and_step_are_inverse(step):
    assert step_of(revision(step)) == step


@pytest.mark.parametrize("name", ["main", "step", "step12x", "12", "step-1", "laststep1"])
def test_other_names_are_no_steps(name):
    assert step_of(name) is None


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

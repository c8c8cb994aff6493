"""Time in steps or tokens, and the published prediction beside it."""

import pytest
from conftest import composed, run_at
from sih.analysis import style

from sih import figures, report, sweep
from sih.checkpoints.schedule import readable_tokens
from sih.config import check
from sih.emergence.answer import answer_of
from sih.emergence.expected import induction_tokens
from sih.emergence.time_axis import axis_of
from sih.errors import SihError


def test_the_prediction_for_pythia_is_its_step_346():
    assert induction_tokens(2097152) / 2097152 == pytest.approx(346, abs=0.5)
    assert induction_tokens(4 * 2097152) == pytest.approx(2 * induction_tokens(2097152))


def test_tokens_in_words():
    assert [readable_tokens(n) for n in (0, 999, 2097152, 726e6, 6.29e9, 3e11, 2.1e12)] == [
        "0", "999", "2.1M", "726M", "6.3B", "300B", "2.1T"
    ]  # fmt: skip
    assert [readable_tokens(n, 3) for n in (999.6, 2097152, 20_971_520_000, 3e11)] == ["1k", "2.1M", "21B", "300B"]
    answer = {"axis": "tokens", "tokens_per_step": 2097152}
    assert axis_of(answer).moment(1050) == "2.2B tokens"
    assert (axis_of(answer).number(1000), axis_of(answer).number(10050)) == ("2.1B", "21.1B")
    assert axis_of({**answer, "axis": "steps"}).moment(1000) == axis_of({}).moment(1000) == "step 1,000"


def test_runs_with_other_numbers_of_tokens_a_step_share_one_axis():
    """Equal tokens stand at equal places, whatever the steps; step 0 is 0 tokens in each."""
    shared = style.shared_axis("tokens", [4096, 1024])
    assert axis_of(shared).tokens_per_step == 1024
    small, large = style.on_shared([0, 8, 12], 1024, shared), style.on_shared([0, 2, 3], 4096, shared)
    assert small.tolist() == large.tolist() == [0, 8, 12]
    in_steps = style.shared_axis("steps", [4096, None])
    assert style.on_shared([0, 2], None, in_steps).tolist() == [0, 2]
    assert axis_of(in_steps).words == "training step"


@pytest.mark.slow
def test_figures_on_either_axis_and_again_only_when_it_changes(small, capsys):
    config = small("figures=true", "scores=[induction]")
    sweep.run(config)
    drawn = (run_at(config).root / "figures" / "trajectories.svg").read_bytes()
    inside = run_at(config).read_json("emergence.json")
    tokens = small("scores=[induction]", "axis=tokens")
    figures.run(tokens)
    assert (run_at(config).root / "figures" / "trajectories.svg").read_bytes() != drawn
    assert run_at(config).read_json("emergence.json") == inside  # the same answer, shown on another axis
    assert answer_of(inside) == inside["answer"]
    pages = [(report.run(c), (run_at(c).root / "report.html").read_text())[1] for c in (config, tokens)]
    for page, words, first in zip(
        pages, ("training step", "training tokens"), ("step 0 to 8", "0 tokens to 12.3k"), strict=True
    ):
        assert f"Half-rise ({words})" in page
        assert f"5 checkpoints, {first}, run" in page
        assert f'"title":"{words} (log scale)"' in page  # of the part to explore
    capsys.readouterr()
    figures.run(tokens)
    assert "Unchanged since they were drawn" in capsys.readouterr().out


def test_an_axis_that_cannot_be_shown(small):
    with pytest.raises(SihError, match="axis=token; expected steps, tokens or null"):
        check(composed("axis=token"))
    config = small("scores=[induction]", "model.tokens_per_step=null")
    sweep.run(config)
    with pytest.raises(SihError, match="axis=tokens, but its tokens per step are unknown"):
        figures.run(small("scores=[induction]", "axis=tokens"))

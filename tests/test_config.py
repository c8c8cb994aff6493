import pytest
import yaml
from commands import called
from conftest import composed
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import OmegaConfBaseException

from sih import CONF, audit
from sih.checkpoints.naming import Naming
from sih.checkpoints.schedule import PYTHIA_STEPS, grid_of
from sih.checkpoints.sources import identity, repositories
from sih.config import check, check_sweep, model_name
from sih.errors import SihError
from sih.scores.making import made


def test_every_model_composes_and_passes_the_checks():
    import sih

    for file in sorted((sih.CONF / "model").glob("[!_]*.yaml")):
        if file.stem not in ("local", "hub"):  # which need a path, or a repository
            config = composed(f"model={file.stem}")
            check(config)
            check_sweep(config)
            assert list(made(config.scores)) == [
                "induction", "relation_index", "loss_reduction", "few_shot", "attribution", "function_vectors",
                    "dual_route", "knock_outs",
            ]  # fmt: skip
            assert model_name(config.model).startswith(file.stem)


def test_names_carry_the_seed():
    assert model_name(composed("model=pythia-70m", "model.seed=3").model) == "pythia-70m-seed3"
    assert model_name(composed("model=pythia-160m-data").model) == "pythia-160m-data-seed1"
    assert model_name(composed("model=pythia-70m").model) == "pythia-70m"


def test_names_and_repositories_of_families():
    def names(*overrides):
        model = composed(*overrides).model
        return [model_name(model), *repositories(model)]

    assert names("model=crfm-gpt2-small", "model.seed=49") == [
        "crfm-gpt2-small-seed49", "stanford-crfm/battlestar-gpt2-small-x49"
    ]  # fmt: skip
    assert names("model=datadecide-60m", "model.recipe=c4", "model.seed=2") == [
        "datadecide-60m-c4-seed2", "allenai/DataDecide-c4-60M"
    ]  # fmt: skip
    assert names("model=olmo2-1b")[1:] == ["allenai/OLMo-2-0425-1B", "allenai/OLMo-2-0425-1B-early-training"]
    assert names("model=pythia-70m", "model.seed=3")[1:] == ["EleutherAI/pythia-70m-seed3"]
    assert names("model=hub", "model.repo=me/mine") == ["mine", "me/mine"]
    assert names("model=hub", "model.repo='me/mine-{seed}'", "model.seed=4") == ["mine-seed4", "me/mine-4"]
    seeds = {identity(composed("model=datadecide-60m", f"model.seed={s}").model) for s in (0, 2, 3)}
    assert len(seeds) == 3  # one repository, three runs: their results never share a key


@pytest.mark.slow
def test_every_family_says_what_it_is():
    for file in sorted((CONF / "model").glob("*.yaml")):
        model = composed(f"model={file.stem}").model
        if file.stem in ("local", "hub", "tiny"):
            continue
        assert model.licence, file
        assert model.citation, file
        assert model.tokens_per_step, file
        Naming(model.revisions)
        grid_of(model.grid)
    assert tuple(grid_of(composed("model=pythia-70m").model.grid)) == PYTHIA_STEPS
    assert len(grid_of(composed("model=crfm-gpt2-medium").model.grid)) == 609


def test_a_regular_expression_needs_no_quotes_on_the_command_line(tmp_path):
    """Hydra's grammar gives brackets and signs other meanings."""
    done = called(audit.main, "model=hub", "model.repo=a/b", "model.revisions=run'7'-(?P<step>\\d+)", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["revisions"] == "run'7'-(?P<step>\\d+)"


def test_the_model_chooses_its_data_and_the_user_has_the_last_word():
    assert composed().relations.generated.enabled
    assert composed("model=pythia-70m").relations.agenda.enabled
    assert composed("model=pythia-70m", "relations=treebank").relations.agenda.enabled is False
    assert composed("model=tiny", "relations.per_relation=3").scores["relation_index"]["texts"].per_relation == 3
    assert composed("model=tiny", "icl.loss.documents=3").scores["loss_reduction"]["documents"] == 3


def refused(config):
    """What a sweep checks before it fetches anything."""
    check(config)
    check_sweep(config)
    made(config.scores)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=local", "model.path=/nowhere"], "/nowhere is no folder"),
        (["model=pythia-70m", "model.seed=12"], "has the seeds 0-9"),
        (["model=pythia-1b", "model.seed=1"], "has the seeds 0"),
        (["model=crfm-gpt2-small", "model.seed=7"], "has the seeds 21, 49, 81, 343, 777"),
        (["model=hub"], "model.repo=None; expected a Hub repository, owner/name"),
        (["model=hub", "model.repo=a/b", "model.main=first"], "model.main=first; expected last, a step, or null"),
        (["model=pythia-70m", "model.repo=EleutherAI/pythia-70m-v0"], "relabelled steps"),
        (["tracker.mode=sometimes"], "expected offline, online or disabled"),
        (["dtype=float16"], "expected float32 or bfloat16"),
        (["scores.relation_index.tau=1"], "strict gates need distinct ratios above 1"),
        (["scores.relation_index.more_taus=[2.2]"], "strict gates need distinct ratios above 1"),
        (
            ["model=pythia-70m", "relations=custom"],
            r"custom\.path=None; expected a file ending in \.conllu, \.jsonl, \.txt",
        ),
        (["model=pythia-70m", "icl.few_shot.tasks.justify_part_whole.pairs=[a b c]"], "'a b c' in pairs; expected two"),
        (["model=pythia-70m", "icl.few_shot.tasks.justify_part_whole.pairs=[]"], "expected either classes or pairs"),
        (["checkpoints.disk_budget=much"], "disk_budget=much; expected a size"),
        (["relations.generated.enabled=false"], "no relation data chosen"),
        (["model=pythia-70m", "relations=generated"], "relations=generated is the language of model=tiny"),
        (["emergence.bootstrap=1"], "expected at least 2"),
        (["launcher.stale_after=0"], "stale_after=0.0; expected more than 0 seconds"),
        (["launcher=processes", "launcher.dry_run=true"], "needs launcher=slurm; this is launcher=processes"),
        (["launcher.kind=ray"], "expected local, processes or slurm"),
        (["launcher=slurm", "launcher.parallel=0"], r"launcher\.parallel=0; expected at least 1"),
        (["launcher=slurm", "launcher.chunk=0"], r"launcher\.chunk=0; expected at least 1"),
        (["launcher=slurm", "launcher.minutes=1"], "signal_seconds=90; expected at most 30 of the 60 "),
        (
            ["icl.loss.context_gain=[5,9,5]"],
            r"context_gain=\[5, 9, 5\]; expected \[late start, late stop, short start\]",
        ),
        (["icl.loss.windows.early_late=[5,2,8,9]"], r"windows\.early_late=\[5, 2, 8, 9\]"),
        (["icl.few_shot.tasks.binary_pet_job.labels=[one,one]"], "one distinct label for each class"),
        (["icl.few_shot.tasks.binary_pet_job.classes=[[pet,car],[car,pet]]"], r"no word list for \['car'\]"),
    ],
)
def test_contradictions_are_refused_by_name(overrides, message):
    with pytest.raises(SihError, match=message):
        refused(composed(*overrides))


@pytest.mark.parametrize(
    "override",
    [
        "model=pythia-71m",
        "model=_model",
        "relations.max_token=2",
        "steeps=log",
        "relations.max_tokens=much",
        "scores.induction.lenght=3",
    ],
)
def test_unknown_options_keys_and_types_are_refused(override):
    with pytest.raises((ConfigCompositionException, HydraException, OmegaConfBaseException)):
        composed(override)

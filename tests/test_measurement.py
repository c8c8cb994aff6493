"""From options to tables: what is drawn, and that one choice of data leaves another's numbers alone."""

import pytest
import torch
from conftest import composed, random_module, write_checkpoint

from sih.models.loading import load
from sih.models.tokenizer import start_id
from sih.scores import Given, files_of
from sih.scores.making import made


@pytest.fixture(scope="module")
def real_model(tmp_path_factory, pythia_tokenizer_file):
    """A small random model over Pythia's vocabulary."""
    folder = tmp_path_factory.mktemp("real") / "step0"
    write_checkpoint(folder, random_module(50304, width=16, context=512), pythia_tokenizer_file)
    return load(folder, torch.device("cpu"))


def measured(config, name, model, tokenizer):
    """The inputs and tables of one score, in passes of 4096 tokens."""
    score = made(config.scores)[name]
    start = start_id(tokenizer, config.model.document_start)
    given = Given(
        tokenizer,
        len(tokenizer),
        model.vocab_size,
        model.module.config.max_position_embeddings,
        config.seed,
        files_of(score),
        None,
        start,
    )
    drawn = score.draw(given)
    return drawn, score.measure(model, drawn.inputs, 4096)


def relation_table(config, model, tokenizer):
    drawn, tables = measured(config, "relation_index", model, tokenizer)
    table = tables["relation_heads"].to_pandas()
    return drawn.inputs, table.set_index(["source", "relation", "direction", "layer", "head"]).sort_index()


@pytest.mark.slow
def test_agenda_with_and_without_function_words(real_model, pythia_tokenizer, agenda_file, wikitext_file):
    """Both ways side by side: the one without is what it would be alone, and the full texts have more opportunities."""
    options = [
        "model=pythia-14m", "relations=agenda", f"relations.agenda.path={agenda_file}",
        f"icl.loss.texts={wikitext_file}", "icl.loss.documents=2", "icl.few_shot.episodes=2", "relations.per_relation=6",
    ]  # fmt: skip
    _, alone = relation_table(composed(*options), real_model, pythia_tokenizer)
    inputs, both = relation_table(composed(*options, "relations.agenda.both_ways=true"), real_model, pythia_tokenizer)
    assert {e.source for e in inputs.examples} == {"agenda", "agenda-full"}
    counts = ["opportunities", "argmax_events", "argmax_scored"]
    assert both.loc[["agenda"]][counts].equals(alone[counts])
    means = both.groupby("source")["opportunities"].mean()
    assert means["agenda-full"] > means["agenda"]
    assert (both["argmax_events"] <= both["opportunities"]).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_one_episode_has_no_interval(real_model, pythia_tokenizer):
    """One value says nothing about how values scatter: neither a warning nor an interval of width 0."""
    config = composed("model=pythia-14m", "icl.few_shot.episodes=1")
    _, tables = measured(config, "few_shot", real_model, pythia_tokenizer)
    table = tables["few_shot"].to_pandas()
    margins = table[table["score"] == "label_margin"]
    assert len(margins) > 0
    tasks = {"2 classes": 2, "relations": 4}  # over how many tasks a mean is; others are of one
    assert (margins["n"] == margins["task"].map(tasks).fillna(1)).all()
    assert margins["value"].notna().all()
    assert margins[["ci_low", "ci_high"]].isna().all(axis=None)

"""Whether knock-outs find what is there, and nothing where nothing is."""

import induction_by_hand as by_hand
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_module

from sih.emergence import effects
from sih.models import replacing
from sih.models.model import Model
from sih.scores import outcomes
from sih.scores.head_sets import matching, rank_p, relabelled
from sih.scores.knock_outs import knocked_out
from sih.scores.tables import paired_interval
from sih.texts.random_tokens import repeated


def reading_of(n_ids: int, sequences: int, half: int, seed: int) -> outcomes.Reading:
    """Random tokens that are said twice, after token 0, read in their second half."""
    ids, half = repeated(n_ids, sequences, half, 0, np.random.default_rng(seed))
    names = tuple(f"sequence-{n}" for n in range(sequences))
    return outcomes.losses(("repeated_loss",), names, torch.from_numpy(ids), [range(half + 1, 2 * half)])


def test_the_one_induction_head_takes_all_of_the_copying_and_no_other_head_any():
    model = Model(by_hand.module(), torch.device("cpu"))
    reading = reading_of(by_hand.TOKENS, 8, 12, 0)
    means = replacing.mean_outputs(model, reading_of(by_hand.TOKENS, 20, 12, 1).ids_BT, 4000)
    seen = replacing.patterns(model, reading.ids_BT)
    to_next = seen[1][:, 0].diagonal(offset=-11, dim1=-2, dim2=-1)[:, 2:]
    assert to_next.min() > 0.99, "it is a perfect induction head"
    others = [(n, h) for n in range(2) for h in range(4) if (n, h) not in (by_hand.PREVIOUS, by_hand.INDUCTION)]
    sets = [(by_hand.INDUCTION,), (by_hand.PREVIOUS,), *((head,) for head in others), tuple(others)]
    clean_NB, changed_SNB = knocked_out(model, reading, sets, "mean", means, reading.ids_BT, 4000)
    assert clean_NB.mean() < 0.05
    effect_S = (changed_SNB - clean_NB).mean((1, 2))
    chance = np.log(by_hand.TOKENS)
    assert clean_NB.mean() + effect_S[0] > chance - 0.05, "the mean in its place is a constant, which may cost more"
    _, zeros_SNB = knocked_out(model, reading, sets[:1], "zero", means, reading.ids_BT, 4000)
    assert zeros_SNB.mean() == pytest.approx(chance, abs=0.1)
    assert effect_S[1] > 2
    assert np.abs(effect_S[2:]).max() < 0.02


@pytest.mark.slow
def test_on_random_weights_no_group_costs_more_than_its_controls():
    """In at most 5 % of 200 draws, beyond what so few draws scatter; groups lead in prefix matching or are sharpest.

    The rank among control sets alone does not do: sharp attention makes a head write more than its neighbours, whatever
    it writes. So the documents have to agree too.
    """
    told = {"prefix matching": [], "sharpest": []}
    for seed in range(200):
        model = Model(random_module(40, seed=seed, layers=2, heads=8, width=32), torch.device("cpu"))
        chosen_on, reading = reading_of(40, 4, 10, 1000 + seed), reading_of(40, 16, 10, seed)
        means = replacing.mean_outputs(model, reading_of(40, 8, 10, 2000 + seed).ids_BT, 4000)
        attn_LBHTT = torch.stack(list(replacing.patterns(model, chosen_on.ids_BT).values()))
        scores = {
            "prefix matching": attn_LBHTT.diagonal(offset=-9, dim1=-2, dim2=-1)[..., 2:].mean((1, 3)),
            "sharpest": attn_LBHTT.amax(-1).mean((1, 3)),
        }
        for name, score_LH in scores.items():
            order = score_LH.flatten().argsort(descending=True)[:2]
            group = tuple((int(n) // 8, int(n) % 8) for n in order)
            free = [[(n, h) for h in range(8) if (n, h) not in group] for n in range(2)]
            controls, _ = matching(group, free, (2, 8), 20, seed)
            clean_NB, changed_SNB = knocked_out(
                model, reading, [group, *controls], "mean", means, chosen_on.ids_BT, 4000
            )
            cost_SB = (changed_SNB - clean_NB)[:, 0]
            low, _ = paired_interval(cost_SB[0] - cost_SB[1:].mean(0), seed)
            told[name].append((rank_p(cost_SB[0].mean(), cost_SB[1:].mean(1)) <= 0.05, low > 0))
    for name, found in told.items():
        print(name, np.mean(found, axis=0), np.all(found, axis=1).mean())
        assert np.all(found, axis=1).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def told_of(rng: np.random.Generator, seed: int, strong: float = 0.0) -> tuple[list[bool], list[bool]]:
    """Eight groups of three heads drawn at random among 12 x 12, two outcomes: what would be told, and what without
    the correction over groups.

    Heads' loads have long tails, half of each is shared by the outcomes, and documents scatter about them. The first
    group's heads each have a load larger by `strong`.
    """
    places = [(n, h) for n in range(12) for h in range(12)]
    groups = [[places[i] for i in rng.choice(144, 3, replace=False)] for _ in range(8)]
    named = {head for group in groups for head in group}
    free = [[(n, h) for h in range(12) if (n, h) not in named] for n in range(12)]
    shared = rng.gamma(0.5, size=(12, 12))
    rows, random = [], []
    changed = relabelled([tuple(group) for group in groups], (12, 12), 20, seed)
    for outcome in ("gain", "margin"):
        load_DLH = (shared + rng.gamma(0.5, size=(12, 12))) * rng.gamma(1, size=(24, 12, 12))
        for n, group in enumerate(groups):
            for head in group:
                load_DLH[:, *head] += strong * (n == 0) * rng.gamma(1, size=24)
            sets = [group, *matching(group, free, (12, 12), 20, seed)[0], *changed[n]]
            cost_SD = np.array([sum(load_DLH[:, *head] for head in heads) for heads in sets])
            cost_SD, relabelled_SD = cost_SD[:21], cost_SD[21:]
            low, _ = paired_interval(cost_SD[0] - cost_SD[1:].mean(0), seed)
            cost_S = cost_SD.mean(1)
            rows.append({"main": True, "group": n, "outcome": outcome, "sign": 1, "effect": [cost_S[0]],
                         "n_controls": [20], "rank_p": [rank_p(cost_S[0], cost_S[1:])], "beyond_low": [low]})  # fmt: skip
            random += [{"kind": "random", "group": n, "outcome": outcome, "effect": x} for x in relabelled_SD.mean(1)]
    effects._add_family(rows, pd.DataFrame(random))
    alone = [r["rank_p"][0] <= 0.05 and r["beyond_low"][0] > 0 for r in rows]
    return [yes and r["p_family"] <= 0.05 for yes, r in zip(alone, rows, strict=True)], alone


def test_of_many_groups_with_no_effect_at_most_one_run_in_twenty_tells_one():
    """Eight groups, two outcomes; without the correction three quarters of such runs would tell one."""
    runs = 300
    found = [told_of(np.random.default_rng([n, *b"family"]), n) for n in range(runs)]
    any_told, any_alone = (np.mean([any(x[i]) for x in found]) for i in (0, 1))
    strong = np.mean([told_of(np.random.default_rng([n, *b"strong"]), n, 20.0)[0][0] for n in range(40)])
    print(f"told {any_told:.3f}, without the correction {any_alone:.3f}; a group 20 times as costly {strong:.2f}")
    assert any_told <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert any_alone > 0.2
    assert strong > 0.9

"""The simulation of uneven lengths beside what decoding really computes, and by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mrg.modules.rollout.sampling import sample

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from uneven import WAYS, Cost, Lengths, one_after_another, rows_by_step, rows_leave, rows_stay, sigma_of, simulate


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_each_step_are_those_that_decoding_computes(policy, batch, monkeypatch, seed):
    prompts = policy.embed(batch)
    rows = []
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda embeds, *args: (rows.append(len(embeds)), hidden(embeds, *args))[1])
    # Few tokens are left to choose from, so that the end is often among them.
    allowed = {policy.eos_id, *range(40, 60)}
    policy.__dict__["banned_ids"] = [i for i in range(policy.base.config.text_config.vocab_size) if i not in allowed]
    rollout = sample(policy, prompts, 6, 40, generator=torch.Generator().manual_seed(seed))
    lengths = rollout.completion_mask.sum(1).view(len(batch), 6).numpy()
    assert lengths.min() < lengths.max()
    assert rows[1:] == rows_by_step(lengths).tolist()  # the first reads the prompts


def test_seconds_by_hand():
    """Two studies of two completions: 4 and 2, 2 and 1 tokens, the first of which comes from reading the prompt."""
    lengths, cost = np.array([[4, 2], [2, 1]]), Cost(fixed=10, per_row=1, source="")
    assert rows_by_step(lengths).tolist() == [4, 1, 1]  # three of four places in use are no reason to move them
    assert rows_leave(lengths, cost) == 3 * 10 + 6
    assert rows_stay(lengths, cost) == 3 * 10 + 3 * 4
    assert one_after_another(lengths, cost) == (3 * 10 + 2 + 1 + 1) + (10 + 1)


def test_lengths_have_the_mean_and_spread_they_are_given():
    lengths = Lengths(100, 0.3, 0.5, 10_000)
    drawn = lengths.draw((4000, 8), np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(100, rel=0.02)
    logs = np.log(drawn)
    assert logs.std() == pytest.approx(0.3, rel=0.03)
    assert logs.mean(1).var() == pytest.approx(0.5 * 0.09 * (1 + 1 / 8), rel=0.08)
    assert Lengths(100, 0.3, 0.5, 90).draw((100, 8), np.random.default_rng(0)).max() == 90


def test_sigma_gives_the_longest_that_was_seen():
    sigma = sigma_of(45, 65, 128)
    drawn = Lengths(45, sigma, 0.0, 10_000).draw((4000, 128), np.random.default_rng(1))
    assert drawn.max(1).mean() == pytest.approx(65, rel=0.01)


def test_a_seed_gives_the_same_table_and_batching_gains_where_steps_cost_more_than_rows():
    lengths, cost = Lengths(40, 0.3, 0.5, 90), Cost(1e-2, 1e-5, "")
    tables = [simulate(lengths, cost, [1, 4], 4, 4, 5, seed) for seed in (0, 0, 1)]
    assert tables[0] == tables[1] != tables[2]
    seconds = {(row["way"], row["world_size"]): row for row in tables[0]}
    assert seconds[WAYS[0], 1]["seconds"] > 2.5 * seconds[WAYS[2], 1]["seconds"]
    assert seconds[WAYS[2], 4]["seconds"] <= seconds[WAYS[1], 4]["seconds"]
    assert seconds[WAYS[2], 1]["wait"] == 1 < seconds[WAYS[2], 4]["wait"]

from itertools import product

import pytest
import torch

from mrg.metrics.ce import condition_counts, confusion
from mrg.metrics.conditions import BLANK, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.verdicts import VERDICTS, verdict, verdicts

B, P, N, U = BLANK, POSITIVE, NEGATIVE, UNCERTAIN


@pytest.mark.parametrize(
    ("target", "preds", "expected"),
    [
        (P, P, "correct"),
        (U, U, "correct"),
        (P, U, "uncertain"),
        (U, P, "uncertain"),
        (P, B, "missed"),
        (U, B, "missed"),
        (B, P, "hallucinated"),
        (B, U, "hallucinated"),
        (P, N, "contradicted"),
        (U, N, "contradicted"),
        (N, P, "contradicted"),
        (N, U, "contradicted"),
        (N, N, "denied"),
        (B, B, "silent"),
        (B, N, "silent"),
        (N, B, "silent"),
    ],
)
def test_every_pair(target, preds, expected):
    assert verdict(preds, target) == expected


def test_tables_are_the_pairs():
    pairs = torch.tensor(list(product(range(4), repeat=2)))
    preds, target = (pairs[:, i : i + 1].expand(-1, 14) for i in (0, 1))
    names = [[VERDICTS[k] for k in row] for row in verdicts(preds, target).tolist()]
    assert names == [[verdict(p, t)] * 14 for p, t in pairs.tolist()]


def test_verdicts_partition_the_counts_of_ce_f1():
    """True positives, false positives and false negatives of the scores with a plus sign."""
    torch.manual_seed(0)
    preds, target = torch.randint(4, (2, 200, 14))
    found = verdicts(preds, target)
    count = {name: (found == place) for place, name in enumerate(VERDICTS)}
    stated = torch.isin(target, torch.tensor([P, U]))
    tp = count["correct"] | count["uncertain"]
    fp = count["hallucinated"] | (count["contradicted"] & ~stated)
    fn = count["missed"] | (count["contradicted"] & stated)
    expected = condition_counts(confusion(preds, target), "positive")
    assert torch.stack([tp, fp, fn]).sum(1).equal(expected)

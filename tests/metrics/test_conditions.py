import torch

from mrg.metrics.conditions import BLANK, NEGATIVE, POSITIVE, UNCERTAIN, stated


def test_a_positive_and_an_uncertain_finding_are_stated():
    labels = torch.tensor([[BLANK, POSITIVE], [NEGATIVE, UNCERTAIN]])
    assert stated(labels).tolist() == [[False, True], [False, True]]

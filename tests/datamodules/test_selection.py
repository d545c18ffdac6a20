"""Selection of training studies by how their rewards vary: weights, drawing and messages by hand."""

from collections import Counter

import pytest
import torch

from mrg.datamodules.balance import draw
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.loading import StudySampler
from mrg.datamodules.selection import Measured, Selection, as_selection, describe_selection, selected_weights
from mrg.metrics import RulesLabeler
from mrg.metrics.conditions import stated

DEVIATION = torch.tensor([0.0, 0.3, 0.1, 0.0, 0.2], dtype=torch.float64)


def test_weights_by_hand():
    assert selected_weights(Selection(), DEVIATION).tolist() == [0, 1, 1, 0, 1]
    assert selected_weights(Selection(least=0.1), DEVIATION).tolist() == [0, 1, 0, 0, 1]
    assert selected_weights(Selection(use="weight", least=0.1), DEVIATION).tolist() == [0, 0.3, 0, 0, 0.2]
    balance = torch.tensor([5.0, 1.0, 4.0, 5.0, 2.0], dtype=torch.float64)
    assert selected_weights(Selection(use="weight"), DEVIATION, balance).tolist() == [0, 0.3, 0.4, 0, 0.4]


def test_nothing_left_is_an_error_that_says_what_to_change():
    with pytest.raises(RuntimeError, match=r"each of 5 training studies do not differ over 8 completions: nothing"):
        selected_weights(Selection(), torch.zeros(5))
    with pytest.raises(RuntimeError, match=r"at most 0\.5 over 8 completions: .* lower data.init_args.select.least"):
        selected_weights(Selection(least=0.5), DEVIATION)


@pytest.mark.parametrize("num", [0, 12])
def test_what_is_left_out_is_never_drawn(num):
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    for seed in range(200):
        drawn = Counter(draw(weights, torch.Generator().manual_seed(seed), num))
        assert drawn == ({1: 1, 3: 2, 4: 3} if num == 0 else {1: 2, 3: 4, 4: 6})


def test_an_epoch_lasts_until_the_next_measurement():
    """Weights are asked for once per epoch; the ranks share one order, in the middle of which a run resumes."""
    asked = []

    def reweigh(epoch):
        asked.append(epoch)
        return torch.tensor([1.0, 0.0, 1.0, 0.0] if epoch % 2 == 0 else [0.0, 1.0, 0.0, 1.0], dtype=torch.float64)

    whole = StudySampler(range(4), 7, epoch=2, reweigh=reweigh, epoch_studies=6)
    assert len(whole) == 6
    assert Counter(whole) == {0: 3, 2: 3}
    parts = [StudySampler(range(4), 7, 2, rank, 2, reweigh=reweigh, epoch_studies=3) for rank in (0, 1)]
    assert [index for step in zip(*parts, strict=True) for index in step] == list(whole)
    resumed = StudySampler(range(4), 7, epoch=2, start=4, reweigh=reweigh, epoch_studies=6)
    assert list(resumed) == list(whole)[4:]
    whole.set_epoch(2)
    whole.set_epoch(3)
    assert Counter(whole) == {1: 3, 3: 3}
    assert asked == [2, 2, 2, 2, 3]


def test_the_line_says_how_many_are_left_out_and_of_which_conditions():
    reports = ["Cardiomegaly.", "Cardiomegaly. Edema.", "The lungs are clear.", "Possible edema.", "No edema."]
    found = stated(RulesLabeler()(reports))
    mean = torch.tensor([0.5, 0.75, float("nan"), 1.0, 0.75], dtype=torch.float64)
    line = describe_selection(Selection(), Measured(0, mean, DEVIATION), found)
    assert "2 of 5 training studies are left out" in line
    assert "over 8 completions (mean reward 0.750)" in line
    assert "Cardiomegaly 1 of 2, Edema 1 of 2" in line
    some = DEVIATION.clone()
    some[0] = torch.nan  # not sampled
    line = describe_selection(Selection(), Measured(0, mean, some), found)
    assert "1 of 4 training studies that were sampled of 5 are left out" in line
    assert "Cardiomegaly 0 of 1, Edema 1 of 2" in line
    assert selected_weights(Selection(use="weight"), some).tolist() == [0, 0.3, 0.1, 0, 0.2]


def test_settings_in_words_and_as_a_dict():
    assert as_selection("variance") == Selection()
    assert as_selection({"every": 5}) == Selection(every=5)
    assert as_selection(None) is None


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("entropy", "select to be 'variance' or its settings, but got 'entropy'"),
        ({"samples": 1}, "select.samples to be at least 2, but got 1"),
        ({"studies": -1}, "select.studies to be at least 0, but got -1"),
        ({"every": -1}, "select.every to be at least 0, but got -1"),
        ({"use": "drop"}, "select.use to be 'keep' or 'weight', but got 'drop'"),
        ({"by": "mean"}, "select.by to be 'variance', but got 'mean'"),
        ({"least": -0.1}, "select.least to be at least 0, but got -0.1"),
    ],
)
def test_refused_settings(select, message):
    with pytest.raises(ValueError, match=message):
        ReportDataModule(select=select)

"""Balanced sampling: expected numbers, order, ranks and resuming; weights by hand."""

from collections import Counter

import lightning as L
import pytest
import torch

from mrg.datamodules.balance import draw, study_weights
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.loading import StudySampler
from mrg.metrics import RulesLabeler
from tests.datamodules.test_loading import write_studies

REPORTS = ["Cardiomegaly.", "Cardiomegaly with edema.", "The lungs are clear.", "Possible edema.", "No edema."]


def test_weights_by_hand():
    labeler = RulesLabeler()
    factors = {"Cardiomegaly": 2, "Edema": 0.5}
    assert study_weights(factors, REPORTS, labeler).tolist() == [2, 2, 1, 0.5, 1]  # the larger one; a denial has none
    # Both conditions are in two reports; a third report of one makes the other 1.5 times as rare.
    assert study_weights("inverse_prevalence", [*REPORTS, "Cardiomegaly."], labeler).tolist() == [1, 1.5, 1, 1.5, 1, 1]


def test_each_study_is_drawn_within_one_of_its_expected_number():
    weights = torch.tensor([1.0, 3.0, 0.5, 1.0, 7.0, 0.1, 1.0, 2.0], dtype=torch.float64)
    expected = weights * len(weights) / weights.sum()
    total = torch.zeros(len(weights))
    for seed in range(2000):
        drawn = draw(weights, torch.Generator().manual_seed(seed))
        assert len(drawn) == len(weights)
        counts = torch.tensor([Counter(drawn)[i] for i in range(len(weights))])
        assert bool(((counts - expected).abs() < 1).all())
        total += counts
    assert torch.allclose(total / 2000, expected.float(), atol=0.05)


def test_equal_weights_draw_each_study_once_in_random_order():
    orders = [draw(torch.full((50,), 2.0, dtype=torch.float64), torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(50))] * 2
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_ranks_share_one_order_and_resume_within_it(num_ranks):
    weights = torch.arange(1.0, 11.0, dtype=torch.float64)
    (whole,) = [StudySampler(range(10), 5, weights=weights)]
    whole.set_epoch(3)
    parts = [StudySampler(range(10), 5, num_ranks, rank, 3, weights=weights) for rank in range(num_ranks)]
    together = [index for step in zip(*parts, strict=True) for index in step]
    assert together == list(whole)
    resumed = StudySampler(range(10), 5, num_ranks, 0, 3, start=2, weights=weights)
    assert list(resumed) == list(parts[0])[2:]
    resumed.set_epoch(4)
    whole.set_epoch(4)
    assert list(resumed) == list(whole)[::num_ranks]


class Data(ReportDataModule):
    def __init__(self, studies, **kwargs):
        super().__init__(num_workers=0, batch_size=2, **kwargs)
        self.given = studies

    def read(self):
        return {"train": self.given, "val": self.given, "test": self.given}


class Reader(L.LightningModule):
    """Notes the studies of its batches."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.layer = torch.nn.Linear(1, 1)
        self.labeler = RulesLabeler()

    def setup(self, stage):
        self.trainer.datamodule.collator = lambda studies: [study.id for study in studies]

    def training_step(self, batch, batch_idx):
        self.seen += batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_run_draws_rare_findings_more_often(tmp_path):
    studies = write_studies(tmp_path, 30)  # every third one has an enlarged heart
    counts = {}
    for balance in (None, {"Cardiomegaly": 4}):
        L.seed_everything(0, verbose=False)
        module = Reader()
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        L.Trainer(max_epochs=4, accelerator="cpu", enable_model_summary=False, **options).fit(
            module, Data(studies, balance=balance)
        )
        assert len(module.seen) == 4 * 30
        rare = {study.id for study in studies if "enlarged" in study.report}
        counts[str(balance)] = sum(name in rare for name in module.seen)
    assert counts["None"] == 4 * 10
    assert counts["{'Cardiomegaly': 4}"] == pytest.approx(4 * 20, abs=4)  # 40 of 60 in weight


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ({"Cardiomegally": 2}, "conditions, but got 'Cardiomegally'; did you mean 'Cardiomegaly'"),
        ({"Edema": 0}, "balance.Edema to be above 0, but got 0"),
        ("prevalence", "'inverse_prevalence' or factors by condition"),
    ],
)
def test_refused_settings(balance, message):
    with pytest.raises(ValueError, match=message):
        Data([], balance=balance)


def test_a_condition_that_no_report_states():
    with pytest.raises(ValueError, match="No training report states Fracture: remove it"):
        study_weights({"Fracture": 3}, REPORTS, RulesLabeler())

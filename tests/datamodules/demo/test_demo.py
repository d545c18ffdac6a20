import dataclasses

import numpy as np
import pytest

from mrg.datamodules.demo import PREVALENCE, DemoDataModule, World, make_study
from mrg.datamodules.demo.images import frontal, sample_body
from mrg.metrics import NEGATIVE, POSITIVE, UNCERTAIN, RulesLabeler


def test_same_seed_same_study_and_splits_are_apart():
    first, again = (make_study(World(), 3, "train", 5, 112) for _ in range(2))
    assert first.report == again.report
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first.views, again.views, strict=True))
    for other in (
        make_study(World(), 4, "train", 5, 112),
        make_study(World(), 3, "val", 5, 112),
        make_study(World(), 3, "train", 6, 112),
    ):
        assert not np.array_equal(first.views[0].image, other.views[0].image)


@pytest.mark.parametrize("condition", [c for c in PREVALENCE if c != "Support Devices"] + ["Support Devices"])
def test_each_condition_is_visible_and_grows_with_its_strength(condition):
    def draw(strength):
        rng = np.random.default_rng(1)
        body = sample_body(rng)
        image = frontal(np.random.default_rng(2), body, {condition: strength} if strength else {}, {condition: 1}, 112)
        return image.astype(float)

    without, weak, strong = draw(0.0), draw(0.4), draw(1.0)
    # The same noise in all three, so that a difference is the structure.
    assert 0 < np.abs(weak - without).mean() < np.abs(strong - without).mean()
    assert np.abs(strong - without).max() > 20  # grey levels, against a noise of 9


def test_the_world_is_as_described():
    data = DemoDataModule(num_train=600, num_val=10, num_test=10)
    data.setup()
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [600, 10, 10]
    studies = data.splits["train"]
    assert sum(len(study.views) == 2 for study in studies) / 600 == pytest.approx(World().lateral, abs=0.06)
    labels = RulesLabeler()(data.train_reports())
    positive = ((labels == POSITIVE) | (labels == UNCERTAIN)).double().mean(0)
    assert (positive[:13] > 0.05).all()
    assert float((labels[:, :13] == UNCERTAIN).any(1).double().mean()) > 0.1
    # Few reports are worded alike.
    assert len(set(data.train_reports())) > 540


def test_omission_and_health_steer_the_reports():
    def labels(**changes):
        world = dataclasses.replace(World(), **changes)
        return RulesLabeler()([make_study(world, 0, "train", i, 56).report for i in range(200)])

    assert (labels(healthy=1.0)[:, :13] == POSITIVE).sum() == 0
    complete, terse = ((labels(omission=o) == NEGATIVE).double().sum(1).mean() for o in (0.0, 0.7))
    assert float(terse) < 0.5 * float(complete)

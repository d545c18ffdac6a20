"""Studies without a reference are predicted, but neither trained on nor scored."""

import dataclasses
import json

import pytest

from mrg.callbacks.results import ResultWriter
from mrg.modules.baselines import ConstantNormal
from mrg.modules.sft import SFTModule
from tests.modules.test_grpo import SETTINGS, FixedData, trainer


class Kept(FixedData):
    """Each split has the given studies, of which every other one lacks its report."""

    def read(self):
        kept = [dataclasses.replace(s, report=s.report if i % 2 else " \n") for i, s in enumerate(self.given)]
        return dict.fromkeys(("train", "val", "test"), kept)


def names(studies):
    return [study.id for study in studies]


def test_splits_have_references_and_a_prediction_has_all_studies(studies):
    data = Kept(studies)
    data.setup()
    assert {split: names(part) for split, part in data.splits.items()} == dict.fromkeys(
        ("train", "val", "test"), names(studies[1::2])
    )
    assert names(data.to_predict()) == names(studies)
    assert data.no_reference == dict.fromkeys(("train", "val", "test"), names(studies[::2]))
    assert data.train_reports() == [study.report for study in studies[1::2]]
    assert data.describe() == (
        "Kept (train 4, val 4, test 4; without a reference, neither trained on nor scored: train 4, val 4, test 4)"
    )
    checked = Kept(studies)
    checked.checking = True
    checked.setup()
    assert names(checked.splits["test"]) == names(studies)
    assert checked.no_reference == {}


def test_a_subset_is_one_of_studies_with_references(studies):
    data = Kept(studies, limit_test=2)
    data.setup()
    assert len(data.splits["test"]) == len(data.to_predict()) == 2
    assert all(study.report.strip() for study in data.splits["test"])
    assert data.describe().endswith("val 4, test 4; random subset: test 2 of 4)")


def test_a_test_excludes_and_counts_them_as_if_they_were_not_there(studies, tmp_path, capsys):
    results, rows = {}, {}
    for name, data in (("kept", Kept(studies)), ("dropped", FixedData(studies[1::2]))):
        data.read = data.read if name == "kept" else lambda: dict.fromkeys(("train", "val", "test"), studies[1::2])
        folder = tmp_path / name
        trainer(0, callbacks=[ResultWriter(folder)]).test(ConstantNormal(), data, verbose=False)
        results[name] = json.loads((folder / "results.json").read_text())
        rows[name] = (folder / "predictions.jsonl").read_text()
    assert rows["kept"] == rows["dropped"]
    excluded = [result["protocol"].pop("no_reference") for result in results.values()]
    assert excluded == [names(studies[::2]), []]
    assert results["kept"]["systems"] == results["dropped"]["systems"]
    assert results["kept"]["best_constant"] == results["dropped"]["best_constant"]
    lines = capsys.readouterr().out.splitlines()
    assert f"Excluded: 4 studies of the test split have no reference: {', '.join(names(studies[::2]))}." in lines
    assert len([line for line in lines if line.startswith("Excluded")]) == 1


def test_a_prediction_has_a_report_for_each_study(studies, tmp_path):
    trainer(0, callbacks=[ResultWriter(tmp_path)]).predict(ConstantNormal(), Kept(studies))
    rows = [json.loads(line) for line in (tmp_path / "predict.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == names(studies)
    assert all(row["prediction"] for row in rows)


def test_training_does_not_teach_empty_reports(policy, studies, tmp_path):
    policy.save(tmp_path)
    seen = []

    class Spy(SFTModule):
        def training_step(self, batch, batch_idx):
            seen.extend(batch.target)
            return super().training_step(batch, batch_idx)

    trainer(4).fit(Spy(policy=str(tmp_path), **{**SETTINGS, "max_new_tokens": 150}), Kept(studies, batch_size=1))
    assert sorted(seen) == sorted(study.report for study in studies[1::2])


def test_a_test_split_without_references_can_only_be_predicted(studies, tmp_path):
    blank = [dataclasses.replace(study, report="") for study in studies]
    data = FixedData(blank)
    with pytest.raises(ValueError, match=r"no studies to load: .* scored: train 8, val 2, test 3\). Only `predict`"):
        trainer(0).test(ConstantNormal(), data, verbose=False)
    trainer(0, callbacks=[ResultWriter(tmp_path)]).predict(ConstantNormal(), FixedData(blank))
    assert len((tmp_path / "predict.jsonl").read_text().splitlines()) == 3

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from mrg.callbacks.results import ResultWriter
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.errors import DecoderMissingError, ImageReadError
from mrg.datamodules.loading import BatchDataset, RankBatches, SkippingCollator, StudySampler
from mrg.datamodules.study import Study, View
from mrg.modules.baselines import ConstantNormal, NearestImage
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.sft import SFTModule
from tests.nested import nested

ROOT = Path(__file__).parents[2]
SETTINGS = {"prompt": "Report:", "think": "absent", "max_new_tokens": 6, "max_pixels": 112 * 112}
REPORTS = ("The heart is enlarged. No pneumothorax.", "Small left pleural effusion.", "The lungs are clear.")


def write_studies(folder: Path, count: int, bad: tuple[int, ...] = ()) -> list[Study]:
    """Studies of one image each; the images of some are truncated."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    studies = []
    for index in range(count):
        file = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (60, 60), dtype=np.uint8)).save(file)
        if index in bad:
            file.write_bytes(file.read_bytes()[:1500])
        studies.append(Study(f"s{index}", (View(file),), REPORTS[index % 3]))
    return studies


class Splits(ReportDataModule):
    def __init__(self, splits: dict[str, list[Study]], **kwargs) -> None:
        super().__init__(**{"num_workers": 0, "batch_size": 4, "eval_batch_size": 2, **kwargs})
        self.given = splits

    def read(self) -> dict[str, list[Study]]:
        return self.given


@pytest.fixture
def collate(policy) -> StudyCollator:
    return StudyCollator(policy.processor, "Report:")


def ids(collate, studies, indices, replace=True):
    batch = SkippingCollator(collate, studies, "train", replace)(indices)
    return batch.study_id, [study.id for study in batch.skipped]


def test_a_batch_without_bad_images_is_the_collators_own(collate, tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 3)
    batch, own = SkippingCollator(collate, studies, "val", False)([2, 0]), collate([studies[2], studies[0]])
    assert batch.skipped == ()
    assert batch.study_id == ["s2", "s0"]
    assert torch.equal(batch.pixel_values, own.pixel_values)
    assert torch.equal(batch.prompt_ids, own.prompt_ids)


def test_in_training_the_next_study_that_can_be_read_takes_the_place(collate, tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 8, bad=(1, 3, 7))
    assert ids(collate, studies, [0, 1]) == (["s0", "s2"], ["s1"])  # 1 is in the batch, 2 is the next
    assert ids(collate, studies, [2, 1]) == (["s2", "s4"], ["s1", "s3"])
    assert ids(collate, studies, [6, 7]) == (["s6", "s0"], ["s7"])  # around the end
    assert ids(collate, studies, [1, 3, 7]) == (["s2", "s4", "s5"], ["s1", "s3", "s7"])
    for _ in range(2):
        assert ids(collate, studies, [7, 5, 3]) == (["s0", "s5", "s2"], ["s7", "s3", "s1"])


def test_where_none_is_left_those_of_the_batch_come_again(collate, tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 4, bad=(0, 1))
    assert ids(collate, studies, [0, 1, 2, 3])[0] == ["s2", "s3", "s2", "s3"]
    assert ids(collate, studies, [0, 1, 2])[0] == ["s3", "s2", "s2"]


def test_in_evaluation_nothing_takes_the_place(collate, tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 4, bad=(0, 1))
    assert ids(collate, studies, [1, 2], replace=False) == (["s2"], ["s1"])
    batch = SkippingCollator(collate, studies, "val", False)([1, 2])
    assert (batch.counts, batch.num_counted) == (True, 1)


def test_one_stands_in_for_a_batch_of_bad_images_and_does_not_count(collate, tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 4, bad=(0, 1))
    batch = SkippingCollator(collate, studies, "val", False)([0, 1])
    assert batch.study_id == ["s2"]
    assert (batch.counts, batch.num_counted) == (False, 0)
    assert [study.reason for study in batch.skipped] == [
        f"Study s{i}: Image {tmp_path / f'{i}.png'} is truncated at 1500 bytes; copy it again." for i in (0, 1)
    ]


def test_a_split_of_bad_images_is_an_error(collate, tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 3, bad=(0, 1, 2))
    for replace in (True, False):
        with pytest.raises(ValueError, match=r"No study of split 'train' can be read: Study s0:"):
            ids(collate, studies, [0], replace)


def test_a_missing_decoder_is_never_skipped(collate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = write_studies(tmp_path, 2)

    def missing(path: Path) -> None:
        raise DecoderMissingError(
            f"Image {path} is DICOM, which needs pydicom: pip install -e '.[dicom]' in the checkout"
        )

    monkeypatch.setattr("mrg.datamodules.study.read_image", missing)
    with pytest.raises(DecoderMissingError, match=r"Study s0: .* pip install"):
        ids(collate, studies, [0, 1])


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument `on_error` to be one of 'raise', 'skip', but got 'ignore'"):
        Splits({}, on_error="ignore")


def trainer(folder: Path, **kwargs) -> L.Trainer:
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        **{**options, "enable_model_summary": False, "max_epochs": 1, "callbacks": [ResultWriter(folder)], **kwargs}
    )


@pytest.fixture
def saved(policy, tmp_path: Path) -> str:
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


def sft(saved: str) -> SFTModule:
    return SFTModule(policy=saved, lora=LoRA(2), **SETTINGS)


def grpo(saved: str) -> GRPOModule:
    return GRPOModule(**nested(policy=saved, lora=LoRA(2), group_size=2, **SETTINGS))


def seen(module) -> list[list[str]]:
    """The ids of each training batch, as they come."""
    batches, step = [], module.training_step

    def training_step(batch, batch_idx):
        batches.append(batch.study_id)
        return step(batch, batch_idx)

    module.training_step = training_step
    return batches


@pytest.mark.parametrize("make", [sft, grpo])
def test_raise_names_study_and_file(saved: str, tmp_path: Path, make) -> None:
    studies = write_studies(tmp_path / "images", 4, bad=(2,))
    with pytest.raises(
        ImageReadError, match=r"^Study s2: Image .*2\.png is truncated at 1500 bytes; copy it again\. To skip "
    ):
        trainer(tmp_path, limit_val_batches=0).fit(make(saved), Splits({"train": studies, "val": [], "test": []}))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("make", [sft, grpo])
def test_fit_goes_on_without_the_bad(
    saved: str, tmp_path: Path, make, num_workers: int, caplog: pytest.LogCaptureFixture, capsys
) -> None:
    train = write_studies(tmp_path / "train", 9, bad=(0, 5))
    val = write_studies(tmp_path / "val", 5, bad=(0, 1))  # one batch is bad as a whole
    runs = []
    for _ in range(2):
        caplog.clear()
        module, data = make(saved), Splits({"train": train, "val": val, "test": []}, on_error="skip",
                                           num_workers=num_workers)  # fmt: skip
        batches = seen(module)
        L.seed_everything(3)
        fit = trainer(tmp_path, max_epochs=2)
        with caplog.at_level(logging.WARNING):
            fit.fit(module, data)
        runs.append(batches)
        assert [len(batch) for batch in batches] == [4, 4, 4, 4]
        assert not {"s0", "s5"} & {name for batch in batches for name in batch}
        assert all(len(set(batch)) == 4 for batch in batches)
        assert {split: sorted(found) for split, found in data.skipped.items()} == {
            "train": ["s0", "s5"],
            "val": ["s0", "s1"],
            "test": [],
            "predict": [],
        }
        warned = [record.getMessage() for record in caplog.records if " so far): " in record.getMessage()]
        assert len(warned) == 4  # once for each, whatever the epochs
        assert any("Study s5: Image" in line and "is truncated at 1500 bytes" in line for line in warned)
        assert module.num_scored == 3
        assert np.isfinite(float(fit.callback_metrics["val/mccs"]))
    assert runs[0] == runs[1]
    assert "Skipped in train: 2 of 9 studies" in caplog.text


def test_validation_equals_that_of_the_good_alone(saved: str, tmp_path: Path) -> None:
    val = write_studies(tmp_path / "val", 7, bad=(0, 1, 6))
    good = [study for i, study in enumerate(val) if i not in (0, 1, 6)]
    scores = []
    for studies, on_error in ((val, "skip"), (good, "raise")):
        data = Splits({"train": good, "val": studies, "test": []}, on_error=on_error)
        (metrics,) = trainer(tmp_path).validate(sft(saved), data, verbose=False)
        scores.append(metrics)
    # The loss is a mean over batches, which are cut elsewhere.
    for name in ("val/mccs", "val/ce_f1", "val/ce_f1_macro", "val/format"):
        assert scores[0][name] == pytest.approx(scores[1][name]), name
    assert np.isfinite(scores[0]["val/loss"])


def test_test_counts_what_was_skipped(saved: str, tmp_path: Path, caplog) -> None:
    test = write_studies(tmp_path / "test", 5, bad=(3,))
    data = Splits({"train": test[:3], "val": [], "test": test}, on_error="skip")
    trainer(tmp_path / "run").test(sft(saved), data, verbose=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s4"]
    assert results["num_studies"] == 4
    reason = f"Study s3: Image {tmp_path / 'test' / '3.png'} is truncated at 1500 bytes; copy it again."
    assert results["protocol"]["skipped"] == {"count": 1, "studies": [{"id": "s3", "reason": reason}]}
    assert results["protocol"]["data"]["test"] == 5
    assert "Skipped in test: 1 of 5 studies with unreadable images" in caplog.text


def test_predict_goes_on_without_the_bad(saved: str, tmp_path: Path, caplog) -> None:
    test = write_studies(tmp_path / "test", 4, bad=(0, 1))
    data = Splits({"train": test[2:], "val": [], "test": test}, on_error="skip")
    trainer(tmp_path / "run").predict(sft(saved), data)
    rows = [json.loads(line) for line in (tmp_path / "run" / "predict.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["s2", "s3"]
    assert "Skipped in predict: 2 of 4 studies" in caplog.text


@pytest.mark.parametrize("tower", [False, True])
def test_the_nearest_image_is_looked_for_among_the_good(saved: str, tmp_path: Path, tower: bool) -> None:
    train = write_studies(tmp_path / "train", 6, bad=(0, 2, 3))
    test = [dataclasses.replace(train[i], id=f"t{i}", report=REPORTS[0]) for i in (3, 4, 1)]
    data = Splits({"train": train, "val": [], "test": test}, on_error="skip")
    module = NearestImage(tower=saved if tower else "", max_pixels=112 * 112 if tower else 0)
    trainer(tmp_path / "run").test(module, data, verbose=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [(row["id"], row["prediction"]) for row in rows] == [("t4", train[4].report), ("t1", train[1].report)]
    assert sorted(data.skipped["train"]) == ["s0", "s2", "s3"]


def test_a_baseline_that_reads_no_images_skips_none(tmp_path: Path) -> None:
    test = write_studies(tmp_path / "test", 3, bad=(0,))
    data = Splits({"train": test, "val": [], "test": test}, on_error="skip")
    trainer(tmp_path / "run").test(ConstantNormal(), data, verbose=False)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["num_studies"] == 3


def test_a_score_of_nothing_is_an_error(saved: str, tmp_path: Path) -> None:
    studies = write_studies(tmp_path / "images", 4, bad=(0, 1))
    data = Splits({"train": studies, "val": studies, "test": studies}, on_error="skip")
    one = {"limit_val_batches": 1, "limit_test_batches": 1, "num_sanity_val_steps": 0}
    with pytest.raises(ValueError, match=r"No study of split 'val' could be scored: Study s0: .* truncated"):
        trainer(tmp_path, **one).validate(sft(saved), data, verbose=False)
    with pytest.raises(ValueError, match=r"No study of split 'test' could be scored: Study s0: .* truncated"):
        trainer(tmp_path, **one).test(sft(saved), data, verbose=False)
    with pytest.raises(ValueError, match="No study of split 'val' could be scored"):
        trainer(tmp_path, **one).fit(grpo(saved), data)


def test_a_study_is_read_once_a_batch(collate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mrg.datamodules.study as module

    read, files = module.read_image, []
    monkeypatch.setattr(module, "read_image", lambda path: files.append(path.name) or read(path))
    studies = write_studies(tmp_path, 6, bad=(1,))
    two = dataclasses.replace(studies[0], views=(*studies[0].views, *studies[4].views))
    SkippingCollator(collate, [two, *studies[1:]], "train", True)([0, 1, 2])
    assert files == ["0.png", "4.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_ranks_with_unequal_numbers_of_bad_images_do_not_wait_for_each_other(
    saved: str, tmp_path: Path, strategy: str
) -> None:
    command = [sys.executable, "-m", "tests.datamodules.skip_on_ranks", saved, str(tmp_path), strategy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert np.isfinite([metrics["val/loss"], metrics["val/mccs"], metrics["val/format"]]).all()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["num_studies"] == 5
    assert [study["id"] for study in results["protocol"]["skipped"]["studies"]] == ["s0", "s2", "s5"]
    assert "Skipped in val: 4 of 8 studies" in done.stderr


def orders(num_studies, num_ranks=1, **kwargs):
    return [
        list(StudySampler(range(num_studies), num_ranks=num_ranks, rank=rank, **kwargs)) for rank in range(num_ranks)
    ]


def test_each_study_once_in_an_order_of_seed_and_epoch_alone():
    first = orders(20, seed=3)[0]
    torch.rand(7)  # the global generator has no say
    assert sorted(first) == list(range(20))
    assert first == orders(20, seed=3)[0]
    others = [orders(20, seed=4)[0], orders(20, seed=3, epoch=1)[0], orders(20, seed=2, epoch=1)[0]]
    assert len({tuple(order) for order in [first, *others]}) == 4


def test_ranks_share_the_batches_of_one():
    whole = orders(12, seed=0)[0]
    parts = orders(12, num_ranks=2, seed=0)
    for batch in range(3):
        union = {study for part in parts for study in part[2 * batch : 2 * batch + 2]}
        assert union == set(whole[4 * batch : 4 * batch + 4])


@pytest.mark.parametrize(("num_studies", "num_ranks"), [(7, 2), (2, 3), (1, 4)])
def test_uneven_ranks_repeat_studies(num_studies, num_ranks):
    parts = orders(num_studies, num_ranks, seed=0)
    assert len({len(part) for part in parts}) == 1
    assert {study for part in parts for study in part} == set(range(num_studies))
    assert len(parts[0]) == len(StudySampler(range(num_studies), 0, num_ranks))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_an_epoch_goes_on_and_the_next_is_whole(num_ranks):
    for rank in range(num_ranks):
        whole = StudySampler(range(10), 0, num_ranks, rank)
        resumed = StudySampler(range(10), 0, num_ranks, rank, epoch=2, start=3)
        whole.set_epoch(2)
        resumed.set_epoch(2)
        assert list(resumed) == list(whole)[3:]
        assert len(resumed) == len(whole)  # Lightning counts batches from the epoch's beginning
        whole.set_epoch(3)
        resumed.set_epoch(3)
        assert list(resumed) == list(whole)


@pytest.mark.parametrize("num_studies", [1, 2, 5, 7, 12])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_every_study_counts_once_and_ranks_make_equally_many_batches(num_studies, batch_size, num_ranks):
    ranks = [RankBatches(num_studies, batch_size, num_ranks, rank) for rank in range(num_ranks)]
    counted = [index for rank in ranks for indices, counts in rank for index in indices if counts]
    assert sorted(counted) == list(range(num_studies))
    assert len({len(list(rank)) for rank in ranks}) == 1
    assert all(len(list(rank)) == len(rank) for rank in ranks)
    assert all(0 < len(indices) <= batch_size for rank in ranks for indices, _ in rank)


def test_by_hand():
    first, second = (list(RankBatches(7, 3, 2, rank)) for rank in range(2))
    assert first == [([0, 2, 4], True), ([6], True)]
    assert second == [([1, 3, 5], True), ([0], False)]


def test_a_batch_says_whether_it_counts(policy, studies):
    batches = BatchDataset(StudyCollator(policy.processor, "Report:"), studies)
    assert batches[[2, 5], True].study_id == [studies[2].id, studies[5].id]
    assert batches[[2, 5], True].num_counted == 2
    assert batches[[0], False].num_counted == 0


@pytest.mark.parametrize("num_studies", [1, 5, 12])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_resumed_evaluation_computes_what_is_left_in_the_same_batches(num_studies, batch_size, num_ranks):
    generator = torch.Generator().manual_seed(num_studies)
    for share in (0.0, 0.3, 0.8, 1.0):
        finished = {i for i in range(num_studies) if float(torch.rand((), generator=generator)) < share}
        whole = [list(RankBatches(num_studies, batch_size, num_ranks, rank)) for rank in range(num_ranks)]
        ranks = [list(RankBatches(num_studies, batch_size, num_ranks, rank, finished)) for rank in range(num_ranks)]
        for before, after in zip(whole, ranks, strict=True):
            left = [[i for i in batch if i not in finished] for batch, counts in before if counts]
            assert [batch for batch, counts in after if counts] == [batch for batch in left if batch]
        assert {len(rank) for rank in ranks} == {max(1, *(sum(counts for _, counts in rank) for rank in ranks))}

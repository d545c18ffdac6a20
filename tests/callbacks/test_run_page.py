"""What a run leaves in its folder while it trains, when it ends and when it fails."""

import csv
import dataclasses
import json

import lightning as L
import pytest
import torch

from mrg.callbacks.run_page import RunPage
from mrg.cli import main
from mrg.metrics import MCCS, RulesLabeler, ce_f1
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import CONSTANT_NORMAL
from mrg.modules.rollout.sampling import sample
from tests.callbacks.runs import fit_arguments, grpo_arguments


class Fails(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 2:
            raise OSError("the disk is <full>")


class Snoops(L.Callback):
    """Keeps what the folder says in the middle of the run."""

    seen = None

    def on_train_end(self, trainer, *args):
        Snoops.seen = json.loads((type(self).folder / "run.json").read_text())


@pytest.fixture
def often(monkeypatch):
    """A page after each step, whatever it costs."""
    monkeypatch.setattr("mrg.callbacks.run_page.PAUSE", 0)
    monkeypatch.setattr(RunPage.__init__, "__defaults__", (0.0,))


def state(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_that_ends_well(tmp_path, often):
    folder = tmp_path / "run"
    Snoops.folder = folder
    main(["fit", *fit_arguments(tmp_path), f"--trainer.callbacks={__name__}.Snoops"])
    assert (Snoops.seen["state"], Snoops.seen["step"]) == ("running", 3)
    last = state(folder)
    assert (last["state"], last["step"], last["num_steps"], last["error"]) == ("finished", 3, 3, None)
    assert last["studies"] == {"train": 8, "val": 4, "test": 4}
    page = (folder / "index.html").read_text()
    assert 'http-equiv="refresh"' not in page
    assert "Loss, steps 0 to 2." in page
    assert 'href="policy"' in page
    assert "Learning rate, steps 0 to 2." in page
    with (folder / "metrics.csv").open() as file:
        rates = [row["train/learning_rate"] for row in csv.DictReader(file) if row["train/learning_rate"]]
    assert len(rates) == 3
    assert all(float(rate) > 0 for rate in rates)
    main(["test", *fit_arguments(tmp_path)])
    page = (folder / "index.html").read_text()
    assert "4 studies" in page
    assert 'href="results.json"' in page


def test_the_constant_normal_report_is_scored_on_the_validation_split(tmp_path):
    from mrg.datamodules.demo import World, make_split

    main(["fit", *fit_arguments(tmp_path)])
    metric = MCCS(margin=0.3, labeler=RulesLabeler())
    target = [study.report for study in make_split(World(), 0, "val", 4, 112)]
    metric.update([CONSTANT_NORMAL] * 4, target)
    normal = state(tmp_path / "run")["constant_normal"]
    assert normal["val/mccs"] == pytest.approx(float(metric.compute()))
    assert normal["val/ce_f1"] == 0
    # The best constants are those of the training reports, scored on the validation split.
    train = [study.report for study in make_split(World(), 0, "train", 8, 112)]
    best, reference = BestConstants.of(train, RulesLabeler(), 0.3), RulesLabeler()(target)
    constant = state(tmp_path / "run")["best_constant"]
    metric.reset()
    metric.update([best.reports["MCCS"]] * 4, target)
    assert constant["val/mccs"] == pytest.approx(float(metric.compute()))
    for key, average in (("val/ce_f1", "micro"), ("val/ce_f1_macro", "macro")):
        row = torch.tensor(best.rows[f"CE-F1 {average}-13+"]).expand_as(reference)
        assert constant[key] == pytest.approx(float(ce_f1(row, reference, average=average)))
        assert constant[key] > normal[key]


def test_a_run_that_fails_says_why(tmp_path, often):
    with pytest.raises(OSError, match="disk"):
        main(["fit", *fit_arguments(tmp_path), f"--trainer.callbacks={__name__}.Fails"])
    last = state(tmp_path / "run")
    assert (last["state"], last["error"], last["step"]) == ("stopped", "OSError: the disk is <full>", 2)
    assert "the disk is &lt;full&gt;" in (tmp_path / "run" / "index.html").read_text()


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, often, monkeypatch, capsys):
    def fails(folder):
        raise OSError("no space left")

    monkeypatch.setattr("mrg.pages.run.write_run_page", fails)
    main(["fit", *fit_arguments(tmp_path)])
    assert "The page of the run could not be written: OSError: no space left" in capsys.readouterr().err
    assert (tmp_path / "run" / "policy" / "config.json").is_file()


def test_a_reward_that_fails_names_the_study_on_the_page(tmp_path, capsys, monkeypatch):
    def written(*args):  # a policy of a few steps writes no report that could be scored
        rollout = sample(*args)
        return dataclasses.replace(rollout, texts=["<report>Edema.</report>"] * len(rollout.texts))

    monkeypatch.setattr("mrg.modules.round.sample", written)
    part = [{"scorer": f"{__name__}:failing", "weight": 1}]
    main(["fit", *fit_arguments(tmp_path, "--name=sft")])
    with pytest.raises(SystemExit) as stop:
        main(["fit", *grpo_arguments(tmp_path, f"--model.init_args.reward.scorers={json.dumps(part)}")])
    assert stop.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]  # below the traceback of the failing code
    assert message.startswith("mrg: Reward `failing` failed on completion 0 (study train-0000")
    last = state(tmp_path / "run")
    assert (last["state"], last["error"]) == ("stopped", message.removeprefix("mrg: "))


def failing(preds, target):
    raise OSError("out of reach")


class Clock:
    """A clock that goes only where someone says so."""

    now = 0.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


def test_pages_cost_at_most_a_hundredth(tmp_path, monkeypatch):
    clock, pages = Clock(), []
    page = RunPage(tmp_path)

    def write(trainer):
        pages.append(clock.now)
        clock.now += 0.7
        page.written = clock.now

    monkeypatch.setattr("mrg.callbacks.run_page.time", clock)
    monkeypatch.setattr(page, "_write", write)
    page.state = {"state": "running"}
    for _ in range(1000):
        clock.now += 1.0
        page.on_train_batch_end(None, None)
    assert pages[0] == 50  # a hundred times the guess
    assert 68 < pages[1] - pages[0] < 73
    assert page.total_cost == pytest.approx(0.7 * len(pages))
    assert page.total_cost / clock.now < 0.01
    short = RunPage(tmp_path, interval=500)
    short.state, short.written = page.state, clock.now
    clock.now += 499
    short.on_train_batch_end(None, None)
    assert short.total_cost == 0

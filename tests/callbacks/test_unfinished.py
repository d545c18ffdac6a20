"""`test` and `predict` that stop anywhere: no report is lost, and --resume gives the same files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mrg.callbacks import gallery, results
from mrg.cli import main
from mrg.metrics.scorer import ReportScore
from mrg.modules.sft import SFTModule
from tests.callbacks.runs import fit_arguments
from tests.command_line import failure

ROOT = Path(__file__).parents[2]
NAMES = {"test": ("predictions.jsonl", "results.json"), "predict": ("predict.jsonl",)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a run, and its files after an undisturbed `test` and `predict`."""
    folder = tmp_path_factory.mktemp("trained")
    main(["fit", *arguments(folder)])
    found = {}
    for command, names in NAMES.items():
        main([command, *arguments(folder)])
        found[command] = [(folder / "run" / name).read_text() for name in names]
        for name in names:
            (folder / "run" / name).unlink()
    return folder, found


def arguments(folder, *options):
    size = ["--data.init_args.num_test=7", "--data.init_args.eval_batch_size=2", "--data.init_args.num_workers=0"]
    return fit_arguments(folder, *size, *options)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run at the same depth; the paths in results.json differ."""
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def batches(monkeypatch, stop=None):
    """Numbers of studies of the batches that are computed, after `stop` of which the policy fails."""
    sizes, write = [], SFTModule.write

    def counted(self, batch):
        if len(sizes) == stop:
            raise RuntimeError("out of memory")
        sizes.append(len(batch) if batch.counts else 0)
        return write(self, batch)

    monkeypatch.setattr(SFTModule, "write", counted)
    return sizes


def assert_same(trained, run, command):
    for name, expected in zip(NAMES[command], trained[1][command], strict=True):
        assert (run / "run" / name).read_text() == expected.replace(str(trained[0]), str(run))
    assert not list((run / "run").glob("*.rank*"))


@pytest.mark.parametrize("command", NAMES)
def test_a_failed_batch_loses_no_other(trained, run, monkeypatch, capsys, command):
    batches(monkeypatch, stop=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        main([command, *arguments(run)])
    pattern = run / "run" / f"{NAMES[command][0].removesuffix('.jsonl')}.rank*.jsonl"
    assert f"Warning: 4 finished reports are in {pattern}: use them with --resume auto.\n" in capsys.readouterr().err
    monkeypatch.undo()
    sizes = batches(monkeypatch)
    main([command, *arguments(run, "--resume=auto")])
    assert sizes == [2, 1]
    assert "4 of 7 reports are finished already." in capsys.readouterr().err
    assert_same(trained, run, command)


@pytest.mark.parametrize(("module", "name"), [(results, "evaluate_systems"), (gallery, "Gallery")])
def test_a_failure_after_the_last_batch_costs_no_batch(trained, run, monkeypatch, module, name):
    def fail(*args, **kwargs):
        raise RuntimeError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(RuntimeError, match="no space"):
            main(["test", *arguments(run)])
    sizes = batches(monkeypatch)
    main(["test", *arguments(run, "--resume=auto")])
    assert sizes == [0]  # Lightning needs a batch; it does not count
    assert_same(trained, run, "test")


def words(preds, target):
    return [float(len(text.split())) for text in preds]


def test_the_scores_of_lightning_are_those_of_all_studies(trained, run, monkeypatch, capsys):
    """Callbacks of a user read them, and a user's own metric of texts is one of them."""
    scores, end, setup = [], results.ResultWriter.on_test_end, SFTModule.setup

    def with_words(self, stage):
        setup(self, stage)
        self.scores["words"] = ReportScore(words)

    monkeypatch.setattr(SFTModule, "setup", with_words)

    def recorded(self, trainer, module):
        scores.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        end(self, trainer, module)

    monkeypatch.setattr(results.ResultWriter, "on_test_end", recorded)
    main(["test", *arguments(run)])
    with monkeypatch.context() as patch:
        batches(patch, stop=3)
        with pytest.raises(RuntimeError):
            main(["test", *arguments(run)])
    main(["test", *arguments(run, "--resume=auto")])
    whole, resumed = scores
    assert set(whole) >= {"test/mccs", "test/ce_f1", "test/format", "test/words"}
    assert resumed == pytest.approx(whole, abs=1e-6)


def test_what_was_written_with_other_settings_is_refused(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        batches(patch, stop=1)
        with pytest.raises(RuntimeError):
            main(["test", *arguments(run)])
    with (run / "run" / "predictions.rank0.jsonl").open() as file:
        identity = json.loads(file.readline())["identity"]
    assert all(identity[key] for key in ("policy", "checkpoint", "settings of the model", "labeler", "data"))
    code, message = failure(capsys, ["test", *arguments(run, "--resume=auto", "--data.init_args.num_test=6")])
    assert (code, "cannot be resumed: it was written with another data." in message) == (2, True)
    code, message = failure(capsys, ["test", *arguments(run, "--resume=here.ckpt")])
    assert (code, message) == (2, "mrg: Expected --resume of test to be auto, but got 'here.ckpt'.")
    main(["test", *arguments(run)])
    assert "Removing 2 finished reports in " in capsys.readouterr().err
    assert len(json.loads((run / "run" / "results.json").read_text())["systems"]) == 3


def test_reports_of_another_precision_or_another_starting_policy_are_refused(run, monkeypatch, capsys):
    """Part of the reports would be of the one, part of the other."""
    policy = shutil.copytree(run / "run" / "policy", run / "policy")
    start = arguments(run, "--name=start", "--starting_policy=true", f"--model.init_args.policy={policy}")
    with monkeypatch.context() as patch:
        batches(patch, stop=1)
        with pytest.raises(RuntimeError):
            main(["predict", *start])
    resumed = ["predict", *start, "--resume=auto"]
    code, message = failure(capsys, [*resumed, "--trainer.precision=bf16-mixed"])
    assert (code, "cannot be resumed: it was written with another trainer.precision." in message) == (2, True)
    weights = policy / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-4] + bytes(4))  # as if the folder had been written again by another run
    code, message = failure(capsys, resumed)
    assert (code, "cannot be resumed: it was written with another content of the policy." in message) == (2, True)
    weights.write_bytes(before)
    main(resumed)
    assert len((run / "start" / "predict.jsonl").read_text().splitlines()) == 7


def on_two(folder, killed, command, *options):
    """Run a command in two processes; returns exit code and output."""
    two = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    program = [sys.executable, "-m", "tests.callbacks.killed_rank", str(killed), "1", command]
    done = subprocess.run(
        [*program, *arguments(folder, *two, *options)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("command", "killed"), [("test", 1), ("predict", 0)])
def test_one_of_two_processes_is_killed_and_the_command_resumed(trained, tmp_path, command, killed):
    """Both write the reports that they have finished; the files are those of two processes that nothing disturbs."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        shutil.copytree(trained[0], folder)
    code, text = on_two(whole, -1, command)
    assert code == 0, text
    code, text = on_two(parts, killed, command)
    assert code != 0, text
    found = {path.name: path.read_text().count('"id": ') for path in (parts / "run").glob("*.rank*.jsonl")}
    assert found[f"{NAMES[command][0].removesuffix('.jsonl')}.rank{killed}.jsonl"] == 2
    assert 2 <= sum(found.values()) < 7
    code, text = on_two(parts, -1, command, "--resume=auto")
    assert code == 0, text
    assert f"{sum(found.values())} of 7 reports are finished already." in text
    for name in NAMES[command]:
        assert (parts / "run" / name).read_text() == (whole / "run" / name).read_text().replace(str(whole), str(parts))
    assert not list((parts / "run").glob("*.rank*"))

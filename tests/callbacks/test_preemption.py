"""What ends a run before its time: signals, a full disk, a round that fails."""

import os
import re
import signal
import sys
import traceback

import lightning as L
import pytest

from mrg.callbacks.checkpoint import CheckpointError
from mrg.callbacks.preemption import EndSignal, Preempted, Reporter
from mrg.datamodules.demo import DemoDataModule
from mrg.metrics.trl import RewardError
from mrg.run.checkpoints import CheckpointFolder
from tests.callbacks.resuming import Stop, differences, fit, newest, on_ranks

pytestmark = pytest.mark.filterwarnings("ignore:Sampling and training disagree")


@pytest.mark.parametrize(("stop", "saved"), [((6, "signal"), 6), ((7, "signal"), 7), ((5, "signal"), 5)])
def test_sigterm_finishes_the_round_saves_and_says_how_to_go_on(tmp_path, policy_folder, whole, capsys, stop, saved):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted) as ended:
        fit(tmp_path, "grpo", policy_folder, stop=stop, save_every=100)
    assert ended.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    path = newest(tmp_path)
    line = f"Resume with: python -m mrg fit --config {tmp_path / 'config.yaml'} --resume auto\n"
    assert f"SIGTERM: round {saved} is saved in {path}. {line}" in capsys.readouterr().err
    fit(tmp_path, "grpo", policy_folder, checkpoint=path, save_every=100)
    assert differences(whole("grpo", save_every=100), tmp_path) == []


def test_sigterm_leaves_a_validation(tmp_path, policy_folder, whole, capsys):
    with pytest.raises(Preempted):
        fit(tmp_path, "sft", policy_folder, stop=(4, "signal in validation"))
    assert newest(tmp_path).endswith("round-00000004-unvalidated.ckpt")
    assert "round 4 is saved" in capsys.readouterr().err
    fit(tmp_path, "sft", policy_folder, checkpoint=newest(tmp_path))
    assert differences(whole("sft"), tmp_path) == []


def test_the_last_checkpoint_is_named_also_where_it_was_just_written(tmp_path, policy_folder, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "_note", interrupted)
        with pytest.raises(SystemExit):
            fit(tmp_path, "sft", policy_folder)
    path = tmp_path / "checkpoints" / "round-00000001.ckpt"
    assert f"The last checkpoint is {path}. Resume with: " in capsys.readouterr().err
    # Interrupted again before it has gone on.
    monkeypatch.setattr(DemoDataModule, "train_dataloader", interrupted)
    with pytest.raises(SystemExit):
        fit(tmp_path, "sft", policy_folder, checkpoint=str(path))
    assert f"The last checkpoint is {path}. Resume with: " in capsys.readouterr().err


def test_full_disk_stops_the_run_and_leaves_the_checkpoint_before(tmp_path, policy_folder, whole, capsys, monkeypatch):
    from mrg.run import checkpoints as checkpoint_folder

    dump = checkpoint_folder._dump

    def full(checkpoint, file):
        if checkpoint["global_step"] == 6:
            file.write(b"some")
            raise OSError(28, "No space left on device")
        return dump(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder, "_dump", full)
        with pytest.raises(CheckpointError) as caught:
            fit(tmp_path, "sft", policy_folder)
    path = tmp_path / "checkpoints" / "round-00000006.ckpt"
    reason = f"The state of this round could not be saved: {path} cannot be written (No space left on device)."
    assert str(caught.value) == reason
    before = newest(tmp_path)
    assert before.endswith("round-00000005.ckpt")
    assert f"The last checkpoint is {before}. Resume with: python -m mrg fit" in capsys.readouterr().err
    assert {p.name for p in path.parent.iterdir() if p.name.startswith(".")} == set()
    fit(tmp_path, "sft", policy_folder, checkpoint=before)
    assert differences(whole("sft"), tmp_path) == []


# A validation and a checkpoint after rounds 2 and 4; the last round of the first epoch is the fifth.
@pytest.mark.parametrize("how", ["error", "interrupt"])
@pytest.mark.parametrize(("number", "settings"), [(4, {}), (6, {}), (8, {"num_minibatches": 2, "num_iterations": 2})])
def test_round_that_fails_before_its_first_step_loses_none_before_it(
    tmp_path, policy_folder, whole, capsys, number, settings, how
):
    same = {"save_every": 100, "module": settings}
    with pytest.raises(RewardError if how == "error" else SystemExit):
        fit(tmp_path, "grpo", policy_folder, fails=[number, 0, how], **same)
    path = newest(tmp_path)
    assert path.endswith(f"round-{number - 1:08d}.ckpt")
    assert f"The last checkpoint is {path}. Resume with: " in capsys.readouterr().err
    fit(tmp_path, "grpo", policy_folder, checkpoint=path, **same)
    assert differences(whole("grpo", **same), tmp_path) == []


def test_round_that_fails_after_a_step_goes_back(tmp_path, policy_folder, whole, monkeypatch):
    """In the second of two steps: the weights are no round's."""
    from mrg.modules.grpo import GRPOModule

    same = {"save_every": 100, "module": {"num_minibatches": 2}}
    step, calls = GRPOModule.step, []

    def failing(self, *args):
        calls.append(args)
        if len(calls) == 8:
            raise RuntimeError("out of memory")
        return step(self, *args)

    monkeypatch.setattr(GRPOModule, "step", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, "grpo", policy_folder, **same)
    monkeypatch.undo()
    assert newest(tmp_path).endswith("round-00000002.ckpt")
    fit(tmp_path, "grpo", policy_folder, checkpoint=newest(tmp_path), **same)
    assert differences(whole("grpo", **same), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_round_that_fails_on_one_rank_ends_both_with_its_beginning_saved(tmp_path, policy_folder, strategy):
    settings = {"kind": "grpo", "policy": policy_folder, "save_every": 100, "strategy": strategy, "devices": 2}
    code, text = on_ranks(tmp_path / "whole", settings)
    assert code == 0, text
    code, text = on_ranks(tmp_path / "parts", {**settings, "fails": [4, 1, "error"]})
    assert code != 0
    assert "OtherRankError: Rank 1 stopped the run: RewardError: no reward for" in text
    path = newest(tmp_path / "parts")
    assert path.endswith("round-00000003.ckpt")
    code, text = on_ranks(tmp_path / "parts", {**settings, "checkpoint": path})
    assert code == 0, text
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_where_a_traceback_comes_the_way_to_go_on_stands_below_it(tmp_path, policy_folder, capsys):
    with pytest.raises(Stop) as caught:
        fit(tmp_path, "sft", policy_folder, stop=(3, "step"))
    line = f"The last checkpoint is {tmp_path / 'checkpoints' / 'round-00000002.ckpt'}. Resume with: python -m mrg fit "
    printed = traceback.format_exception(caught.value)[-1]
    if sys.version_info >= (3, 11):
        assert printed.startswith(line)
        assert line not in capsys.readouterr().err
    else:
        assert line in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_terminal_that_closes_ends_a_run_like_sigterm_unless_it_is_ignored():
    trainer, before = L.Trainer(logger=False, accelerator="cpu"), signal.getsignal(signal.SIGHUP)
    try:
        for handler, name in ((signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, "SIGTERM")):
            signal.signal(signal.SIGHUP, handler)
            ending = EndSignal()
            ending.catch(trainer)
            os.kill(os.getpid(), signal.SIGHUP)
            assert (bool(ending.number), ending.name) == (name == "SIGHUP", name)
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Rank:
    """A process of a run."""

    def __init__(self, global_rank):
        self.global_rank, self.is_global_zero = global_rank, global_rank == 0


def test_the_next_rank_speaks_where_the_first_is_gone(monkeypatch):
    reporter = Reporter(patience=0.1)
    assert [reporter.is_here(Rank(number)) for number in range(3)] == [True, False, False]
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert [reporter.is_here(Rank(number)) for number in range(3)] == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_of_two_processes_is_killed_the_way_to_go_on_is_the_last_line(tmp_path, policy_folder, killed):
    settings = {"kind": "grpo", "policy": policy_folder, "devices": 2, "stop": [4, f"kill {killed}"]}
    code, text = on_ranks(tmp_path, settings)
    assert code != 0
    path = newest(tmp_path)
    line = (
        f"The last checkpoint is {path}. Resume with: python -m mrg fit --config {tmp_path / 'config.yaml'} --resume "
    )
    assert line in text.splitlines()[-1], text
    cause = ("has ended", "was killed by SIGKILL")[killed]
    assert re.search(rf"Rank {killed} \(process \d+\) {cause}", text), text

"""`fit --resume`: which checkpoint is taken, and one line where none can be."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mrg.cli import main
from mrg.run.checkpoints import CheckpointFolder
from tests.command_line import failure, sft

LONG = ["--trainer.max_steps=6", "--save_every=1"]


@pytest.fixture
def run(tmp_path, iu_tree):
    """Folder of a run of two steps."""
    main(["fit", *sft(tmp_path, "--save_every=1")])
    return tmp_path / "runs" / "iu_tiny_sft"


def state(folder):
    path, damaged = CheckpointFolder(folder / "checkpoints").newest()
    assert not damaged
    return torch.load(path, weights_only=True)["state_dict"]


def scored(folder):
    """By what the newest checkpoint's best was chosen, and what it scored."""
    path, _ = CheckpointFolder(folder / "checkpoints").newest()
    own = torch.load(path, weights_only=True)["callbacks"]["Checkpoints"]
    return own["monitor"], own["score"]


def test_auto_starts_goes_on_and_ends(tmp_path, iu_tree, capsys):
    """The same line does for a job that is started again and again."""
    again = ["fit", *sft(tmp_path, *LONG, "--resume=auto")]
    folder = tmp_path / "runs" / "iu_tiny_sft"
    main(again)
    assert f"No checkpoint in {folder / 'checkpoints'}: the run starts from the beginning.\n" in capsys.readouterr().err
    metrics, weights = (folder / "metrics.csv").read_bytes(), state(folder)
    main(again)
    assert f"Resuming after round 6 from {folder / 'checkpoints' / 'round-00000006.ckpt'}.\n" in capsys.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == metrics
    assert all(torch.equal(value, weights[name]) for name, value in state(folder).items())
    main(["test", f"--config={folder / 'config.yaml'}"])
    assert f"test: {folder / 'checkpoints' / 'best.ckpt'}\n" in capsys.readouterr().err


def test_auto_moves_the_logs_of_a_run_without_checkpoint_aside(tmp_path, run, capsys):
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    main(["fit", *sft(tmp_path, "--resume=auto")])
    assert (run / "metrics-1.csv").is_file()
    assert "starts from the beginning" in capsys.readouterr().err


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, run, capsys):
    files = CheckpointFolder(run / "checkpoints")
    newest, before = files.names()
    os.truncate(files.path / newest, 1000)
    capsys.readouterr()
    main(["fit", *sft(tmp_path, *LONG, "--resume=auto")])
    out = capsys.readouterr().err
    assert f"{files.path / newest} is damaged: 1000 bytes, but " in out
    assert "were written. Using the checkpoint before it.\n" in out
    assert f"from {files.path / before}.\n" in out
    main(["fit", *sft(tmp_path, *LONG, "--name=whole")])
    whole = state(tmp_path / "runs" / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in state(run).items())


def test_damaged_best_is_named_and_another_takes_its_place(tmp_path, run, capsys):
    files = CheckpointFolder(run / "checkpoints")
    best = files.manifest()["round-00000002.ckpt"]["best"]
    main(["fit", *sft(tmp_path, "--trainer.max_steps=4", "--trainer.val_check_interval=50", "--resume=auto")])
    os.truncate(files.path / best, 1000)  # best.ckpt is another name of it
    capsys.readouterr()
    main(["fit", *sft(tmp_path, "--trainer.max_steps=6", "--trainer.val_check_interval=50", "--resume=auto")])
    out = capsys.readouterr().err
    assert f"{files.path / best} is damaged: 1000 bytes, but " in out
    assert "were written. It was the best checkpoint; the next validation chooses a new one.\n" in out
    assert not (files.path / "best.ckpt").exists()
    main(["fit", *sft(tmp_path, "--trainer.max_steps=8", "--resume=auto")])
    assert (files.path / "best.ckpt").samefile(files.path / "round-00000008.ckpt")


def test_best_outlasts_another_monitor(tmp_path, run, capsys):
    """A name that no score has must not cost it either."""
    files = CheckpointFolder(run / "checkpoints")
    best, score = files.manifest()["round-00000002.ckpt"]["best"], scored(run)
    code, text = failure(capsys, ["fit", *sft(tmp_path, *LONG, "--keep=1", "--resume=auto", "--monitor=val/nothing")])
    assert (code, "The run logs no 'val/nothing'" in text) == (2, True)
    assert (files.path / "best.ckpt").samefile(files.path / best)
    main(["fit", *sft(tmp_path, *LONG, "--trainer.limit_val_batches=0", "--resume=auto")])
    assert scored(run) == score
    main(["fit", *sft(tmp_path, "--trainer.max_steps=8", "--resume=auto", "--monitor=val/mccs")])
    assert f"Keeping the best checkpoint by {score[0]} until val/mccs has been logged.\n" in capsys.readouterr().err
    assert (files.path / "best.ckpt").samefile(files.path / "round-00000008.ckpt")
    assert scored(run)[0] == "val/mccs"


def test_all_damaged(tmp_path, run, capsys):
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"nothing")
    code, text = failure(capsys, ["fit", *sft(tmp_path, "--resume=auto")])
    assert code == 2
    assert text.startswith(
        f"mrg: All checkpoints in {run / 'checkpoints'} are damaged: start over with --overwrite true "
    )
    for command in (["test", *sft(tmp_path)], ["fit", *sft(tmp_path, f"--resume={run / 'checkpoints' / 'best.ckpt'}")]):
        code, text = failure(capsys, command)
        assert code == 2
        assert text.startswith(f"mrg: {run / 'checkpoints' / 'best.ckpt'} is damaged")
        assert "\n" not in text


def test_what_does_not_fit_leaves_the_run_as_it_was(tmp_path, run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for options, part in (
        (["--model.init_args.tiny.num_layers=2"], "The checkpoint does not fit the policy 'tiny'"),
        (["--data.init_args.batch_size=2"], "written with 4 studies per batch, but this run has 2"),
        (["--data.init_args.limit_train=6"], "its tokenizer or frozen base differs"),
        (["--resume=nowhere.ckpt"], "Checkpoint nowhere.ckpt does not exist: check --resume."),
        ([f"--resume={run / 'config.yaml'}"], f"{run / 'config.yaml'} is damaged or no checkpoint"),
        ([f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"], "--resume and --ckpt_path are mutually exclusive"),
        (["--overwrite=true"], "--resume and --overwrite are mutually exclusive"),
        (["--save_every=0"], "0 does not conform to restriction v>0"),
    ):
        code, text = failure(capsys, ["fit", *sft(tmp_path, "--resume=auto", *options)])
        assert code == 2
        assert text.splitlines()[-1].startswith(("mrg: ", "error: "))
        assert part in text, text
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_folder_that_cannot_be_written(tmp_path, iu_tree, capsys):
    (tmp_path / "file").write_text("")
    code, text = failure(capsys, ["fit", *sft(tmp_path), f"--runs={tmp_path / 'file'}"])
    folder = tmp_path / "file" / "iu_tiny_sft"
    assert (code, text) == (
        2,
        f"mrg: Run folder {folder} cannot be written (Not a directory): check --runs and --name.",
    )


def test_checkpoints_that_cannot_be_written(tmp_path, iu_tree, capsys):
    folder = tmp_path / "runs" / "iu_tiny_sft"
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("")
    code, text = failure(capsys, ["fit", *sft(tmp_path, "--resume=auto")])
    assert (code, text.startswith(f"mrg: Run folder {folder / 'checkpoints'} cannot be written (")) == (2, True)
    assert [path.name for path in folder.iterdir()] == ["checkpoints"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a read-only file system needs root")
def test_read_only_file_system(tmp_path, iu_tree, capsys):
    place = tmp_path / "mounted"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        code, text = failure(capsys, ["fit", *sft(tmp_path), f"--runs={place}"])
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert (code, "cannot be written (Read-only file system): check --runs and --name." in text) == (2, True)


def heeded():
    """Background jobs of a shell ignore SIGINT, and those of nohup SIGHUP: a command inherits that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def signalled(argv, folder, number, send=os.kill, **kwargs):
    """A run in a process of its own that gets a signal after its first checkpoint: exit status, output and errors."""
    with subprocess.Popen(
        [sys.executable, "-m", "mrg", *argv],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeded,
        **kwargs,
    ) as process:
        try:
            limit = time.monotonic() + 120
            while not list((folder / "checkpoints").glob("round-*.ckpt")) and time.monotonic() < limit:
                time.sleep(0.02)
            send(process.pid, number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # one that heard nothing would train on
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_command(tmp_path, iu_tree, number):
    options = ["--trainer.max_steps=100000", "--trainer.val_check_interval=100000", "--save_every=1"]
    folder = tmp_path / "runs" / "iu_tiny_sft"
    argv = ["fit", *sft(tmp_path, *options)]
    code, _, err = signalled(argv, folder, number)
    path, _ = CheckpointFolder(folder / "checkpoints").newest()
    go_on = f"Resume with: python -m mrg fit --config {folder / 'config.yaml'} --resume auto\n"
    assert "Traceback" not in err
    if number == signal.SIGTERM:
        assert code == 0, err
        last = f"SIGTERM: round {int(path.stem.split('-')[1])} is saved in {path}. {go_on}"
    else:
        assert code == 130, err
        last = f"The last checkpoint is {path}. {go_on}"
    assert err.endswith(last)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_process_group_with_workers(tmp_path, iu_tree, number):
    """As from a scheduler or a terminal that closes: the workers get it, too, and must outlive the checkpoint."""
    options = ["--trainer.max_steps=100000", "--trainer.val_check_interval=100000", "--save_every=1"]
    folder = tmp_path / "runs" / "iu_tiny_sft"
    argv = ["fit", *sft(tmp_path, *options, "--data.init_args.num_workers=2")]
    code, _, err = signalled(argv, folder, number, send=os.killpg, start_new_session=True)
    assert code == 0, err
    path, damaged = CheckpointFolder(folder / "checkpoints").newest()
    assert not damaged
    saved = f"{number.name}: round {int(path.stem.split('-')[1])} is saved in {path}. "
    assert err.endswith(f"{saved}Resume with: python -m mrg fit --config {folder / 'config.yaml'} --resume auto\n")
    assert "Traceback" not in err


def test_slurm_is_asked_to_queue_the_job_again(tmp_path, iu_tree):
    """Its signal ends the round and saves, where Lightning would save in the middle of one, to a file of its own."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "asked"}\n')
    scontrol.chmod(0o755)
    options = ["--trainer.max_steps=100000", "--trainer.val_check_interval=100000", "--save_every=1"]
    folder = tmp_path / "runs" / "iu_tiny_sft"
    job = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
           "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}  # fmt: skip
    environment = {**os.environ, **job, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    code, _, err = signalled(["fit", *sft(tmp_path, *options)], folder, signal.SIGUSR1, env=environment)
    assert code == 0, err
    assert "SIGUSR1: round " in err
    assert err.endswith("SLURM job 77 is requeued.\n")
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert not list(folder.glob("hpc_ckpt*"))

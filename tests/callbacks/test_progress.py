"""The progress line on a terminal and in a file."""

import contextlib
import os
import pty
import re
import threading

import pytest

from mrg.callbacks.progress import Pace, clock, score_text
from mrg.cli import main
from tests.callbacks.runs import fit_arguments, grpo_arguments


def on_terminal(argv):
    """What a terminal gets."""
    master, slave = pty.openpty()
    parts = []

    def read():
        # Reading ends with an error once nobody holds the other side.
        with contextlib.suppress(OSError):
            while part := os.read(master, 65_536):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as file, contextlib.redirect_stdout(file):
        main(argv)
    reader.join()
    os.close(master)
    return b"".join(parts).decode()


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def test_lines_in_a_file_are_plain_and_few(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path, "--name=sft")])
    main(["fit", *grpo_arguments(tmp_path, "--trainer.val_check_interval=2", "--trainer.max_steps=4")])
    out, notes = capsys.readouterr()
    assert "\r" not in out
    assert "\x1b" not in out
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == ["step 3 of 3", "step 2 of 4", "step 4 of 4"]
    assert re.fullmatch(
        r"step 3 of 3  loss \d\.\d{3}  val loss \d\.\d{3}  MCCS 0\.\d{3}  CE-F1 0\.\d{3}  in 0:\d\d", lines[0]
    )
    assert re.fullmatch(
        r"step 2 of 4  reward 0\.\d{3}  (?:\d+% [a-z ]+  )*MCCS 0\.\d{3}  CE-F1 0\.\d{3}  [\d,]+ tokens/s  "
        r"(?:0:\d\d left|in 0:00)",
        lines[1],
    )
    run = tmp_path / "run"
    assert out.endswith(f"Policy: {run / 'policy'}\nPage: {run / 'index.html'}\nMetrics: {run / 'metrics.csv'}\n")
    assert re.search(rf"Best checkpoint: {run}/checkpoints/best.ckpt \(val/mccs 0\.\d{{3}}\)\n", out)
    assert "GRPOModule on DemoDataModule (train 8, val 4, test 4)\n" in notes


def test_a_terminal_has_one_line_that_moves(tmp_path, monkeypatch):
    out = on_terminal(["fit", *fit_arguments(tmp_path, "--name=colours")])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    assert re.search(r"training [━╸╺ ]+ 3/3 loss \d\.\d{3}  val loss \d\.\d{3}  MCCS .* in 0:\d\d", text)
    assert "validating, 0 of 1 batches" in text
    assert "step 3 of 3" not in text
    assert re.search(r"\x1b\[[0-9;]*3[0-9;]*m", out)
    monkeypatch.setenv("NO_COLOR", "1")
    out = on_terminal(["test", *fit_arguments(tmp_path, "--name=colours")])
    assert re.search(r"test [━╸╺ ]+ 1/1", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out))
    assert not re.search(r"\x1b\[[0-9;]*(3\d|38)[0-9;]*m", out)


def test_a_terminal_that_cannot_move_gets_plain_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = on_terminal(["fit", *fit_arguments(tmp_path)])
    assert "\x1b" not in out
    assert "step 3 of 3  loss" in out


def test_no_progress_where_none_is_wanted(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path, "--trainer.enable_progress_bar=false")])
    assert "step 3" not in capsys.readouterr().out


def test_the_line_says_what_stops_learning(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path, "--name=sft")])
    capsys.readouterr()
    main(["fit", *grpo_arguments(tmp_path, "--model.init_args.max_new_tokens=2")])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step 3 of 3"))
    assert re.match(r"step 3 of 3  reward \d\.\d{3}  100% truncated  100% equal rewards  MCCS ", line), line


def test_a_share_is_said_from_nine_tenths_on_and_never_rounded_up_to_all():
    trainer = Trainer()
    trainer.callback_metrics = {"reward/total": 0.5, "train/truncated": 0.899, "train/dead_groups": 0.9999}
    assert score_text(trainer) == "reward 0.500  99% equal rewards"
    trainer.callback_metrics["train/truncated"] = 0.9
    assert score_text(trainer) == "reward 0.500  90% truncated  99% equal rewards"
    trainer.callback_metrics = {"reward/total": 0.5, "train/truncated": 0.1, "train/dead_groups": 0.2}
    assert score_text(trainer) == "reward 0.500"


class Loop:
    total_batch_idx = 4


class Trainer:
    fit_loop, global_step, max_steps, max_epochs, num_training_batches = Loop(), 0, -1, 3, 10


def test_pace_by_epochs_by_steps_and_without_an_end(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("mrg.callbacks.progress.time.monotonic", lambda: now[0])
    trainer = Trainer()
    trainer.fit_loop.total_batch_idx = 4  # resumed after five batches
    pace = Pace(trainer)
    assert (pace.num_steps, pace.seconds_left, pace.text) == (30, None, "")
    trainer.fit_loop.total_batch_idx, now[0] = 9, 110.0  # five more in ten seconds
    assert (pace.step, pace.seconds_left, pace.text) == (10, 40, "0:40 left")
    trainer.max_epochs = -1
    assert (pace.num_steps, pace.seconds_left) == (None, None)
    trainer.max_steps, trainer.global_step = 8, 8
    assert Pace(trainer).num_steps == 8
    assert [clock(s) for s in (5, 75, 3_725)] == ["0:05", "1:15", "1:02:05"]

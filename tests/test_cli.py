"""The command line as a user meets it: what it prints, what it writes, and how it ends."""

import csv
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mrg
from mrg.cli import main
from mrg.modules.sft import SFTModule
from tests.command_line import CONFIGS, arguments, failure, sft
from tests.test_log import full, gone


def test_version_and_usage(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"mrg {mrg.__version__}\n"
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "demo" in capsys.readouterr().out


def test_mrg_is_a_command_too(capsys):
    """The entry point in pyproject.toml is `main`."""
    text = (CONFIGS.parent / "pyproject.toml").read_text()
    module, _, function = re.search(r'^mrg = "(.+)"$', text, re.MULTILINE)[1].partition(":")
    pkgutil.resolve_name(f"{module}:{function}")(["--version"])
    assert capsys.readouterr().out == f"mrg {mrg.__version__}\n"


def test_light_commands_do_not_import_lightning():
    code = (
        "import sys; from mrg.cli import main\n"
        "for argv in (['--version'], ['demo', '--help'], ['compare', '--help'], ['data', '--help'], ['runs', '.']):\n"
        "    try: main(argv)\n"
        "    except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "assert not {'lightning', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_from_sft_to_grpo_to_the_latest_run(tmp_path, iu_tree, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert failure(capsys, ["test"]) == (
        2,
        f"mrg: No run with a checkpoint in {tmp_path / 'runs'}: train one first, for example with "
        "`python -m mrg fit --config configs/demo_sft.yaml`.",
    )
    main(["fit", *sft(tmp_path)])
    first = tmp_path / "runs" / "iu_tiny_sft"
    assert {"config.yaml", "metrics.csv", "checkpoints", "policy"} <= {path.name for path in first.iterdir()}
    steps = ["--trainer.max_steps=3", "--trainer.val_check_interval=1", "--model.init_args.rollout.group_size=2"]
    main(["fit", *arguments(tmp_path, *steps, config="iu_tiny")])
    capsys.readouterr()
    main(["test"])
    out, notes = capsys.readouterr()
    run = Path("runs") / "iu_tiny"
    assert f"Latest run: {run}\ntest: {run / 'checkpoints' / 'best.ckpt'}\n" in notes
    results = json.loads((run / "results.json").read_text())
    assert results["protocol"]["data"] == {"module": "IUXRayDataModule", "train": 8, "val": 2, "test": 3}
    description = results["protocol"]["data_description"]
    assert description.startswith("IU X-Ray, form annotation: unknown variant with counts train 8, val 2, test 3; ")
    assert f"\nData: {description}\n" in notes
    assert results["protocol"]["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert list(dict.fromkeys(gap["b"] for gap in results["differences"])) == [
        "constant normal",
        "most frequent report",
    ]
    assert "95 % bootstrap intervals" in out
    assert "most frequent report" in out
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["test0", "test1", "test2"]
    assert {"images", "prediction", "thinking", "completion", "target", "format", "findings"} <= set(rows[0])
    main(["predict", *arguments(tmp_path, config="iu_tiny")])
    predicted = [json.loads(line) for line in (run / "predict.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in predicted] == [row["completion"] for row in rows]
    main(["validate", *arguments(tmp_path, config="iu_tiny")])
    assert "val/mccs" in capsys.readouterr().out
    # Its own configuration is still the one it was trained with, whatever was asked of it later.
    assert "max_steps: 3" in (run / "config.yaml").read_text()


def test_a_run_is_not_written_over(tmp_path, iu_tree, capsys):
    main(["fit", *sft(tmp_path)])
    run = tmp_path / "runs" / "iu_tiny_sft"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, message = failure(capsys, ["fit", *sft(tmp_path)])
    assert code == 2
    assert message == (
        f"mrg: {run} already contains a run. Resume it with --resume auto, choose another --name, or start over with "
        "--overwrite true."
    )
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    main(["fit", *sft(tmp_path, "--overwrite=true")])
    assert (run / "metrics-1.csv").read_bytes() == before[run / "metrics.csv"]


def test_a_start_that_was_refused_does_not_stand_in_the_way_of_the_next(tmp_path, iu_tree, capsys):
    code, message = failure(capsys, ["fit", *sft(tmp_path, "--model.init_args.use_indication=true")])
    assert (code, "No study has an indication" in message) == (2, True)
    main(["fit", *sft(tmp_path)])
    assert (tmp_path / "runs" / "iu_tiny_sft" / "policy").is_dir()


def test_overwriting_waits_until_nothing_can_be_refused(tmp_path, iu_tree, capsys):
    main(["fit", *sft(tmp_path)])
    run = tmp_path / "runs" / "iu_tiny_sft"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for mistake in ("--model.init_args.use_indication=true", "--keep=0", "--model.init_args.policy=/nowhere"):
        code, _ = failure(capsys, ["fit", *sft(tmp_path, "--overwrite=true", mistake)])
        assert code == 2
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    main(["fit", *sft(tmp_path, "--overwrite=true")])
    # Whoever trains by its configuration has not asked for that again.
    code, message = failure(capsys, ["fit", f"--config={run / 'config.yaml'}"])
    assert (code, "already contains a run" in message) == (2, True)


def test_overwritten_run_keeps_nothing_that_passes_for_its_own(tmp_path, iu_tree, capsys):
    main(["fit", *sft(tmp_path)])
    run = tmp_path / "runs" / "iu_tiny_sft"
    main(["fit", *sft(tmp_path, "--overwrite=true", "--trainer.limit_val_batches=0", "--trainer.callbacks=null")])
    assert not (run / "checkpoints" / "best.ckpt").exists()
    assert not (run / "policy").exists()
    code, text = failure(capsys, ["test", *sft(tmp_path)])
    assert (code, "ended before its first validation" in text) == (2, True)


def test_only_a_runs_own_checkpoint_resumes_it(tmp_path, iu_tree, capsys):
    main(["fit", *sft(tmp_path)])
    main(["fit", *sft(tmp_path, "--name=other")])
    run = tmp_path / "runs" / "iu_tiny_sft"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    foreign = tmp_path / "runs" / "other" / "checkpoints" / "best.ckpt"
    for checkpoint, message in ((foreign, "already contains a run"), (run / "lost.ckpt", "lost.ckpt does not exist")):
        code, text = failure(capsys, ["fit", *sft(tmp_path, f"--ckpt_path={checkpoint}")])
        assert (code, message in text) == (2, True)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_resumed_run_goes_on_where_it_stopped(tmp_path, iu_tree):
    """By any of the three ways to name its checkpoint, and with the same weights as in one go."""
    runs = tmp_path / "runs"
    more = "--trainer.max_steps=4"
    main(["fit", *sft(tmp_path, "--name=whole", more)])
    ways = {"auto": "--resume=auto", "named": "--resume={}", "lightning": "--ckpt_path={}"}
    for name, way in ways.items():
        main(["fit", *sft(tmp_path, f"--name={name}")])
        first = runs / name / "checkpoints" / "round-00000002.ckpt"
        assert first.samefile(runs / name / "checkpoints" / "best.ckpt")
        main(["fit", *sft(tmp_path, f"--name={name}", more, way.format(first))])
        with (runs / name / "metrics.csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file) if row["val/loss"]] == ["1", "3"]
        whole, parts = (runs / n / "checkpoints" / "round-00000004.ckpt" for n in ("whole", name))
        a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (whole, parts))
        assert all(torch.equal(a[key], b[key]) for key in a)
        # Saved is how to train such a run, not how this one was resumed: `test` must not take this checkpoint for best.
        config = (runs / name / "config.yaml").read_text()
        assert "ckpt_path: null" in config
        assert "max_steps: 4" in config
        assert str(first) not in config


def test_predictions_of_two_processes_are_those_of_one(tmp_path, iu_tree):
    main(["fit", *sft(tmp_path)])
    run = tmp_path / "runs" / "iu_tiny_sft"
    argv = ["test", *sft(tmp_path), "--data.init_args.eval_batch_size=1"]
    main(argv)
    alone = (run / "predictions.jsonl").read_text()
    more = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "mrg", *argv, *more], cwd=CONFIGS.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (run / "predictions.jsonl").read_text() == alone
    assert done.stdout.count("bootstrap intervals") == 1
    assert done.stderr.count(f"test: {run / 'checkpoints' / 'best.ckpt'}\n") == 1


def test_a_test_that_is_ended_does_not_pass_for_done(tmp_path, iu_tree, capsys, monkeypatch):
    main(["fit", *sft(tmp_path)])

    def step(module, batch, index):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SFTModule, "test_step", step)
    code, text = failure(capsys, ["test", *sft(tmp_path, "--data.init_args.eval_batch_size=1")])
    assert (code, text.splitlines()[-1]) == (143, "mrg: SIGTERM ended `test` before it was done.")
    assert not (tmp_path / "runs" / "iu_tiny_sft" / "results.json").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_ctrl_c_ends_with_the_code_of_a_shell(tmp_path, iu_tree, capsys, monkeypatch, command):
    main(["fit", *sft(tmp_path, "--save_every=1")])
    handler = signal.getsignal(signal.SIGINT)

    def step(module, batch, index):
        raise KeyboardInterrupt

    for name in ("training", "validation", "test", "predict"):
        monkeypatch.setattr(SFTModule, f"{name}_step", step)
    try:
        options = ["--resume=auto", "--trainer.max_steps=4"] if command == "fit" else []
        code, text = failure(capsys, [command, *sft(tmp_path, *options)])
        assert code == 130
        assert not any(word in text for word in ("Traceback", "mrg:", "Error"))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device")
@pytest.mark.parametrize(("broken", "code"), [(gone, 141), (full, 1)])
def test_training_outlives_its_output_and_a_list_says_that_it_is_lost(tmp_path, iu_tree, monkeypatch, broken, code):
    with broken() as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        main(["fit", *sft(tmp_path, "--trainer.enable_progress_bar=true")])
    run = tmp_path / "runs" / "iu_tiny_sft"
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert (run / "policy").is_dir()
    with broken() as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        with pytest.raises(SystemExit) as stop:
            main(["configs"])
    assert stop.value.code == code

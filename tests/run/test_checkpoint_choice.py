"""What a user hears who names a file or a folder that is no checkpoint of ours."""

import argparse
import json
import os
import zipfile

import pytest
import torch
from PIL import Image

from mrg.cli import main
from mrg.errors import UserError
from mrg.run.checkpoint_file import ForeignCheckpointError, check_ours
from mrg.run.find import latest_run, named_run
from tests.callbacks.runs import fit_arguments, grpo_arguments
from tests.command_line import failure


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with a run of three steps in `run`."""
    folder = tmp_path_factory.mktemp("runs")
    main(["fit", *fit_arguments(folder, "--save_every=1")])
    return folder


def write_values(path):
    torch.save({"a": 1, "b": 2, "c": 3, "d": 4}, path)


def write_weights(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def write_lightning(path):
    loops = {"fit_loop": {}}
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "epoch": 0, "loops": loops}, path)


def write_tensor(path):
    torch.save(torch.zeros(2), path)


def write_code(path):
    torch.save({"identity": "", "settings": argparse.Namespace(a=1)}, path)


def write_other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


FOREIGN = [
    (write_values, "it contains 'a', 'b', 'c' and 1 more"),
    (write_weights, "it contains only weights: 'weight', 'bias'"),
    (write_lightning, "it belongs to another Lightning project"),
    (write_tensor, "it contains a Tensor"),
    (write_code, "torch cannot read it without running code"),
    (write_other_archive, "torch cannot read it without running code"),
]


def said(capsys, place, *options):
    """The one line, after a check that it is one: of `validate`, and of `fit` into a new folder."""
    lines = []
    for command, setting, name in (("validate", "--ckpt_path", "run"), ("fit", "--resume", "new")):
        path, *more = options
        code, text = failure(capsys, [command, *fit_arguments(place, f"--name={name}", f"{setting}={path}", *more)])
        assert (code, text.count("\n")) == (2, 0), text
        lines.append(text.removeprefix("mrg: ").replace(setting, "SETTING"))
    assert not (place / "new" / "config.yaml").exists()
    return lines


@pytest.mark.parametrize(("write", "reason"), FOREIGN)
def test_a_file_of_torch_that_is_not_ours_is_named_with_what_it_holds(tmp_path, place, capsys, write, reason):
    path = tmp_path / "given.ckpt"
    write(path)
    line = (
        f"{path} is not a checkpoint of `python -m mrg fit`: {reason}. Expected a file such as "
        "runs/NAME/checkpoints/best.ckpt."
    )
    assert said(capsys, place, path) == [line, line]


def test_ours_are_taken(place):
    """All that a run writes."""
    paths = list((place / "run" / "checkpoints").glob("*.ckpt"))
    assert len(paths) >= 3
    for path in paths:
        check_ours(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: b"", "the file is empty"),
        (lambda whole: b"hello\n", "the file is not in torch's zip format"),
        (lambda whole: whole[: len(whole) // 2], "the file is truncated"),
    ],
)
def test_a_file_that_torch_did_not_write_or_not_to_its_end(tmp_path, place, capsys, content, reason):
    path = tmp_path / "given.ckpt"
    path.write_bytes(content((place / "run" / "checkpoints" / "best.ckpt").read_bytes()))
    assert said(capsys, place, path) == [f"{path} is damaged or no checkpoint ({reason})."] * 2


def test_a_folder_is_called_what_it_is_and_a_checkpoint_in_it_is_named(tmp_path, place, capsys):
    run, files = place / "run", place / "run" / "checkpoints"
    best, newest = files / "best.ckpt", files / "round-00000003.ckpt"
    question = "not a checkpoint: did you mean SETTING"
    assert said(capsys, place, run) == [f"{run} is the folder of a run, {question} {path}?" for path in (best, newest)]
    assert said(capsys, place, files) == [f"{files} is a folder, {question} {path}?" for path in (best, newest)]
    policy = run / "policy"
    line = f"{policy} is a policy for model.init_args.policy, not a checkpoint, and contains none: check SETTING."
    assert said(capsys, place, policy) == [line, line]
    line = f"{tmp_path} is a folder, not a checkpoint, and contains none: check SETTING."
    assert said(capsys, place, tmp_path) == [line, line]


def test_one_file_per_rank_of_another_project(tmp_path, place, capsys):
    folder = tmp_path / "sharded"
    folder.mkdir()
    write_lightning(folder / "meta.pt")
    with pytest.raises(ForeignCheckpointError, match=f"{folder} is not a checkpoint of .* another Lightning project"):
        check_ours(folder)
    first, second = said(capsys, place, folder)
    assert first.startswith(f"Checkpoint {folder} has one file per rank: add --config configs/strategy/fsdp.yaml")
    assert "another Lightning project" in second


def test_export_asks_the_same(tmp_path, place, capsys):
    write_weights(tmp_path / "w.pt")
    argv = ["export", *fit_arguments(place, f"--ckpt_path={tmp_path / 'w.pt'}", f"--output={tmp_path / 'out'}")]
    code, text = failure(capsys, argv)
    assert (code, "it contains only weights" in text) == (2, True)
    assert not (tmp_path / "out").exists()


def test_another_runs_checkpoint_is_called_that(tmp_path, place, capsys):
    main(["fit", *fit_arguments(tmp_path, "--trainer.max_steps=2")])
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.ckpt")}
    other = place / "run" / "checkpoints" / "best.ckpt"
    code, text = failure(capsys, ["fit", *fit_arguments(tmp_path, f"--resume={other}")])
    assert (code, text) == (
        2,
        f"mrg: {other} is a checkpoint of the run {place / 'run'}, but {tmp_path / 'run'} already contains a run: "
        "resume it with --resume auto, or choose a new --name for a run that starts from this checkpoint.",
    )
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.ckpt")} == before
    main(["fit", *fit_arguments(tmp_path, "--name=new", f"--resume={other}", "--trainer.max_steps=4")])
    assert f"from the state after round 3 in {other}." in capsys.readouterr().err


def test_a_checkpoint_of_sft_is_none_of_grpo(place, capsys):
    path, policy = place / "run" / "checkpoints" / "best.ckpt", place / "run" / "policy"
    given = grpo_arguments(place, "--name=grpo", f"--model.init_args.policy={policy}", f"--resume={path}")
    code, text = failure(capsys, ["fit", *given])
    assert (code, text) == (
        2,
        f"mrg: The checkpoint belongs to the run {place / 'run'}, which trained SFTModule, but this run trains "
        f"GRPOModule. To start from that run's policy, set model.init_args.policy to {policy} and pass no checkpoint.",
    )


def published(place, *options):
    """Arguments of a command with the policy of `place/run` as a published one, without a run in the folder."""
    policy = f"--model.init_args.policy={place / 'run' / 'policy'}"
    return fit_arguments(place, policy, "--model.init_args.tiny=null", "--name=zzz", *options)


@pytest.mark.parametrize("command", ["validate", "test", "predict", "export"])
def test_a_starting_policy_is_not_taken_for_a_run(tmp_path, place, capsys, command):
    options = [f"--output={tmp_path / 'out'}"] if command == "export" else []
    code, text = failure(capsys, [command, *published(place, *options)])
    assert (code, text) == (
        2,
        f"mrg: No checkpoint {place / 'zzz' / 'checkpoints' / 'best.ckpt'}, and no run in {place / 'zzz'}. Runs there: "
        f"run. To use {place / 'run' / 'policy'} itself, without training, pass --starting_policy true.",
    )
    assert not (place / "zzz").exists()
    assert not (tmp_path / "out").exists()


def test_a_starting_policy_on_demand(place, capsys):
    main(["test", *published(place, "--starting_policy=true", "--name=start")])
    protocol = json.loads((place / "start" / "results.json").read_text())["protocol"]
    assert (protocol["policy"], protocol["checkpoint"]) == (str(place / "run" / "policy"), "")
    code, text = failure(capsys, ["test", *published(place, "--starting_policy=true", "--name=run")])
    run = place / "run"
    line = f"mrg: {run} contains a trained run: choose another --name for the starting policy."
    assert (code, text.splitlines()[-1]) == (2, line)


def test_a_command_without_a_configuration_is_that_of_the_named_or_the_latest_run(place, capsys, monkeypatch):
    run, best = place / "run", place / "run" / "checkpoints" / "best.ckpt"
    for options in ([], ["--name", "run"], ["--name=run"]):
        main(["test", f"--runs={place}", "--data.init_args.limit_test=2", *options])
        err = capsys.readouterr().err
        assert f"{'Run' if options else 'Latest run'}: {run}\ntest: {best}\n" in err
        results = json.loads((run / "results.json").read_text())
        assert results["num_studies"] == 2
        assert results["protocol"]["checkpoint"] == str(best)
    for argv in (["test"], ["predict"], ["predict", "--images", "a.png"], ["validate"], ["export", "--output=x"]):
        code, text = failure(capsys, [*argv, f"--runs={place}", "--name=zzz"])
        assert (code, text) == (2, f"mrg: There is no run zzz in {place}. Runs there: run.")


def test_commands_take_a_run_by_name_or_folder(tmp_path, place, capsys, monkeypatch):
    monkeypatch.chdir(place.parent)
    run = place / "run"
    line = f"test: {run / 'checkpoints' / 'best.ckpt'}\n"
    main(["test", "run", "--data.init_args.limit_test=2", f"--runs={place}"])
    assert f"Run: {run}\n{line}" in capsys.readouterr().err
    assert json.loads((run / "results.json").read_text())["num_studies"] == 2
    folder = f"{place.name}/run"  # relative to here, while its configuration names an absolute one
    main(["validate", folder, "--data.init_args.limit_val=2"])
    assert "val/mccs" in capsys.readouterr().out
    main(["export", folder, f"--output={tmp_path / 'policy'}"])
    assert (tmp_path / "policy" / "config.json").is_file()
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    main(["predict", str(run), "--images", str(tmp_path / "a.png"), f"--output={tmp_path / 'a.jsonl'}"])
    assert json.loads((tmp_path / "a.jsonl").read_text())["id"].endswith("a.png")


def test_a_run_that_is_named_twice_or_wrongly(place, capsys):
    for argv, message in (
        (["test", "rn", f"--runs={place}"], f"There is no run rn in {place}; did you mean 'run'? Runs there: run."),
        (["test", "run", "--name=x"], "RUN (run) and --name x are mutually exclusive: both name a run."),
        (["fit", "iu"], "`fit` trains what a configuration describes: pass --config iu."),
    ):
        assert failure(capsys, argv) == (2, f"mrg: {message}")
    (place / "baseline").mkdir()
    (place / "baseline" / "predictions.jsonl").touch()
    code, text = failure(capsys, ["test", str(place / "baseline")])
    assert (code, "baseline has no config.yaml, so `test` cannot know its model and data" in text) == (2, True)
    (place / "baseline" / "predictions.jsonl").unlink()
    (place / "baseline").rmdir()


def test_the_configuration_of_one_run_is_not_used_with_the_checkpoint_of_another(tmp_path, place, capsys):
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "config.yaml").write_bytes((place / "run" / "config.yaml").read_bytes())
    (other / "checkpoints" / "best.ckpt").write_bytes((place / "run" / "checkpoints" / "best.ckpt").read_bytes())
    config = place / "run" / "config.yaml"
    code, text = failure(capsys, ["test", f"--config={config}", f"--runs={tmp_path}", "--name=other"])
    assert (code, text.splitlines()[-1]) == (
        2,
        f"mrg: {config} is the configuration of the run {place / 'run'}, but the checkpoint would be that of {other}: "
        f"leave out --config to use {other}, leave out --runs and --name to use {place / 'run'}, or pass --ckpt_path.",
    )


def test_the_latest_run_is_no_arm_of_an_ablation(tmp_path):
    for age, name in enumerate(("ablation/seed0/grpo", "demo-1/sft", "new", "old")):
        best = tmp_path / name / "checkpoints" / "best.ckpt"
        best.parent.mkdir(parents=True)
        best.touch()
        os.utime(best, (1000 - age, 1000 - age))
        (tmp_path / name / "config.yaml").touch()
    assert latest_run(tmp_path) == tmp_path / "new"
    assert named_run(tmp_path, "demo-1/sft") == tmp_path / "demo-1" / "sft"
    with pytest.raises(UserError, match=r"no run a in .*\. Runs there: ablation/seed0/grpo, demo-1/sft, new, old\."):
        named_run(tmp_path, "a")
    with pytest.raises(UserError, match=r"no run a in .*\. There are no runs\."):
        named_run(tmp_path / "nothing", "a")

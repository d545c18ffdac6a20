"""An ablation runs its arms once, in order, and says what it is not sure of."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from mrg.cli import main as mrg
from mrg.commands.ablate.command import main, run_all
from mrg.commands.ablate.configuration import Ablation, Arm, load_ablation, parse_keys
from mrg.commands.ablate.report import write_report
from mrg.modules.sft import SFTModule

CONFIGS = Path(__file__).parents[3] / "configs"
SHIPPED = load_ablation(CONFIGS / "demo_ablation.yaml")
SHIPPED_ARMS = [
    (file.stem, name)
    for file in sorted(CONFIGS.glob("*.yaml"))
    if "\narms:" in file.read_text()
    for name in load_ablation(file).arms
]
TINY = {"hidden_size": 32, "num_layers": 1, "vision_depth": 1, "vocab_size": 400}
FEW = {
    "seed_everything": "{seed}",
    "data.init_args.seed": "{seed}",
    "data.init_args.num_train": 16,
    "data.init_args.num_val": 4,
    "data.init_args.num_test": 8,
    "data.init_args.batch_size": 2,
    "trainer.max_steps": 1,
    "trainer.val_check_interval": 1,
    "trainer.callbacks": None,
    "model.init_args.max_new_tokens": 8,
}


def tiny_ablation(folder, **changes):
    arms = {
        "sft": Arm("demo_sft.yaml", set={"model.init_args.tiny": TINY}),
        "mccs": Arm("demo.yaml", start="sft", label="MCCS", set={"model.init_args.rollout.group_size": 2}),
    }
    given = {"seeds": (0, 1), "arms": arms, "base": "sft", "panels": {"Reward": ["sft", "mccs"]}, "shared": FEW}
    return Ablation(folder=folder, **{**given, **changes}, configs=CONFIGS)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    ablation = tiny_ablation(tmp_path_factory.mktemp("ablation"))
    assert run_all(ablation) == {}
    return ablation


@pytest.mark.parametrize(("file", "name"), SHIPPED_ARMS)
def test_each_shipped_arm_is_a_fit_that_parses(file, name):
    shipped = load_ablation(CONFIGS / f"{file}.yaml")
    arm = shipped.arms[name]
    options = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in shipped.settings(arm, 7).items()]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        mrg(["fit", f"--config={CONFIGS / arm.config}", *options, "--print_config"])
    assert stop.value.code == 0
    assert "seed_everything: 7\n" in out.getvalue()


def test_keys_for_every_arm():
    assert parse_keys(["data.init_args.root=a/b=c", "trainer.max_steps=3"]) == {
        "data.init_args.root": "a/b=c",
        "trainer.max_steps": 3,
    }
    for pair in ("data.init_args.root", "=x"):
        with pytest.raises(ValueError, match="followed by KEY=VALUE, but got"):
            parse_keys([pair])
    with pytest.raises(ValueError, match="each key once, but got 'a' more than once"):
        parse_keys(["a=1", "b=2", "a=1"])


def test_keys_of_the_command_come_before_those_of_an_arm():
    ablation = load_ablation(CONFIGS / "iu_small_chain.yaml")
    given = ablation.with_keys({"trainer.max_steps": 2, "data.init_args.root": "a"})
    for name, arm in given.arms.items():
        own = ablation.settings(ablation.arms[name], 0)
        assert given.settings(arm, 0) == {**own, "trainer.max_steps": 2, "data.init_args.root": "a"}
    assert ablation.arms["grpo"].set["trainer.max_steps"] == 120  # the one that was read is as it was


def test_shipped_arms_differ_in_what_they_say_they_do():
    assert len(SHIPPED.seeds) == 3
    grpo = {name: SHIPPED.settings(arm, 0) for name, arm in SHIPPED.arms.items() if arm.config == "demo.yaml"}
    base = grpo.pop("mccs")
    assert {key for key in base if grpo["mccs_7"][key] != base[key]} == {"model.init_args.margin"}
    for keys in grpo.values():
        assert keys["trainer.max_steps"] == base["trainer.max_steps"]
        assert keys["model.init_args.reward.format_weight"] == 0.25


def test_runs_are_ordinary_ones_and_start_from_their_own_seed(ran):
    for seed in ran.seeds:
        run = ran.run_folder("mccs", seed)
        assert {"config.yaml", "metrics.csv", "policy", "predictions.jsonl", "results.json"} <= {
            path.name for path in run.iterdir()
        }
        config = (run / "config.yaml").read_text()
        assert f"policy: {ran.run_folder('sft', seed) / 'policy'}" in config
        assert f"seed_everything: {seed}\n" in config


def test_complete_runs_are_not_made_again_and_a_lost_test_is(ran, capsys):
    kept = ran.run_folder("sft", 0) / "predictions.jsonl"
    lost = ran.run_folder("mccs", 1) / "predictions.jsonl"
    stamp, content = kept.stat().st_mtime_ns, lost.read_text()
    fitted = (lost.parent / "metrics.csv").stat().st_mtime_ns
    lost.unlink()
    capsys.readouterr()
    assert run_all(ran) == {}
    assert "4 runs in" in (out := capsys.readouterr().out)
    assert "3 of them complete" in out
    assert kept.stat().st_mtime_ns == stamp
    assert (lost.parent / "metrics.csv").stat().st_mtime_ns == fitted  # tested again, not trained again
    assert lost.read_text() == content


def test_a_run_that_was_broken_off_goes_on_from_its_checkpoint(ran):
    run = ran.run_folder("mccs", 0)
    weights = (run / "policy" / "model.safetensors").read_bytes()
    content = (run / "predictions.jsonl").read_text()
    (run / "predictions.jsonl").unlink()
    shutil.rmtree(run / "policy")
    assert run_all(ran) == {}
    assert f"Resuming after round 1 from {run / 'checkpoints' / 'round-00000001.ckpt'}" in (run / "log.txt").read_text()
    assert (run / "policy" / "model.safetensors").read_bytes() == weights
    assert (run / "predictions.jsonl").read_text() == content


def test_a_run_of_other_settings_is_refused(ran):
    other = tiny_ablation(ran.folder, shared={**FEW, "trainer.max_steps": 2})
    with pytest.raises(ValueError, match=r"seed0/sft was made with other settings \(trainer\.max_steps\)"):
        run_all(other)


def test_a_run_that_fails_ends_neither_the_others_nor_passes_for_one(tmp_path, capsys):
    arms = {
        "broken": Arm("demo_sft.yaml", set={"model.init_args.max_views": 0}),
        "after": Arm("demo.yaml", start="broken"),
        "sft": Arm("demo_sft.yaml", set={"model.init_args.tiny": TINY}),
    }
    failed = run_all(tiny_ablation(tmp_path, arms=arms, seeds=(0,), panels={}))
    assert list(failed) == ["seed0/broken", "seed0/after"]
    assert "model.init_args.max_views" in failed["seed0/broken"]
    assert failed["seed0/after"] == "broken, which it starts from, failed"
    assert (tmp_path / "seed0" / "sft" / "predictions.jsonl").is_file()
    assert "seed 0, broken: failed: Expected model.init_args.max_views" in capsys.readouterr().out


def test_a_signal_ends_the_ablation_instead_of_one_arm(tmp_path, monkeypatch):
    tiny = tiny_ablation(tmp_path, seeds=(0,), shared={**FEW, "trainer.max_steps": 2, "trainer.val_check_interval": 2})
    take_step = SFTModule.training_step

    def ended(module, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return take_step(module, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SFTModule, "training_step", ended)
        with pytest.raises(SystemExit):
            run_all(tiny)
    assert "round 1 is saved" in (tmp_path / "seed0" / "sft" / "log.txt").read_text()
    assert not (tmp_path / "seed0" / "mccs").exists()
    assert run_all(tiny) == {}
    assert all(tiny.is_complete(name, 0) for name in tiny.arms)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(ran, tmp_path):
    two = tiny_ablation(tmp_path, seeds=(0,), num_processes=2)
    assert run_all(two) == {}
    for name in two.arms:
        assert (two.run_folder(name, 0) / "predictions.jsonl").read_text() == (
            ran.run_folder(name, 0) / "predictions.jsonl"
        ).read_text()


def test_report_of_what_is_there(ran, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    text = {
        "folder": "elsewhere",
        "seeds": [0, 1, 2],
        "base": "sft",
        "panels": {"Reward": ["sft", "mccs"]},
        "shared": FEW,
        "arms": {
            "sft": {"config": str(CONFIGS / "demo_sft.yaml"), "set": {"model.init_args.tiny": TINY}},
            "mccs": {
                "config": str(CONFIGS / "demo.yaml"),
                "start": "sft",
                "set": {"model.init_args.rollout.group_size": 2},
            },
        },
    }
    file.write_text(json.dumps(text))
    main([f"--config={file}", f"--folder={ran.folder}", "--report"])
    out = capsys.readouterr().out
    assert "Missing or failed runs: seed 2, sft; seed 2, mccs." in out
    assert (ran.folder / "ablation.md").read_text() in out
    assert "The best constant report is not known: no arm was tested with the labeler and the margin of this" in out
    write_report(dataclasses.replace(ran, margin=0.3))  # that of the arms
    table = (ran.folder / "ablation.md").read_text()
    results = json.loads((ran.folder / "ablation.json").read_text())
    for seed in ran.seeds:
        saved = json.loads((ran.run_folder("sft", seed) / "results.json").read_text())["best_constant"]["scores"]
        row = results["systems"]["best constant"]["seeds"][str(seed)]
        assert row == {score: saved[score]["value"] for score in ("MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+")}
        assert f"seed {seed}: sft finds nothing: none of its reports states one of the 13 conditions." in table
    assert "SFT does not beat" not in table  # its label is its name
    assert "sft does not beat the best constant report in MCCS, CE-F1 micro-13+" in table
    assert "| best constant" in table
    assert not (ran.folder / "seed2").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "`seeds` to hold 1 to 10 different numbers"),
        ({"seeds": (1, 1)}, "`seeds`"),
        ({"base": "rouge"}, r"`base` to name arms \(sft, mccs\), but got 'rouge'"),
        ({"panels": {"A": ["rouge"]}}, "`panels: A` to name arms"),
        ({"num_processes": 0}, "`num_processes`"),
        ({"arms": {"a": Arm("demo.yaml", start="b"), "b": Arm("demo_sft.yaml")}}, "'a' to start from an arm above it"),
        ({"arms": {"a": Arm("nowhere.yaml")}}, "`config` of arm 'a' to be a file"),
    ],
)
def test_wrong_configurations(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_ablation(tmp_path, **changes)


def test_a_file_that_is_no_ablation(tmp_path):
    for text in ("", "arms: 3", "arms: {a: {confg: x}}", "arms: {}", "[", "seeds: [0]"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml to be the configuration of an ablation, but"):
            load_ablation(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=r"none\.yaml"):
        load_ablation(tmp_path / "none.yaml")


def test_ctrl_c_in_a_run_ends_the_ablation(tmp_path, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("mrg.commands.lightning.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(tiny_ablation(tmp_path))

"""Two processes that share out the decoder layers; that they train as one is in tests/modules/test_grpo_options.py."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from mrg.cli import main
from mrg.files import read_lines
from mrg.strategy import FSDP2, check_ranks, check_strategy

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
DATA = [f"--data.init_args.{key}" for key in ("num_train=16", "num_val=5", "num_test=7", "eval_batch_size=3")]
SHORT = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.callbacks=null"]
SHARDED = [f"--config={CONFIGS / 'strategy' / 'fsdp.yaml'}", "--trainer.devices=2"]


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "mrg", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_validate_and_predict_uneven_splits_as_one(tmp_path, capsys, strategy):
    """Of 5 and 7 studies: with a study scored twice the mean loss would be another."""
    every = ["--trainer.enable_progress_bar=false", "--data.init_args.eval_batch_size=1"]
    place = [f"--config={CONFIGS / 'demo_sft.yaml'}", *DATA, *every, f"--runs={tmp_path}", "--name=sft"]
    place += ["--model.init_args.tiny.hidden_size=32", "--model.init_args.max_new_tokens=8"]
    main(["fit", *place, *SHORT])
    two = [f"--config={CONFIGS / 'strategy' / f'{strategy}.yaml'}", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    main(["predict", *place])
    rows = read_lines(tmp_path / "sft" / "predict.jsonl")
    capsys.readouterr()
    main(["validate", *place])
    alone = loss_in(capsys.readouterr().out)
    assert loss_in(command("validate", *place, *two)) == pytest.approx(alone, abs=2e-6)
    command("predict", *place, *two)
    assert read_lines(tmp_path / "sft" / "predict.jsonl") == rows
    assert len(rows) == 7


def loss_in(printed):
    return float(re.search(r"val/loss\W+([\d.]+)", printed)[1])


@pytest.mark.slow
def test_a_sharded_run_is_tested_as_one_process_tests_it_and_its_policy_trains_on(tmp_path, capsys):
    sft = tmp_path / "sft"
    printed = command(
        "fit", f"--config={CONFIGS / 'demo_sft.yaml'}", *SHARDED, *SHORT, *DATA, f"--runs={tmp_path}", "--name=sft",
        "--model.init_args.tiny.hidden_size=64",
    )  # fmt: skip
    assert "CE-F1" in next(line for line in printed.splitlines() if line.startswith("step 2 of 2"))
    run = [f"--config={sft / 'config.yaml'}", f"--runs={tmp_path}", "--name=sft"]
    command("test", *run)
    rows = read_lines(sft / "predictions.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == 7
    main(["test", *run, "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.enable_progress_bar=false"])
    assert read_lines(sft / "predictions.jsonl") == rows

    grpo = [
        f"--config={CONFIGS / 'demo.yaml'}", *SHARDED, *SHORT, *DATA, f"--runs={tmp_path}", "--name=grpo",
        f"--model.init_args.policy={sft / 'policy'}", "--model.init_args.rollout.group_size=2",
        "--model.init_args.max_new_tokens=8", "--data.init_args.batch_size=2",
    ]  # fmt: skip
    command("fit", *grpo, "--trainer.strategy.init_args.save_distributed_checkpoint=true")
    best = tmp_path / "grpo" / "checkpoints" / "best.ckpt"
    assert best.is_dir()
    run = [f"--config={tmp_path / 'grpo' / 'config.yaml'}", f"--runs={tmp_path}", "--name=grpo"]
    command("test", *run)
    assert len(read_lines(tmp_path / "grpo" / "predictions.jsonl")) == 7
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["test", *run, "--trainer.devices=1", "--trainer.strategy=auto"])
    assert "has one file per rank: add --config configs/strategy/fsdp.yaml" in capsys.readouterr().err
    subprocess.run([sys.executable, "-m", "lightning.fabric.utilities.consolidate_checkpoint", str(best)], check=True)
    main(["test", *run, "--trainer.devices=1", "--trainer.strategy=auto", f"--ckpt_path={best}.consolidated"])
    assert len(read_lines(tmp_path / "grpo" / "predictions.jsonl")) == 7


@pytest.mark.slow
def test_two_nodes_of_torchrun_train_one_policy(tmp_path):
    """Both on this machine, a process each, as on two."""
    command("fit", f"--config={CONFIGS / 'demo_sft.yaml'}", *SHORT, *DATA, f"--runs={tmp_path}", "--name=sft")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}",
                "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}", "-m", "mrg", "fit",
                f"--config={CONFIGS / 'demo.yaml'}", f"--config={CONFIGS / 'strategy' / 'ddp.yaml'}",
                "--trainer.devices=1", "--trainer.num_nodes=2", *SHORT, *DATA, f"--runs={tmp_path}", "--name=grpo",
                f"--model.init_args.policy={tmp_path / 'sft' / 'policy'}", "--model.init_args.rollout.group_size=2",
                "--model.init_args.max_new_tokens=8", "--data.init_args.batch_size=2",
            ],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    ends = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    assert [out.count("Best checkpoint") for out, _ in ends] == [1, 0]
    assert (tmp_path / "grpo" / "policy" / "config.json").is_file()


def test_strategies_that_are_known():
    check_strategy(SingleDeviceStrategy(torch.device("cpu")))
    check_strategy(DDPStrategy())
    check_strategy(FSDP2())
    with pytest.raises(ValueError, match=r"mrg\.strategy\.FSDP2 .* but got FSDPStrategy"):
        check_strategy(FSDPStrategy(accelerator=None))


def test_weights_in_4_bits_are_not_shared_out():
    check_strategy(DDPStrategy(), load_in_4bit=True)
    with pytest.raises(ValueError, match=r"set trainer.strategy to ddp, or model.init_args.load_in_4bit to false"):
        check_strategy(FSDP2(), load_in_4bit=True)


def test_more_processes_than_studies():
    check_ranks(4, 4)
    with pytest.raises(
        ValueError,
        match=r"at least 8 training studies, one per process, but the data contain 4: lower trainer\.devices",
    ):
        check_ranks(4, 8)


FIT = ["fit", f"--config={CONFIGS / 'demo.yaml'}", *DATA, "--model.init_args.policy=/lost"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.strategy=fsdp", "--trainer.accelerator=cpu"], "The trainer's settings do not fit this machine"),
        (["--trainer.strategy=deepspeed"], "The trainer's settings do not fit this machine"),
        (
            [SHARDED[0], "--trainer.devices=1", "--trainer.precision=16-mixed"],
            "Expected trainer.precision to be 'bf16-mixed' or '32-true', but got '16-mixed'.",
        ),
        (
            ["--trainer.precision=16-mixed", "--trainer.accelerator=cpu"],
            "Expected trainer.precision to be 'bf16-mixed' or '32-true', but got '16-mixed'.",
        ),
        (["--data.init_args.batch_size=2", "--model.init_args.num_minibatches=4"], "raise data.init_args.batch_size"),
        (
            ["--model.init_args.vision_cache=images", "--model.init_args.train_vision=true",
             "--model.init_args.kl.coef=0"], "set model.init_args.vision_cache to ''",
        ),
        (["--model.init_args.load_in_4bit=true", "--model.init_args.lora=null"], "set model.init_args.lora"),
        (
            ["--model.init_args.rollout.servers.urls=[http://127.0.0.1:9]", "--model.init_args.lora=null"],
            "or rollout.servers to null",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_before_the_policy_is_loaded(tmp_path, capsys, options, message):
    """The policy does not exist: whatever came after it would not be said."""
    with pytest.raises(SystemExit) as stop:
        main([*FIT, f"--runs={tmp_path}", *options])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert line.startswith("mrg: ")
    assert message in line
    assert "/lost" not in line

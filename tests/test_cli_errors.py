"""A mistake is one line on the command line, and an error of the code keeps its traceback."""

import subprocess
import sys

import pytest
import torch

from mrg.cli import main
from mrg.errors import one_line
from mrg.metrics import RulesLabeler
from mrg.modules.rl.reward import Reward, WeightedScorer
from tests.command_line import CONFIGS, arguments, failure, sft
from tests.trees import write_annotation


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.init_args.lr=1", "Parser key \"model\": mrg.modules.sft.SFTModule: Option 'lr' is not accepted"),
        ("--trainer.maximum_steps=1", "maximum_steps"),
        ("--data.init_args.batch_size=many", "batch_size"),
    ],
)
def test_wrong_key_is_three_lines(tmp_path, iu_tree, capsys, option, message):
    code, text = failure(capsys, ["fit", *sft(tmp_path, option)])
    lines = text.splitlines()
    assert code == 2
    assert [line.split(":")[0] for line in lines] == ["usage", "tip", "error"]
    assert message in lines[2]


def test_missing_configuration_file(capsys):
    code, text = failure(capsys, ["fit", "--config=nowhere.yaml"])
    assert code == 2
    assert "nowhere.yaml" in text.splitlines()[-1]


def damage_split(root, content):
    del content["val"]
    write_annotation(root, content)


def damage_report(root, content):
    content["train"][1]["report"] = 7
    write_annotation(root, content)


def damage_missing(root, content):
    (root / "images" / "train0" / "0.png").unlink()


def damage_truncated(root, content):
    for index in range(8):  # whichever the first batch takes
        file = root / "images" / f"train{index}" / "0.png"
        file.write_bytes(file.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (damage_split, ("annotation.json", "'val'")),
        (damage_report, ("annotation.json", "train1", "'report' to be a string, but got 7")),
        (damage_missing, ("1 of the 13 images", "train0/0.png", "data.init_args.root")),
        (damage_truncated, ("Study train", "0.png is truncated at 300 bytes")),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_data_is_one_line(tmp_path, iu_tree, capsys, damage, parts, num_workers):
    damage(*iu_tree)
    code, text = failure(capsys, ["fit", *sft(tmp_path, f"--data.init_args.num_workers={num_workers}")])
    line = text.splitlines()[-1]
    assert code in (1, 2)
    assert line.startswith("mrg: ")
    assert all(part in line for part in parts), line
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--data.init_args.root=/no/such/folder"], ("/no/such/folder", "data.init_args.root")),
        (["--data.init_args.variant=r2gen"], ("train 8, val 2, test 3", "train 2069, val 296, test 590")),
        (["--model.init_args.policy=/no/such/policy"], ("/no/such/policy", "model.init_args.policy")),
        (["--model.init_args.policy=nobody/nothing"], ("nobody/nothing", "model.init_args.policy")),
        (["--model.init_args.think=maybe"], ("model.init_args.think", "'required' or 'absent'", "maybe")),
        (["--model.init_args.tiny.hidden_size=50"], ("multiple of 32", "50")),
        (
            ["--model.init_args.dtype=bf16", "--model.init_args.policy=x/y"],
            ("model.init_args.dtype", "'float32'", "bf16"),
        ),
        (["--model.init_args.lora={rank: 4}"], ("model.init_args.lora",)),
        (["--model.init_args.max_views=-1"], ("model.init_args.max_views", "-1")),
        (["--model.init_args.use_indication=true"], ("model.init_args.use_indication",)),
        (["--data.init_args.batch_size=0"], ("data.init_args.batch_size", "0")),
        (["--data.init_args.limit_test=-1"], ("data.init_args.limit_test", "-1")),
    ],
)
def test_bad_settings_are_one_line(tmp_path, iu_tree, capsys, monkeypatch, options, parts):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, text = failure(capsys, ["fit", *sft(tmp_path, *options)])
    line = text.splitlines()[-1]
    assert code == 2
    assert line.startswith(("mrg: ", "error: "))  # the latter where the parser knows the choices
    assert all(part in line for part in parts), line


def test_what_lightning_refuses_is_one_line_too(tmp_path, iu_tree, capsys, monkeypatch):
    main(["fit", *sft(tmp_path)])
    capsys.readouterr()
    policy = f"--model.init_args.policy={tmp_path / 'runs' / 'iu_tiny_sft' / 'policy'}"
    grpo = ["fit", *arguments(tmp_path, policy, config="iu_tiny")]
    code, text = failure(capsys, [*grpo, "--trainer.accumulate_grad_batches=2"])
    assert (code, text.startswith("mrg: Automatic gradient accumulation is not supported")) == (2, True), text
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    code, text = failure(capsys, [*grpo, "--trainer.devices=3", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"])
    assert (code, "`devices=3` and `num_nodes=1` in Lightning, but the product" in text) == (2, True), text
    assert not (tmp_path / "runs" / "iu_tiny" / "config.yaml").exists()


def test_validation_that_no_epoch_would_reach_is_one_line(tmp_path, iu_tree, capsys):
    options = ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=3"]
    code, text = failure(capsys, ["fit", *sft(tmp_path, *options)])
    line = text.splitlines()[-1]
    assert (code, line.startswith("mrg: Expected trainer.val_check_interval to be at most the 2 training")) == (2, True)
    assert all(part in line for part in ("8 studies", "batch_size 4", "1 processes", "but got 3", "null")), line
    main(["fit", *sft(tmp_path, options[0], "--trainer.val_check_interval=2")])
    main(["fit", *sft(tmp_path, *options, "--trainer.limit_val_batches=0", "--trainer.callbacks=null", "--name=none")])


def test_untrained_tiny_policy_is_not_tested(tmp_path, iu_tree, capsys):
    code, text = failure(capsys, ["test", *sft(tmp_path)])
    assert (code, "untrained" in text) == (2, True)
    code, text = failure(capsys, ["test", *sft(tmp_path, "--ckpt_path=none.ckpt")])
    assert (code, text) == (2, "mrg: Checkpoint none.ckpt does not exist: check --ckpt_path.")


def test_run_that_ended_before_its_first_validation(tmp_path, iu_tree, capsys):
    run = tmp_path / "runs" / "iu_tiny_sft"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    code, text = failure(capsys, ["test", *sft(tmp_path)])
    assert code == 2
    assert "ended before its first validation, see trainer.val_check_interval" in text


def test_foreign_checkpoint(tmp_path, iu_tree, capsys):
    main(["fit", *sft(tmp_path)])
    best = tmp_path / "runs" / "iu_tiny_sft" / "checkpoints" / "best.ckpt"
    other = sft(tmp_path, "--model.init_args.tiny.num_layers=2", f"--ckpt_path={best}")
    code, text = failure(capsys, ["test", *other])
    assert code == 2
    assert "The checkpoint does not fit the policy 'tiny'" in text


def test_checkpoint_of_another_tokenizer(tmp_path, iu_tree, capsys):
    """Other training reports give a vocabulary of the same size whose ids mean other words."""
    small = "--model.init_args.tiny.vocab_size=290"
    main(["fit", *sft(tmp_path, small)])
    root, content = iu_tree
    for item in content["train"]:
        item["report"] = item["report"].replace("heart", "trahe")
    write_annotation(root, content)
    code, text = failure(capsys, ["test", *sft(tmp_path, small)])
    assert code == 2
    assert "its tokenizer or frozen base differs" in text


def test_errors_of_libraries_keep_their_traceback():
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2).view(3)
    assert one_line(caught.value) is None


SCORER = """
def bad(preds, target):
    scores = {}
    return [scores["missing"] for _ in preds]
"""


def test_a_scorer_that_fails_shows_its_traceback(tmp_path, capsys, monkeypatch):
    """Type, file and line of the user's code, then one line with the study."""
    (tmp_path / "failing_scorers.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    reward = Reward(RulesLabeler(), scorers=[WeightedScorer("failing_scorers:bad")])
    texts = ["<think>Nothing.</think><report>The lungs are clear.</report>"]
    # A policy of so few steps writes no report that a scorer could read: the round of `fit` is this one.
    monkeypatch.setattr("mrg.commands.lightning.run", lambda argv: reward(texts, ["The lungs are clear."], ["s1"]))
    code, text = failure(capsys, ["fit"])
    assert code == 1
    assert "Traceback (most recent call last):" in text
    assert f'File "{tmp_path / "failing_scorers.py"}", line 4, in ' in text
    assert "KeyError: 'missing'" in text
    last = text.splitlines()[-1]
    assert last.startswith("mrg: ")
    assert all(part in last for part in ("bad", "s1", "KeyError", "failing_scorers.py, line 4")), last


@pytest.mark.parametrize("place", [0, 1, 2])
def test_traceback_on_demand(tmp_path, capsys, place):
    argv = ["test", f"--config={CONFIGS / 'demo_sft.yaml'}", f"--runs={tmp_path}"]
    code, line = failure(capsys, argv)
    assert (code, "Traceback" in line) == (2, False)
    argv.insert(place, "--traceback")
    code, text = failure(capsys, argv)
    assert code == 2
    assert "Traceback (most recent call last):" in text
    assert "checkpoint_choice.py" in text
    assert text.splitlines()[-1] == line


def test_traceback_in_development_mode(tmp_path):
    argv = ["test", "--config=configs/demo_sft.yaml", f"--runs={tmp_path}"]
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-m", "mrg", *argv]
    done = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback (most recent call last):" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("mrg: No checkpoint ")

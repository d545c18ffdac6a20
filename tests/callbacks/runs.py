"""Runs of three steps on drawn studies."""

from pathlib import Path

CONFIGS = Path(__file__).parent.parent.parent / "configs"
FEW = [
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=3",
    "--trainer.log_every_n_steps=1",
    "--data.init_args.num_train=8",
    "--data.init_args.num_val=4",
    "--data.init_args.num_test=4",
    "--data.init_args.batch_size=2",
    "--model.init_args.max_new_tokens=8",
]


def fit_arguments(tmp_path, *options):
    """Of SFT into `tmp_path/run`."""
    tiny = "--model.init_args.tiny={hidden_size: 32, num_layers: 1, vision_depth: 1, vocab_size: 400}"
    place = [f"--runs={tmp_path}", "--name=run", "--trainer.callbacks=null", "--monitor=val/mccs"]
    return [f"--config={CONFIGS / 'demo_sft.yaml'}", *FEW, tiny, *place, *options]


def grpo_arguments(tmp_path, *options):
    """Of GRPO from the policy of `tmp_path/sft` into `tmp_path/run`."""
    policy = [f"--model.init_args.policy={tmp_path / 'sft' / 'policy'}", "--model.init_args.rollout.group_size=2"]
    return [f"--config={CONFIGS / 'demo.yaml'}", *FEW, *policy, f"--runs={tmp_path}", "--name=run", *options]

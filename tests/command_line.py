"""Arguments of small runs, and the failure of a command."""

from pathlib import Path

import pytest

from mrg.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"


TINY = "{hidden_size: 32, num_layers: 1, vision_depth: 1, vocab_size: 400}"


def arguments(tmp_path, *options, config="iu_tiny_sft"):
    return [
        f"--config={CONFIGS / config}.yaml",
        f"--runs={tmp_path / 'runs'}",
        f"--data.init_args.root={tmp_path / 'data'}",
        "--data.init_args.variant=any",
        "--data.init_args.batch_size=4",
        "--data.init_args.num_workers=0",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--model.init_args.max_new_tokens=8",
        *options,
    ]


def sft(tmp_path, *options):
    return arguments(
        tmp_path, f"--model.init_args.tiny={TINY}", "--trainer.max_steps=2", "--trainer.val_check_interval=2", *options
    )


def failure(capsys, argv):
    """Exit code, and what is written to standard error from now on."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code, capsys.readouterr().err.strip()

"""An SFT run and GRPO with LoRA from it, of a tiny policy that writes reports."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrg.cli import main
from mrg.datamodules.demo import World, make_study

CONFIGS = Path(__file__).parents[3] / "configs"
QUICK = [
    "--data.init_args.num_train=48", "--data.init_args.num_val=4", "--data.init_args.num_test=6",
    "--data.init_args.batch_size=8", "--trainer.enable_progress_bar=false", "--trainer.callbacks=null",
    "--trainer.log_every_n_steps=1", "--gallery.write=false",
]  # fmt: skip


def train(runs, *options):
    """SFT of a small policy until it writes reports."""
    main(
        [
            "fit", f"--config={CONFIGS / 'demo_sft.yaml'}", f"--runs={runs}", *QUICK, "--trainer.max_steps=30",
            "--trainer.val_check_interval=30", "--model.init_args.max_new_tokens=60",
            "--model.init_args.optimizer.decay_steps=0", "--model.init_args.optimizer.warmup_steps=2",
            "--model.init_args.optimizer.learning_rate=0.01", *options,
        ]
    )  # fmt: skip


@pytest.fixture(scope="package")
def home(tmp_path_factory):
    """A folder with an SFT run, GRPO with LoRA from it, which is tested, and three images."""
    folder = tmp_path_factory.mktemp("home")
    runs = folder / "runs"
    train(runs)
    main(
        [
            "fit", f"--config={CONFIGS / 'demo.yaml'}", f"--runs={runs}", *QUICK, "--trainer.max_steps=2",
            "--trainer.val_check_interval=2", "--model.init_args.max_new_tokens=60", "--from=demo_sft",
            "--model.init_args.rollout.group_size=2", "--model.init_args.optimizer.learning_rate=0.02",
        ]
    )  # fmt: skip
    main(["test", f"--config={runs / 'demo' / 'config.yaml'}", "--gallery.write=false"])
    for index in range(3):
        view = make_study(World(), 0, "test", index, 112).views[0]
        Image.fromarray(np.asarray(view.image)).save(folder / f"{index}.png")
    return folder

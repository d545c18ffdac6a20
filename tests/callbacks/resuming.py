"""A small run with checkpoints that can be broken off anywhere, on one process or two; used by tests, and as a program.

`python -m tests.callbacks.resuming SETTINGS.json`
"""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from mrg.callbacks.checkpoint import Checkpoints
from mrg.callbacks.metrics_file import MetricsFile
from mrg.callbacks.preemption import EndTogether
from mrg.callbacks.results import ResultWriter
from mrg.commands.lightning import quiet
from mrg.datamodules.demo import DemoDataModule
from mrg.log import configure
from mrg.metrics.trl import RewardError
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.rl.reward import Rewards
from mrg.modules.rollout.vllm_servers import Servers
from mrg.modules.sft import SFTModule
from mrg.strategy import FSDP2
from tests.nested import nested

SETTINGS = {"prompt": "Report:", "think": "absent", "max_new_tokens": 8, "max_pixels": 56 * 56, "warmup_steps": 2}


class Stop(Exception):  # noqa: N818
    """The run is broken off, as if the process had died."""


class StopAt(L.Callback):
    """Breaks off in a round: after its step, in the middle of its validation, or by a signal to itself or one rank."""

    def __init__(self, number, how):
        self.number, self.how = number, how

    def _stop(self, trainer, *hows):
        rounds = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if rounds == self.number and self.how in hows:
            if self.how.startswith("signal"):
                os.kill(os.getpid(), signal.SIGTERM)
            elif self.how.startswith("kill"):
                if self.how in ("kill", f"kill {trainer.global_rank}"):
                    os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise Stop

    def on_train_batch_end(self, trainer, *args):
        self._stop(trainer, "step", "signal", "kill", "kill 0", "kill 1")

    def on_validation_batch_start(self, trainer, *args):
        if not trainer.sanity_checking:
            self._stop(trainer, "validation", "signal in validation")


class Lengths:
    """Pays for short completions: a reward that a random policy can earn, so that all weights change.

    `fails`: at which call it raises what, and on which rank.
    """

    def __init__(self, fails=None):
        self.corpus = {}
        self.fails, self.calls = fails, 0

    def __call__(self, texts, target, study_id):
        self.calls += 1
        if self.fails and self.fails[:2] == [self.calls, int(os.environ.get("LOCAL_RANK", 0))]:
            raise KeyboardInterrupt if self.fails[2] == "interrupt" else RewardError(f"no reward for {study_id[0]}")
        rewards = torch.tensor([-float(len(text)) for text in texts], dtype=torch.float64)
        labels = torch.tensor([[len(text) % 3] * 14 for text in texts])
        return Rewards(rewards, {"length": rewards}, (labels, labels))


def module_of(kind, policy, fails=None, **settings):
    """A module whose adapter has dropout, so that the global generator matters."""
    options = {**SETTINGS, "policy": policy, "lora": LoRA(4, dropout=0.1), "learning_rate": 1e-2, **settings}
    if isinstance(options.get("servers"), dict):
        options["servers"] = Servers(**options["servers"])
    if kind == "findings":
        from mrg.modules.findings import FindingsModule

        return FindingsModule(**nested(**options))
    if kind == "corpus":
        from tests.modules.rl.corpus_on_ranks import corpus_module

        return corpus_module(**options)
    if kind == "grpo":
        module = GRPOModule(**nested(**{"group_size": 3, "temperature": 1.5, "sample_every": 2, **options}))
        module.reward = Lengths(fails)
        return module
    return SFTModule(**nested(**options))


def fit(folder, kind, policy, checkpoint=None, stop=None, devices=1, save_every=1, keep=2, patience=0, data=None,
        module=None, monitor="val/mccs", strategy="auto", fails=None, **trainer):  # fmt: skip
    """Train a run; returns its module."""
    strategies = {"fsdp": FSDP2(), "fsdp in parts": FSDP2(save_distributed_checkpoint=True)}
    quiet()
    configure()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(0, verbose=False)
    own = module_of(kind, policy, fails, **(module or {}))
    studies = DemoDataModule(
        **{"num_train": 10, "num_val": 4, "num_test": 2, "batch_size": 2 // devices, "eval_batch_size": 2,
           "num_workers": 0, "image_size": 56, **(data or {})}
    )  # fmt: skip
    callbacks = [ResultWriter(folder), EndTogether(folder)]
    if patience:
        callbacks.append(EarlyStopping("val/mccs", mode="max", patience=patience))
    if stop:
        callbacks.append(StopAt(*stop))
    callbacks.append(Checkpoints(folder, monitor, save_every, keep))
    options = {"max_steps": -1, "max_epochs": 2, "val_check_interval": 2, "log_every_n_steps": 1, **trainer}
    L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategies.get(strategy, strategy), callbacks=callbacks,
        logger=MetricsFile(folder, 3), enable_progress_bar=False, enable_model_summary=False, **options,
    ).fit(own, studies, ckpt_path=checkpoint)  # fmt: skip
    return own


def newest(folder):
    """Path of the checkpoint that `--resume auto` takes."""
    from mrg.run.checkpoints import CheckpointFolder

    path, damaged = CheckpointFolder(Path(folder) / "checkpoints").newest()
    assert not damaged
    return str(path) if path else None


def outcome(folder):
    """All that must be equal: the last and the best checkpoint, the metrics without times, the samples, the policy."""
    folder = Path(folder)
    found = {}
    checkpoints = folder / "checkpoints"
    for name in {Path(newest(folder)).name, "best.ckpt"} & {path.name for path in checkpoints.iterdir()}:
        whole = checkpoints / name
        state = torch.load(whole / "meta.pt" if whole.is_dir() else whole, weights_only=True)
        keys = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "ranks", "epoch")
        parts = {key: state[key] for key in keys if key in state}  # one file per rank holds the weights elsewhere
        (data,) = (value for key, value in state.items() if key.endswith("DataModule"))
        found[name] = leaves({**parts, "data": data})
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found["metrics"] = [{k: v for k, v in row.items() if not timing(k)} for row in rows]
    samples = folder / "samples.jsonl"
    found["samples"] = samples.read_text() if samples.exists() else ""
    weights = folder / "policy" / "model.safetensors"
    found["policy"] = weights.read_bytes() if weights.exists() else b""
    return found


def timing(column):
    """Whether a column of metrics.csv holds times."""
    return column.startswith("seconds/") or column.endswith("per_second")


def leaves(value, name=""):
    """Nested values as a flat dict; tensors as bytes, so that equal means equal in every bit."""
    if isinstance(value, torch.Tensor):
        return {name: (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if pairs is None:
        return {name: value}
    return {key: leaf for part, item in pairs for key, leaf in leaves(item, f"{name}/{part}").items()}


def differences(folder, other):
    """What differs between two runs, in words; empty where all is equal."""
    a, b = outcome(folder), outcome(other)
    if set(a) != set(b):
        return [f"{sorted(a)} against {sorted(b)}"]
    found = []
    for name in a:
        if isinstance(a[name], dict):
            wrong = [key for key in sorted(set(a[name]) | set(b[name])) if a[name].get(key) != b[name].get(key)]
            found += [f"{name}: {key}" for key in wrong]
        elif name == "metrics":
            pairs = enumerate(zip(a[name], b[name], strict=False))
            found += [f"row {i}: {k} {x[k]} {y.get(k)}" for i, (x, y) in pairs for k in x if x[k] != y.get(k)]
            found += [f"{len(a[name])} rows against {len(b[name])}"] * (len(a[name]) != len(b[name]))
        elif a[name] != b[name]:
            found.append(name)
    return found


def on_ranks(folder, settings):
    """Run in processes of its own; returns exit code and output."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    file.write_text(json.dumps({"folder": str(folder), **settings}))
    command = [sys.executable, "-m", "tests.callbacks.resuming", str(file)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(**json.loads(Path(sys.argv[1]).read_text()))

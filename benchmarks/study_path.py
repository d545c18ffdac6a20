"""List the files of mrg that one study passes through, from the disk to the optimizer step.

    python benchmarks/study_path.py [--aim 30]

A tiny policy with an adapter takes one GRPO step on a synthetic IU X-Ray folder of four studies with two views each,
with the settings of `configs/iu.yaml`. A file counts if one of its functions runs while the studies are read or in the
step; imports, loading of the policy and setting up the trainer do not count. Files are in the order of their first
call.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import pkgutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image
from transformers.utils.logging import disable_progress_bar

import mrg
from mrg.modules.policy.tiny import tiny_policy

ROOT = Path(mrg.__file__).parents[1]
REPORTS = (
    "The heart is enlarged. No pneumothorax.",
    "Small left pleural effusion.",
    "The lungs are clear. The heart is normal.",
    "Right lower lobe consolidation. No effusion.",
)


class Trace:
    """Functions of mrg that run, by file, in the order of each file's first call."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}

    def __enter__(self) -> Trace:
        sys.setprofile(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _call(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or frame.f_code.co_name == "<module>":
            return
        # The name of the module, not of the file: the methods that a dataclass generates have no file.
        module = frame.f_globals.get("__name__", "")
        if module.startswith("mrg.") and module not in self.first:
            self.first[module] = frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name

    def files(self) -> dict[str, str]:
        """The first function of each file."""
        found = {}
        for module, function in self.first.items():
            path = Path(str(sys.modules[module].__file__)).relative_to(ROOT)
            found[path.as_posix()] = function
        return found


class FirstStep(L.Callback):
    """Traces from the moment that a study is fetched to the end of the first optimizer step."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def on_train_epoch_start(self, *_: Any) -> None:
        self.trace.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.trace.__exit__()


def write_folder(root: Path) -> None:
    """Write an IU X-Ray folder as R2Gen publishes it."""
    rng = np.random.default_rng(0)
    content: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "val", "test"):
        content[split] = []
        for index, report in enumerate(REPORTS):
            name = f"CXR{len(content)}{index}_IM-0001-1001"
            (root / "images" / name).mkdir(parents=True)
            for view in range(2):
                pixels = rng.integers(0, 255, (112, 112), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "images" / name / f"{view}.png")
            paths = [f"{name}/{view}.png" for view in range(2)]
            content[split].append({"id": name, "report": report, "image_path": paths, "split": split})
    (root / "annotation.json").write_text(json.dumps(content))


def configured(kind: str, **changes: Any) -> Any:
    """The module or data module of configs/iu.yaml with changed settings."""
    config = yaml.safe_load((ROOT / "configs" / "iu.yaml").read_text(encoding="utf-8"))[kind]
    config["init_args"] |= changes
    parser = ArgumentParser()
    parser.add_subclass_arguments(L.LightningModule if kind == "model" else L.LightningDataModule, kind)
    return parser.instantiate_classes(parser.parse_object({kind: config}))[kind]


def traced(folder: Path) -> dict[str, str]:
    """Train for one step and return the files on the way, each with its first function."""
    for found in pkgutil.walk_packages(mrg.__path__, "mrg."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)  # what a module runs while it is imported is no step of a study
    write_folder(folder / "data")
    torch.manual_seed(0)
    tiny_policy([*REPORTS, "<think>Cardiomegaly</think><report></report>"] * 4).save(folder / "policy")
    small = {"max_pixels": 112 * 112, "max_new_tokens": 12, "dtype": "float32", "gradient_checkpointing": False}
    module = configured("model", policy=str(folder / "policy"), lora={"rank": 4, "alpha": 8}, **small)
    data = configured("data", root=str(folder / "data"), variant="any", batch_size=4, num_workers=0)
    trace = Trace()
    with trace:
        data.setup()
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[FirstStep(trace)],
        default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 1, "no optimizer step was made"
    return trace.files()


def quiet(function: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    """Call with a temporary folder, without the notes and progress bars of the libraries."""
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    for name in ("bitsandbytes", "lightning.pytorch", "mrg"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        return function(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aim", type=int, default=0, help="exit with 1 if there are more files than this")
    aim = parser.parse_args().aim
    files = quiet(traced)
    for number, (path, function) in enumerate(files.items(), start=1):
        print(f"{number:3}  {path:<44} {function}")
    print(f"{len(files)} files from the disk to the optimizer step")
    if aim and len(files) > aim:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

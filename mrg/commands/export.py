"""A trainer that can also export: a run's policy as a checkpoint for plain transformers, vLLM and others."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from mrg.datamodules.base import ReportDataModule
from mrg.errors import UserError
from mrg.modules.base import ReportModule


class Trainer(L.Trainer):
    """Lightning's trainer with one more command."""

    def export(
        self,
        model: ReportModule,
        datamodule: ReportDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        output: str = "",
        adapter: bool = False,
    ) -> None:
        """Write a checkpoint of a run as a folder that `from_pretrained` loads.

        Args:
            model: The run's module.
            datamodule: The run's data; read only where the policy is tiny, whose tokenizer is made from it.
            ckpt_path: The run's checkpoint; without one the policy is written as it was loaded.
            weights_only: Of no meaning here: it stands in the configuration of a run.
            output: Folder to write; it must not hold a checkpoint yet.
            adapter: Write the LoRA adapter alone, for peft or vLLM beside the base model, instead of merged weights. A
                base that was trained on in 4 bits (`load_in_4bit`) is loaded whole for the merged ones.

        Raises:
            ValueError: If there is no folder named, it is in use, there is no adapter to write, or it is not all that
                was trained.
        """
        if not output:
            raise UserError("Expected a folder to write: pass --output FOLDER.")
        folder = Path(output)
        if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"{folder} holds a checkpoint already: choose another --output.")
        if adapter and model.train_vision:
            raise UserError("An adapter alone does not hold the trained vision tower: leave --adapter out.")
        reports = []
        if model.source == "tiny":
            assert datamodule is not None
            datamodule.setup()
            reports = datamodule.train_reports()
        model.policy = model.load(reports)
        if ckpt_path is not None:
            checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"], strict=False)
        if adapter:
            model.policy.save_adapter(folder)
        else:
            model.policy.save(folder)
        print(f"Adapter: {folder}" if adapter else f"Policy: {folder}{model.policy.merge_note()}", flush=True)

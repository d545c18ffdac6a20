"""The trainer of the command line, which also exports a policy for plain transformers, peft or vLLM."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from mrg.commands.export.model_card import SCRIPT, write_card
from mrg.datamodules.base import ReportDataModule
from mrg.errors import UserError
from mrg.modules.base import ReportModule
from mrg.modules.policy.processor import save_processor


class Trainer(L.Trainer):
    """Lightning's trainer with `export`."""

    def export(
        self,
        model: ReportModule,
        datamodule: ReportDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        output: str = "",
        adapter: bool = False,
    ) -> None:
        """Write the policy of a run to a folder that `from_pretrained` loads, with a model card and a script.

        An adapter is accompanied by the tokenizer, the image processor and the generation settings of the policy.

        Args:
            model: Module of the run.
            datamodule: Data of the run; only read for a tiny policy, whose tokenizer is made from the reports.
            ckpt_path: Checkpoint of the run; without one the policy is written as it was loaded.
            weights_only: Ignored; configurations of runs contain it.
            output: Folder to write; it must not contain a checkpoint.
            adapter: Write only the LoRA adapter, for peft or vLLM with the base model, instead of merged weights. To
                merge, a base in 4 bits (`load_in_4bit`) is loaded again in full precision.

        Raises:
            UserError: If no folder is named, it is in use, there is no adapter, or not only the adapter was trained.
        """
        if not output:
            raise UserError("Expected a folder to write to: pass --output FOLDER.")
        folder = Path(output)
        if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"{folder} already contains a checkpoint: choose another --output.")
        if adapter and (model.train_vision or model.language_model):
            part = "vision tower" if model.train_vision else "projector"
            raise UserError(f"An adapter does not contain the trained {part}: export without --adapter.")
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
            save_processor(model.policy.processor, folder)
            model.policy.generation(model.max_new_tokens).save_pretrained(folder)
        else:
            model.policy.save(folder, max_new_tokens=model.max_new_tokens)
        write_card(folder, model, datamodule, Path(ckpt_path) if ckpt_path else None, adapter)
        print(f"Adapter: {folder}" if adapter else f"Policy: {folder}{model.policy.merge_note()}")
        print(f"Model card: {folder / 'README.md'}\nWrite a report: python {folder / SCRIPT} IMAGE ...", flush=True)

"""SFT on two processes, whole or sharded, in whose data one rank meets more bad images than the other."""

import json
import sys
from pathlib import Path

import lightning as L
import torch

from mrg.callbacks.results import ResultWriter
from mrg.log import configure
from mrg.modules.policy.lora import LoRA
from mrg.modules.sft import SFTModule
from mrg.strategy import FSDP2
from tests.datamodules.test_loading import SETTINGS, Splits, write_studies


def main(policy: str, folder: Path, strategy: str) -> None:
    configure()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train = write_studies(folder / "train", 8, bad=(0, 2, 4))
    # Rank 0 has the even ones: all batches of its own are bad in validation, one is in the test.
    val, test = write_studies(folder / "val", 8, bad=(0, 2, 4, 6)), write_studies(folder / "test", 8, bad=(0, 2, 5))
    data = Splits({"train": train, "val": val, "test": test}, on_error="skip", batch_size=2)
    module = SFTModule(policy=policy, lora=LoRA(2), **SETTINGS)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy=FSDP2() if strategy == "fsdp" else strategy, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[ResultWriter(folder / "run")],
    )  # fmt: skip
    trainer.fit(module, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.test(module, data, verbose=False)
    if trainer.is_global_zero:
        (folder / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

"""One step of SFT on four studies, on one process or two; saves the gradient before clipping and what is logged."""

import sys

import lightning as L
import torch

from mrg.datamodules.demo import World, make_study
from mrg.modules.policy.ranks import full
from mrg.modules.sft import SFTModule
from mrg.strategy import FSDP2
from tests.modules.test_grpo import SETTINGS, FixedData
from tests.nested import nested


class Recorded(SFTModule):
    """Keeps the gradient of each step, and the losses that it logs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.steps, self.logged = [], []

    def log(self, name, value, **options):
        if name == "train/loss":
            self.logged.append(float(value))
        super().log(name, value, **options)

    def configure_gradient_clipping(self, optimizer, *args, **kwargs):
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        found = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        self.steps.append({name: full(grad.detach()).clone() for name, grad in found.items()})


def build(policy, **settings):
    """A module whose gradients are not clipped, and whose targets are not truncated."""
    options = {"learning_rate": 1e-4, "warmup_steps": 1, "max_grad_norm": 1e9, **SETTINGS, "max_new_tokens": 120}
    return Recorded(**nested(policy=policy, **options, **settings))


def unequal(count=4):
    """Studies whose reports have unequal lengths."""
    return [make_study(World(lateral=0.5), 0, "train", index, 112) for index in range(count)]


def main(policy, output, strategy, accumulate):
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    devices = 1 if strategy == "one" else 2
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", devices=devices, logger=False, enable_checkpointing=False,
        strategy={"one": "auto", "fsdp": FSDP2()}.get(strategy, strategy), enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, accumulate_grad_batches=int(accumulate),
    )  # fmt: skip
    module = build(policy)
    data = FixedData(unequal(), batch_size=4 // devices // int(accumulate), eval_batch_size=2)
    trainer.fit(module, data)
    if trainer.is_global_zero:
        logged = {"train": module.logged[-1], "val": float(trainer.callback_metrics["val/loss"])}
        torch.save({"gradient": module.steps[0], **logged}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])

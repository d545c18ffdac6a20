"""Two rounds of GRPO on two processes; writes what rank 0 sent in the second, and in how many passes."""

import json
import sys
from pathlib import Path

import lightning as L
import torch

from mrg.datamodules.demo import World, make_study
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.strategy import FSDP2
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness
from tests.nested import nested

# The names that FSDP2 calls, of PyTorch 2.13 and of earlier releases.
NEW = {"all_gather_single": "gathered", "reduce_scatter_single": "scattered", "all_reduce": "reduced"}
OLD = {"all_gather_into_tensor": "gathered", "reduce_scatter_tensor": "scattered", "all_reduce": "reduced"}
COLLECTIVES = NEW if hasattr(torch.distributed, "all_gather_single") else OLD


class Counted(GRPOModule):
    """Counts within a round."""

    def training_step(self, batch, batch_idx):
        counts = {key: [0, 0] for key in COLLECTIVES.values()}
        kept = {name: getattr(torch.distributed, name) for name in COLLECTIVES}

        def counting(name):
            def function(*args, **kwargs):
                given = list(args) + list(kwargs.values())
                size = max(x.numel() * x.element_size() for x in given if isinstance(x, torch.Tensor))
                if size > 8:  # a number that ranks agree on
                    counts[COLLECTIVES[name]][0] += size
                    counts[COLLECTIVES[name]][1] += 1
                return kept[name](*args, **kwargs)

            return function

        passes = {"policy": 0, "reference": 0}
        forward = self.policy.logps

        def logps(*args, **kwargs):
            passes["policy" if torch.is_grad_enabled() else "reference"] += 1
            return forward(*args, **kwargs)

        self.policy.logps = logps
        for name in COLLECTIVES:
            setattr(torch.distributed, name, counting(name))
        super().training_step(batch, batch_idx)
        for name, function in kept.items():
            setattr(torch.distributed, name, function)
        self.policy.logps = forward
        self.seen = {**counts, **passes}


def main(policy, output, strategy, trained, checkpointing):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    studies = [make_study(World(), 0, "train", index, 112) for index in range(4)]
    options = {"lora": LoRA(4)} if trained == "adapter" else {"reference": "copy"}
    module = Counted(**nested(
        policy=policy, group_size=3, micro_batch_tokens=1, gradient_checkpointing=checkpointing == "checkpointing",
        **options, **SETTINGS,
    ))  # fmt: skip
    module.reward = Shortness()
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", devices=2, strategy=FSDP2() if strategy == "fsdp" else strategy, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, FixedData(studies, batch_size=2))
    if trainer.is_global_zero:
        Path(output).write_text(json.dumps(module.seen))


if __name__ == "__main__":
    main(*sys.argv[1:])

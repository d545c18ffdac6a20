"""Two rounds of GRPO on four studies, on one process or two; prints nothing, saves the trained weights.

Completions depend on their study alone and not on its rank, so that the numbers of processes can be compared.
"""

import sys

import lightning as L
import torch
import torch.nn.functional as F

from mrg.datamodules.demo import World, make_study
from mrg.modules.grpo import GRPOModule
from mrg.modules.load import LoRA
from mrg.modules.reward import Rewards
from mrg.modules.rollout import Rollout, sample
from tests.modules.test_grpo import SETTINGS, FixedData


class Fixed(GRPOModule):
    """Draws for each study from a generator of its own."""

    def training_step(self, batch, batch_idx):
        self.ids = batch.study_id
        super().training_step(batch, batch_idx)

    def rollout(self, prompts, attempt=0):
        parts = []
        for row, name in enumerate(self.ids):
            generator = torch.Generator().manual_seed(int(name.split("-")[1]) + 100 * self.global_step)
            alone = prompts.rows(torch.tensor([row]))
            parts.append(sample(self.writer, alone, self.group_size, self.max_new_tokens, 1.0, generator))
        width = max(part.completion_ids.shape[1] for part in parts)
        ids, mask, logps = (
            torch.cat([F.pad(getattr(p, name), (0, width - p.completion_ids.shape[1])) for p in parts])
            for name in ("completion_ids", "completion_mask", "old_logps")
        )
        texts = [text for part in parts for text in part.texts]
        return Rollout(ids, mask, logps, texts, torch.cat([p.truncated for p in parts]))

    def rewards(self, rollout, batch):
        """Nothing to learn on half of the studies, which one rank may hold alone."""
        live = torch.tensor([int(name.split("-")[1]) % 2 for name in self.ids]).repeat_interleave(self.group_size)
        total = live * torch.tensor([float(len(text) % 5) for text in rollout.texts], dtype=torch.float64)
        nothing = torch.zeros(len(total), 14, dtype=torch.long)
        return Rewards(total, {}, (nothing, nothing))


def main(policy, output, devices, loss_type, kl_coef):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    studies = [make_study(World(), 0, "train", index, 112) for index in range(4)]
    module = Fixed(
        policy=policy, lora=LoRA(4), group_size=4, learning_rate=1e-2, warmup_steps=1, loss_type=loss_type,
        kl_coef=kl_coef, **SETTINGS,
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, FixedData(studies, batch_size=4 // devices))
    if trainer.is_global_zero:
        torch.save({n: p.detach() for n, p in module.named_parameters() if p.requires_grad}, output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))

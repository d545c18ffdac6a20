"""Two rounds of GRPO on four studies, on one process or two, whole or sharded; saves weights and what is logged.

Completions depend on their study alone and not on its rank, so that the numbers of processes can be compared.
"""

import sys

import lightning as L
import torch
import torch.nn.functional as F

from mrg.datamodules.demo import World, make_study
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.ranks import full, is_sharded
from mrg.modules.rl.reward import Rewards
from mrg.modules.rollout.sampling import Rollout, sample
from mrg.strategy import FSDP2
from tests.modules.test_grpo import SETTINGS, FixedData
from tests.nested import nested


class Fixed(GRPOModule):
    """Draws for each study from a generator of its own."""

    def training_step(self, batch, batch_idx):
        self.ids = batch.study_id
        super().training_step(batch, batch_idx)

    def rollout(self, prompts, batch, groups=(), attempt=0):
        parts = []
        for row, group in enumerate(groups or range(len(self.ids))):
            number = int(self.ids[group].split("-")[1])
            generator = torch.Generator().manual_seed(number + 100 * self.global_step + 1000 * attempt)
            alone = prompts.rows(torch.tensor([row]))
            parts.append(sample(self.policy, alone, self.group_size, self.max_new_tokens, 1.0, generator))
        width = max(part.completion_ids.shape[1] for part in parts)
        ids, mask, logps = (
            torch.cat([F.pad(getattr(p, name), (0, width - p.completion_ids.shape[1])) for p in parts])
            for name in ("completion_ids", "completion_mask", "old_logps")
        )
        texts = [text for part in parts for text in part.texts]
        return Rollout(ids, mask, logps, texts, torch.cat([p.truncated for p in parts]))

    def rewards(self, rollout, batch, groups=()):
        """Nothing to learn on half of the studies, which one rank may hold alone, or on one, which one rank does."""
        every = 4 if self.rollout_settings.resample_dead else 2
        ids = [self.ids[group] for group in groups or range(len(self.ids))]
        live = torch.tensor([int(name.split("-")[1]) % every > 0 for name in ids])
        if not self.kl.coef and not self.rollout_settings.resample_dead and self.round_index:
            live[:] = False  # all groups of all ranks: the step before must not go on by its momentum
        live = live.repeat_interleave(self.group_size)
        total = live * torch.tensor([float(len(text) % 5) for text in rollout.texts], dtype=torch.float64)
        nothing = torch.zeros(len(total), 14, dtype=torch.long)
        return Rewards(total, {}, (nothing, nothing))


def main(policy, output, strategy, loss_type, kl_coef, trained, resample_dead):
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)  # which strategies of several processes set again, and `one` must match
    studies = [make_study(World(), 0, "train", index, 112) for index in range(4)]
    options = {"lora": LoRA(4)} if trained == "adapter" else {"reference": "copy"}
    module = Fixed(**nested(
        policy=policy, group_size=4, learning_rate=1e-2 if trained == "adapter" else 1e-3, warmup_steps=1,
        loss_type=loss_type, kl_coef=kl_coef, micro_batch_tokens=200,
        resample_dead=resample_dead, **options, **SETTINGS,
    ))  # fmt: skip
    devices = 1 if strategy == "one" else 2
    chosen = {"one": "auto", "fsdp": FSDP2()}.get(strategy, strategy)
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", devices=devices, strategy=chosen, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    logged = []
    record = module.log
    module.log = lambda name, value, **options: (logged.append((name, float(value))), record(name, value, **options))
    trainer.fit(module, FixedData(studies, batch_size=4 // devices))
    layer = module.policy.base.model.language_model.layers[0].mlp
    assert any(is_sharded(p) for p in layer.parameters()) == (strategy == "fsdp")
    weights = {name: full(p.detach()) for name, p in module.named_parameters() if p.requires_grad}
    if trainer.is_global_zero:
        told = [x for x in logged if not x[0].startswith("seconds/") and x[0] != "train/tokens_per_second"]
        torch.save({"weights": weights, "logged": told}, output)


if __name__ == "__main__":
    main(*sys.argv[1:5], float(sys.argv[5]), sys.argv[6], int(sys.argv[7]))

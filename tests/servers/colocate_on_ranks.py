"""GRPO with vLLM in the process; as a script in two processes, whose weights, rollouts and gaps are saved."""

import sys
from pathlib import Path

import lightning as L
import torch

from mrg.callbacks.checkpoint import Checkpoints
from mrg.datamodules.demo import World, make_study
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.colocate import Colocate
from tests.modules.test_grpo import SETTINGS, FixedData, weights
from tests.nested import nested
from tests.servers.engines import RANK

SETTING = Colocate(max_length=512, eager=True)


def fit(saved, studies, folder, steps, checkpoint=None, devices=1):
    """Weights after some rounds, the completions of each round, and the gaps between engine and policy."""
    torch.manual_seed(0)
    module = GRPOModule(**nested(
        policy=str(saved), lora=LoRA(RANK), group_size=4, learning_rate=1e-2, warmup_steps=1, mask_truncated=False,
        colocate=SETTING, **SETTINGS,
    ))  # fmt: skip
    logged, rollouts, sampled = [], [], module.rollout
    module.log = lambda name, value, **_: logged.append((name, float(value)))
    module.rollout = lambda *args: rollouts.append(sampled(*args)) or rollouts[-1]
    run = L.Trainer(
        max_steps=steps, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[Checkpoints(folder, save_every=2)],
    )  # fmt: skip
    run.fit(module, FixedData(studies[:4], batch_size=4 // devices), ckpt_path=checkpoint)
    gaps = [value for name, value in logged if name == "train/logp_gap"]
    return weights(module), rollouts, gaps


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[2])
    studies = [make_study(World(lateral=0.5), 0, "train", index, 112) for index in range(4)]
    found = fit(sys.argv[1], studies, output, 2, devices=2)
    torch.save(found, output / f"{torch.distributed.get_rank()}.pt")

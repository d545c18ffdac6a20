"""Round time with servers that sample the next round while this one trains, and with servers that are waited for.

The servers are an HTTP server in this process that writes random tokens after a fixed delay, so that the figures show
what overlapping hides, and not how fast a server is. `python benchmarks/overlap.py --delay 2`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mrg.datamodules.demo import DemoDataModule, World, make_study
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.tiny import Tiny, tiny_policy
from mrg.modules.rl.settings import RewardSettings
from mrg.modules.rollout.vllm_servers import Servers
from mrg.modules.settings import RolloutSettings
from tests.servers.fake import FakeVLLM

SIZE, GROUP, STUDIES, TOKENS = 56, 8, 8, 64


class Rounds(L.Callback):
    """Times at which rounds end, and the seconds that they wait for completions."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.waits: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Record a round."""
        self.ends.append(time.perf_counter())
        self.waits.append(float(trainer.callback_metrics["seconds/rollout"]))


def measure(policy: str, url: str, folder: str, overlap: int, rounds: int) -> dict[str, float]:
    """Median seconds of a round and of its wait for completions, without the first two rounds."""
    L.seed_everything(0, verbose=False)
    module = GRPOModule(
        policy=policy, lora=LoRA(8), prompt="Report:", think="absent", max_new_tokens=TOKENS, max_pixels=SIZE**2,
        rollout=RolloutSettings(group_size=GROUP, overlap=overlap, servers=Servers([url], f"{folder}/adapters")),
        reward=RewardSettings(mccs_weight=0.5, format_weight=0.5), sample_every=0, patience=rounds + 1,
    )  # fmt: skip
    data = DemoDataModule(
        num_train=STUDIES * (rounds + 1), num_val=1, num_test=1, batch_size=STUDIES, image_size=SIZE, num_workers=0
    )
    seen = Rounds()
    L.Trainer(
        max_steps=rounds, accelerator="cpu", callbacks=[seen], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
    ).fit(module, data)  # fmt: skip
    times = [end - start for start, end in zip(seen.ends[1:], seen.ends[2:], strict=False)]
    return {"round": statistics.median(times), "wait": statistics.median(seen.waits[2:])}


def main() -> None:
    """Print the times with and without overlap as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=2.0, help="seconds that an answer takes")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of each run")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        studies = [make_study(World(), 0, "train", index, SIZE) for index in range(8)]
        tiny_policy([study.report for study in studies], Tiny(256, vocab_size=400), SIZE**2).save(
            Path(folder) / "policy"
        )
        server = FakeVLLM(f"{folder}/policy", studies, SIZE**2, options.delay)
        found: dict[str, Any] = {"delay": options.delay, "rounds": options.rounds}
        for overlap in (0, 1):
            found[f"overlap {overlap}"] = measure(f"{folder}/policy", server.url, folder, overlap, options.rounds)
        server.close()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

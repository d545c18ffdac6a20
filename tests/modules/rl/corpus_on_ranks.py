"""Three rounds of GRPO on corpus F1, on one process or two; saves weights, what is logged, and the running counts."""

import sys
import zlib

import lightning as L
import torch

from mrg.datamodules.demo import World, make_study
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import LoRA
from mrg.modules.rl.corpus_f1 import CorpusF1
from mrg.modules.rl.entropy import EntropySettings
from tests.modules.grpo_on_ranks import Fixed
from tests.modules.test_grpo import SETTINGS, FixedData
from tests.nested import nested


def any_labels(texts):
    """Label classes that depend on the text alone, as of a labeler that reads the noise of a random policy."""
    rows = []
    for text in texts:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        rows.append(torch.randint(0, 4, (14,), generator=generator).where(torch.rand(14, generator=generator) < 0.3, 0))
    return torch.stack(rows)


class Tagged:
    """Puts each completion into report tags before it is rewarded: a random policy writes none."""

    def __init__(self, reward):
        self.reward = reward

    def __call__(self, texts, target, study_id):
        return self.reward([f"<report>{text}</report>" for text in texts], target, study_id)


class Corpus(Fixed):
    """With the reward that the settings name."""

    def rewards(self, rollout, batch, groups=()):
        return GRPOModule.rewards(self, rollout, batch, groups)


def corpus_module(policy, kind=GRPOModule, **settings):
    """A GRPO module whose rewards are corpus F1s of random labels."""
    options = {
        "policy": policy, "group_size": 4, "lora": LoRA(4), "learning_rate": 1e-2, "warmup_steps": 1, "kl_coef": 0.0,
        "labeler": any_labels, "mccs_weight": 0.0, "format_weight": 0.1, "corpus_f1_weight": 0.6,
        "denial_f1_weight": 0.3, "corpus_f1": CorpusF1(decay=0.5), **SETTINGS, **settings,
    }  # fmt: skip
    module = kind(**nested(**options))
    module.reward = Tagged(module.reward)
    return module


VARIANTS = {
    "corpus": {},
    "decoupled": {"aggregation": "normalize_then_sum", "corpus_f1_weight": 0.0, "denial_f1_weight": 0.0,
                  "mccs_weight": 0.5, "ce_f1_weight": 0.5},
    "uncertain": {"entropy": EntropySettings(coef=0.05, target=10.0, top_quantile=0.5), "above_constant_weight": 0.5,
                  "rare_mccs_weight": 0.5, "overlong_weight": 0.2, "overlong_cache": 8, "off_policy_limit": 0.1,
                  "num_iterations": 2},
}  # fmt: skip
"""Settings of the runs that must not depend on the number of processes."""


def fitted(policy, devices, settings):
    """Weights, what is logged, and counts of a run."""
    L.seed_everything(0, verbose=False)
    studies = [make_study(World(), 0, "train", index, 112) for index in range(4)]
    module = corpus_module(policy, Corpus, **settings)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    logged = []
    record = module.log
    module.log = lambda name, value, **options: (logged.append((name, float(value))), record(name, value, **options))
    trainer.fit(module, FixedData(studies, batch_size=4 // devices))
    weights = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    told = [x for x in logged if not x[0].startswith("seconds/") and x[0] != "train/tokens_per_second"]
    counts = {name: scorer.counts for name, scorer in module.corpus.items()}
    return {"weights": weights, "logged": told, "counts": counts}, trainer.is_global_zero


def main(policy, output, devices):
    torch.set_num_threads(1)
    found = {name: fitted(policy, devices, settings) for name, settings in VARIANTS.items()}
    if all(first for _, first in found.values()):
        torch.save({name: result for name, (result, _) in found.items()}, output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

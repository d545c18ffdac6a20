"""What a run exports is what plain transformers and peft load."""

import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.exporter import Trainer
from mrg.modules.grpo import GRPOModule
from mrg.modules.load import LoRA, load_policy
from mrg.modules.rollout import sample
from mrg.modules.sft import SFTModule
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness


@pytest.fixture
def run(policy, studies, tmp_path):
    """A base, a module trained from it for two rounds, and its checkpoint."""
    policy.save(tmp_path / "base")
    torch.manual_seed(0)
    settings = {"lora": LoRA(4), "learning_rate": 3e-2, "warmup_steps": 1, "group_size": 4, **SETTINGS}
    module = GRPOModule(policy=str(tmp_path / "base"), **settings)
    module.reward = Shortness()
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, enable_checkpointing=False,
    )  # fmt: skip
    data = FixedData(studies[:4], batch_size=4)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    batch = StudyCollator(module.writer.processor, "Report:")(studies[4:5])
    rollout = sample(module.writer, module.writer.embed(batch), 1, 10, temperature=0.0)
    return trainer, settings, batch, rollout.completion_ids[rollout.completion_mask].tolist(), module


def greedy(model, batch, module):
    """Tokens by transformers' own generate."""
    inputs = {
        "input_ids": batch.prompt_ids,
        "attention_mask": batch.prompt_mask.long(),
        "pixel_values": batch.pixel_values,
        "image_grid_thw": batch.image_grid_thw,
        "mm_token_type_ids": (batch.prompt_ids == module.writer.base.config.image_token_id).int(),
    }
    options = {"max_new_tokens": 10, "do_sample": False, "suppress_tokens": module.writer.banned_ids}
    end = {"eos_token_id": module.writer.eos_id, "pad_token_id": module.writer.pad_id}
    return model.eval().generate(**inputs, **options, **end)[0, batch.prompt_ids.shape[1] :].tolist()


def test_merged_and_adapter_write_what_the_run_writes(run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    trainer, settings, batch, expected, module = run
    base = str(tmp_path / "base")
    for adapter in (False, True):
        fresh = GRPOModule(policy=base, **settings)
        output = str(tmp_path / f"adapter-{adapter}")
        trainer.export(fresh, ckpt_path=str(tmp_path / "last.ckpt"), output=output, adapter=adapter)
        source = base if adapter else output
        model = AutoModelForImageTextToText.from_pretrained(source)
        if adapter:
            model = PeftModel.from_pretrained(model, output)
        assert greedy(model, batch, module) == expected
    untrained = AutoModelForImageTextToText.from_pretrained(base)
    assert greedy(untrained, batch, module) != expected
    assert load_policy(str(tmp_path / "adapter-False")).eos_id == module.writer.eos_id


def test_mistakes(run, tmp_path):
    trainer, settings, *_ = run
    base = str(tmp_path / "base")
    with pytest.raises(ValueError, match="pass --output FOLDER"):
        trainer.export(GRPOModule(policy=base, **settings))
    with pytest.raises(ValueError, match="base holds a checkpoint already"):
        trainer.export(GRPOModule(policy=base, **settings), output=base)
    with pytest.raises(ValueError, match="has no adapter"):
        trainer.export(SFTModule(policy=base, **SETTINGS), output=str(tmp_path / "out"), adapter=True)

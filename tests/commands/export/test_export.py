"""What a run exports is what plain transformers and peft load."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mrg.commands.export import Trainer
from mrg.datamodules.collate import StudyCollator
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.sampling import sample
from mrg.modules.sft import SFTModule
from tests.families import model_inputs
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness
from tests.nested import nested


def trained(policy, studies, tmp_path, **options):
    """A base, a module trained from it for two rounds, and its checkpoint."""
    policy.save(tmp_path / "base")
    torch.manual_seed(0)
    settings = {"lora": LoRA(4), "learning_rate": 3e-2, "warmup_steps": 1, "group_size": 4, **SETTINGS, **options}
    module = GRPOModule(**nested(policy=str(tmp_path / "base"), **settings))
    module.reward = Shortness()
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, enable_checkpointing=False,
    )  # fmt: skip
    data = FixedData(studies[:4], batch_size=4)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    batch = StudyCollator(module.policy.processor, "Report:")(studies[4:5])
    rollout = sample(module.policy, module.policy.embed(batch), 1, 10, temperature=0.0)
    return trainer, settings, batch, rollout.completion_ids[rollout.completion_mask].tolist(), module


@pytest.fixture
def run(policy, studies, tmp_path):
    return trained(policy, studies, tmp_path)


def greedy(model, batch, module):
    """Tokens by transformers' own generate."""
    options = {"max_new_tokens": 10, "do_sample": False, "suppress_tokens": module.policy.banned_ids}
    end = {"eos_token_id": module.policy.eos_id, "pad_token_id": module.policy.pad_id}
    inputs = model_inputs(module.policy, batch)
    return model.eval().generate(**inputs, **options, **end)[0, batch.prompt_ids.shape[1] :].tolist()


def test_merged_and_adapter_write_what_the_run_writes(run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    trainer, settings, batch, expected, module = run
    base = str(tmp_path / "base")
    for adapter in (False, True):
        fresh = GRPOModule(**nested(policy=base, **settings))
        output = str(tmp_path / f"adapter-{adapter}")
        trainer.export(fresh, ckpt_path=str(tmp_path / "last.ckpt"), output=output, adapter=adapter)
        source = base if adapter else output
        model = AutoModelForImageTextToText.from_pretrained(source)
        if adapter:
            model = PeftModel.from_pretrained(model, output)
        assert greedy(model, batch, module) == expected
    untrained = AutoModelForImageTextToText.from_pretrained(base)
    assert greedy(untrained, batch, module) != expected
    assert load_policy(str(tmp_path / "adapter-False")).eos_id == module.policy.eos_id


def test_the_exported_policy_generates_as_it_was_scored(policy, studies, tmp_path):
    """Without any argument, and whatever the base's own sampling is."""
    from transformers import AutoModelForImageTextToText, GenerationConfig

    trainer, settings, batch, expected, module = trained(policy, studies, tmp_path)
    base, output = tmp_path / "base", tmp_path / "out"
    own = {"do_sample": True, "repetition_penalty": 1.5, "temperature": 1e-6, "top_k": 1, "no_repeat_ngram_size": 2}
    GenerationConfig(**own, max_new_tokens=3, min_new_tokens=3).save_pretrained(base)
    fresh = GRPOModule(**nested(policy=str(base), **settings))
    trainer.export(fresh, ckpt_path=str(tmp_path / "last.ckpt"), output=str(output))
    written = json.loads((output / "generation_config.json").read_text())
    assert not {*own, "min_new_tokens"} - {"do_sample"} & set(written)
    assert written["do_sample"] is False
    assert (written["max_new_tokens"], written["eos_token_id"]) == (10, module.policy.eos_id)
    model = AutoModelForImageTextToText.from_pretrained(output).eval()
    tokens = model.generate(**model_inputs(module.policy, batch))[0, batch.prompt_ids.shape[1] :].tolist()
    assert tokens == expected


@pytest.mark.parametrize("train_vision", [False, True])
def test_merged_from_4_bits_is_the_whole_base_with_the_adapter(policy, studies, tmp_path, train_vision):
    """By plain transformers and peft, in tokens; by hand, in every weight."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    options = {"load_in_4bit": True, "train_vision": train_vision, "kl_coef": 0.0}
    trainer, settings, batch, _, module = trained(policy, studies, tmp_path, **options)
    base, checkpoint = str(tmp_path / "base"), str(tmp_path / "last.ckpt")
    output = tmp_path / "adapter"
    if train_vision:
        with pytest.raises(ValueError, match="An adapter does not contain the trained vision tower"):
            trainer.export(
                GRPOModule(**nested(policy=base, **settings)), ckpt_path=checkpoint, output=str(output), adapter=True
            )
        module.policy.save_adapter(output)
    else:
        trainer.export(
            GRPOModule(**nested(policy=base, **settings)), ckpt_path=checkpoint, output=str(output), adapter=True
        )
    trainer.export(GRPOModule(**nested(policy=base, **settings)), ckpt_path=checkpoint, output=str(tmp_path / "merged"))
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    start = AutoModelForImageTextToText.from_pretrained(base)
    moved = torch.load(checkpoint, weights_only=True)["state_dict"]
    update = load_file(output / "adapter_model.safetensors")
    own, num_adapted, num_vision = merged.state_dict(), 0, 0
    for name, value in start.state_dict().items():
        lora = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{lora}A.weight" in update:
            value = value + 8 * update[f"{lora}B.weight"] @ update[f"{lora}A.weight"]  # alpha / rank
            num_adapted += 1
        elif f"policy.model.base_model.model.{name}" in moved:
            assert not torch.equal(value, moved[f"policy.model.base_model.model.{name}"])
            value = moved[f"policy.model.base_model.model.{name}"]
            num_vision += 1
        assert torch.allclose(own[name], value, atol=1e-6), name
    assert num_adapted == 7 * start.config.text_config.num_hidden_layers
    assert (num_vision > 0) == train_vision
    untrained = greedy(start, batch, module)
    if not train_vision:
        beside = greedy(PeftModel.from_pretrained(start, output), batch, module)
        assert greedy(merged, batch, module) == beside
    assert greedy(merged, batch, module) != untrained


def test_mistakes(run, tmp_path):
    trainer, settings, *_ = run
    base = str(tmp_path / "base")
    with pytest.raises(ValueError, match="pass --output FOLDER"):
        trainer.export(GRPOModule(**nested(policy=base, **settings)))
    with pytest.raises(ValueError, match="base already contains a checkpoint"):
        trainer.export(GRPOModule(**nested(policy=base, **settings)), output=base)
    with pytest.raises(ValueError, match="has no adapter"):
        trainer.export(SFTModule(policy=base, **SETTINGS), output=str(tmp_path / "out"), adapter=True)

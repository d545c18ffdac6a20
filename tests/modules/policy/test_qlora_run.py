"""Runs with a language model in 4 bits by the command line: fit, resume, validate, test, predict, export."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mrg.cli import main
from mrg.commands.lightning import run
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.quantization import quantization_config
from mrg.modules.rewarded import RewardedModule
from tests.callbacks.resuming import Lengths, differences
from tests.checkpoints import save_published_format
from tests.families import model_inputs
from tests.trees import REPORTS, write_iu_tree

CONFIG = Path(__file__).parents[3] / "configs" / "iu.yaml"
FLOAT32 = ("--trainer.precision=32-true", "--model.init_args.dtype=float32")


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Makes arguments of `fit` on a checkpoint of the published format, with a reward that a random policy can earn."""
    set_reward = RewardedModule.set_reward

    def set_lengths(module, *settings):
        set_reward(module, *settings)
        module.reward = Lengths()

    monkeypatch.setattr(RewardedModule, "set_reward", set_lengths)
    (tmp_path / "base").mkdir()
    save_published_format(tmp_path / "base", [*REPORTS, "<think>Cardiomegaly</think>"])
    write_iu_tree(tmp_path / "data")

    def make(*options, name="iu", steps=3):
        return [
            f"--config={CONFIG}",
            f"--runs={tmp_path / 'runs'}",
            f"--name={name}",
            "--save_every=1",
            f"--trainer.max_steps={steps}",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.val_check_interval=3",
            "--trainer.check_val_every_n_epoch=null",
            f"--model.init_args.policy={tmp_path / 'base'}",
            "--model.init_args.load_in_4bit=true",
            "--model.init_args.lora={rank: 4, alpha: 8}",
            "--model.init_args.optimizer.learning_rate=3e-2",
            "--model.init_args.optimizer.warmup_steps=1",
            "--model.init_args.max_new_tokens=12",
            "--model.init_args.rollout.group_size=4",
            f"--data.init_args.root={tmp_path / 'data'}",
            "--data.init_args.variant=any",
            "--data.init_args.num_workers=0",
            "--data.init_args.batch_size=2",
            *options,
        ]

    return make


def trained_rounds(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("options", [FLOAT32, ()], ids=["float32", "as shipped"])
def test_fit_moves_the_adapter_alone(tmp_path, arguments, options):
    start = load_policy(
        str(tmp_path / "base"), LoRA(4, 8), dtype="float32" if options else "bfloat16", load_in_4bit=True
    )
    module = run(["fit", *arguments(*options)]).model
    layers = [layer for layer in module.policy.modules() if isinstance(layer, Linear4bit)]
    assert len(layers) == 7 * 2
    rows = trained_rounds(tmp_path / "runs" / "iu")
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        assert all(math.isfinite(float(row[f"train/{name}"])) for name in ("loss", "grad_norm", "entropy"))
        assert float(row["train/grad_norm"]) > 0
        # To the rounding of float32, but by two ways of computing: not the same numbers handed on.
        assert (0 < float(row["train/logp_gap"]) < 1e-4) if options else float(row["train/logp_gap"]) < 0.05
    assert float(rows[0]["train/kl"]) < 1e-6  # the reference is the policy without its adapter
    assert float(rows[2]["train/kl"]) > 1e-3
    before, after = weights(start), weights(module.policy)
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (".lora_" not in name), name


def test_a_resumed_run_is_the_unbroken_one(tmp_path, arguments):
    dropout = "--model.init_args.lora={rank: 4, alpha: 8, dropout: 0.1}"  # the global generator matters too
    main(["fit", *arguments(dropout, name="whole", steps=4)])
    main(["fit", *arguments(dropout, name="broken", steps=2)])
    main(["fit", *arguments(dropout, "--resume=auto", name="broken", steps=4)])
    runs = tmp_path / "runs"
    assert len(trained_rounds(runs / "whole")) == 4
    assert differences(runs / "whole", runs / "broken") == []


def test_the_other_commands(tmp_path, arguments, capsys):
    cache = f"--model.init_args.vision_cache={tmp_path / 'images'}"
    main(["fit", *arguments(cache)])
    assert len(list((tmp_path / "images").iterdir())) == 3 * 2 + 2  # of training, of validation
    folder = tmp_path / "runs" / "iu"
    saved = [f"--config={folder / 'config.yaml'}", f"--runs={folder.parent}", "--name=iu"]
    for command in ("validate", "test", "predict"):
        main([command, *saved])
    files = (folder / name for name in ("predictions.jsonl", "predict.jsonl"))
    tested, predicted = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert [line["id"] for line in tested] == ["test0", "test1", "test2"]
    assert [line["completion"] for line in predicted] == [line["completion"] for line in tested]
    main(["export", *saved, f"--output={tmp_path / 'merged'}"])
    main(["export", *saved, f"--output={tmp_path / 'adapter'}", "--adapter=true"])
    out = capsys.readouterr().out
    assert f"Policy: {tmp_path / 'merged'}" in out
    assert f"Adapter: {tmp_path / 'adapter'}\n" in out
    # What a run leaves is what is exported: whole weights, from which the next run can start.
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    left, exported = (load_file(path / "model.safetensors") for path in (folder / "policy", tmp_path / "merged"))
    assert left.keys() == exported.keys()
    assert all(torch.equal(value, exported[name]) for name, value in left.items())
    assert load_policy(str(folder / "policy"), LoRA(4), load_in_4bit=True).base.is_loaded_in_4bit


def test_an_exported_adapter_loads_beside_the_whole_base_and_beside_one_in_4_bits(tmp_path, arguments):
    module = run(["fit", *arguments(*FLOAT32)]).model
    module.policy.save_adapter(tmp_path / "adapter")
    batch = next(iter(module.trainer.datamodule.val_dataloader()))
    inputs = model_inputs(module.policy, batch)
    own = module.policy.model.eval()
    outputs = {}
    for name, options in ("whole", {}), ("4 bits", {"quantization_config": quantization_config("qwen2_5_vl")}):
        base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.float32, **options)
        for layer in base.modules():
            if isinstance(layer, Linear4bit):
                layer.compute_dtype, layer.support_avx512bf16_for_cpu = torch.float32, False
        model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        with torch.no_grad():
            outputs[name] = model(**inputs).logits
    with torch.no_grad():
        expected = own(**inputs).logits
        with own.disable_adapter():
            without = own(**inputs).logits
    real = batch.prompt_mask
    assert (outputs["4 bits"] - expected)[real].abs().max() < 1e-4
    change = (expected - without)[real].norm()
    # Beside the whole base it is another model, closer to this one than the base without an adapter is.
    assert 1e-3 * change < (outputs["whole"] - expected)[real].norm() < 0.5 * change

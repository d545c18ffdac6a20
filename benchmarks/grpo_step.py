"""Time a GRPO step of TRL and of mrg on the same random vision-language model.

    python benchmarks/grpo_step.py --output benchmarks/results/grpo_step.json

Both run in separate processes, with one study per step, full-length completions, LoRA and a reference model. TRL is
part of `pip install -e '.[dev]'`. On a GPU, `--geometry 3b --device cuda --dtype bfloat16` times mrg alone on a random
model of that size and compares it with the peak rates of the GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from operations import GEOMETRIES, language_operations, vision_operations

PROMPT = "Describe the lungs and the heart in detail. " + "normal " * 40
LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def build(folder: Path, geometry: str, max_pixels: int, dtype: str) -> None:
    """Save a random model, and a processor whose tokenizer is trained on a few words."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from mrg.modules.policy.processor import build_processor

    torch.manual_seed(0)
    processor = build_processor([PROMPT] * 4, 600, max_pixels)
    tokenizer, shape = processor.tokenizer, GEOMETRIES[geometry]
    half = shape["text"]["hidden_size"] // shape["text"]["num_attention_heads"] // 2
    marks = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    config = Qwen2_5_VLConfig(
        text_config={
            **shape["text"],
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "use_sliding_window": False,
            "tie_word_embeddings": False,
        },
        vision_config={**shape["vision"], "out_hidden_size": shape["text"]["hidden_size"]},
        tie_word_embeddings=False,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()},
    )
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def random_model(options: argparse.Namespace, max_pixels: int) -> Iterator[str]:
    """Folder with a random model, which is kept for another run if `--keep` names it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if not (folder / "complete").is_file():
            build(folder, options.geometry, max_pixels, options.dtype)
            (folder / "complete").touch()
        yield str(folder)


def picture(index: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 255, (height, width), dtype=np.uint8)


def reward(texts: list[str]) -> list[float]:
    """Rewards that differ within a group, so that every group has a gradient."""
    return [float(len(set(text)) % 7) + 0.1 * (index % 8) for index, text in enumerate(texts)]


class Clock:
    """Wall time of steps, and peak memory of the process (CPU) or of the device (GPU)."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.begin()

    def begin(self) -> None:
        """Start counting memory."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.base = self.peak()

    @staticmethod
    def peak() -> float:
        """Peak memory in MB."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    @staticmethod
    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def stamp(self) -> None:
        self.stamps.append(self.now())

    def result(self) -> dict[str, Any]:
        steps = np.diff(self.stamps).tolist()[1:]  # the first step also allocates and plans
        return {"seconds": steps, "base_mb": self.base, "peak_mb": self.peak()}


def run_mrg(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Steps of GRPOModule in a Lightning trainer."""
    import lightning as L

    from mrg.datamodules.base import ReportDataModule
    from mrg.datamodules.study import Study, View
    from mrg.modules.grpo import GRPOModule
    from mrg.modules.optimizer import OptimizerSettings
    from mrg.modules.policy.lora import LoRA
    from mrg.modules.rl.reward import Rewards
    from mrg.modules.settings import RolloutSettings

    class Pictures(ReportDataModule):
        def read(self) -> dict[str, list[Study]]:
            studies = [
                Study(str(i), (View(picture(i, options.height, options.width), "frontal"),), "normal")
                for i in range(options.studies * (options.steps + 2))
            ]
            return {"train": studies, "val": studies[:1], "test": studies[:1]}

    class Timed(L.Callback):
        def __init__(self, clock: Clock) -> None:
            self.clock, self.phases, self.found = clock, [], {}

        def on_train_start(self, *args: Any) -> None:
            self.clock.begin()  # the policy is loaded and on its device

        def on_train_batch_start(self, *args: Any) -> None:
            if not self.clock.stamps:
                self.clock.stamp()

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            self.clock.stamp()
            self.phases.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("seconds/")})
            seconds = self.clock.stamps[-1] - self.clock.stamps[-2]
            print(f"mrg: {seconds:.2f} s for step {len(self.phases)}", file=sys.stderr)  # seen if time runs out

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.found = self.clock.result()  # before anything else is allocated or the policy leaves the device
            batch = trainer.datamodule.collator(trainer.datamodule.splits["train"][:1]).to(module.device)
            with torch.no_grad():
                prompt = module.policy.embed(batch)
            self.found |= {"prompt_tokens": int(prompt.mask.sum()), "image_tokens": int(prompt.visual.sum())}
            self.found |= speed_of_light(module.device)

    module = GRPOModule(
        policy=folder, lora=LoRA(16, 32), prompt=PROMPT, think="absent", rollout=RolloutSettings(options.group_size),
        max_new_tokens=options.completion, gradient_checkpointing=options.checkpointing,
        load_in_4bit=options.load_in_4bit,
        optimizer=OptimizerSettings(warmup_steps=0),
        dtype=options.dtype, micro_batch_tokens=options.micro_batch_tokens,
    )  # fmt: skip

    def rewards(texts: list[str], target: list[str], study_id: list[str]) -> Rewards:
        nothing = torch.zeros(len(texts), 14, dtype=torch.long)
        return Rewards(torch.tensor(reward(texts), dtype=torch.float64), {}, (nothing, nothing))

    module.reward = rewards  # type: ignore[assignment]
    data = Pictures(batch_size=options.studies, num_workers=0)
    trainer = L.Trainer(
        max_steps=options.steps + 1, accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        precision="bf16-mixed" if options.dtype == "bfloat16" else "32-true",
    )  # fmt: skip
    setup = module.setup

    def without_end(stage: str) -> None:
        setup(stage)
        module.policy.__dict__["banned_ids"] = [*module.policy.banned_ids, module.policy.eos_id]

    module.setup = without_end  # type: ignore[method-assign]
    clock = Clock()
    timed = Timed(clock)
    trainer.callbacks.append(timed)
    trainer.fit(module, data)
    names = timed.phases[-1]
    phases = {name: float(np.median([p[name] for p in timed.phases[1:]])) for name in names}
    weights = sum(p.numel() * p.element_size() for p in module.policy.base.model.language_model.parameters())
    return {**timed.found, "phases": phases, "weight_bytes": weights}


def speed_of_light(device: torch.device) -> dict[str, float]:
    """Peak rates of this machine: operations per second of a large product, bytes per second of a large copy."""
    dtype, size = (torch.bfloat16, 8192) if device.type == "cuda" else (torch.float32, 1024)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device, dtype=torch.uint8)

    def best(function: Any) -> float:
        seconds = []
        for _ in range(6):
            start = Clock.now()
            function()
            seconds.append(Clock.now() - start)
        return min(seconds)

    copied = 2 * source.numel() / best(source.clone)
    return {"matmul_per_s": 2 * size**3 / best(lambda: a @ b), "bytes_per_s": copied}


def run_trl(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Steps of TRL's GRPOTrainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from PIL import Image
    from transformers import AutoModelForImageTextToText, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from mrg.modules.policy.processor import load_qwen_processor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, options.dtype))
    processor = load_qwen_processor(folder)
    num = options.studies * (options.steps + 2)
    images = [Image.fromarray(picture(i, options.height, options.width)).convert("RGB") for i in range(num)]
    prompts = [[{"role": "user", "content": PROMPT}] for _ in range(num)]
    data = Dataset.from_dict({"prompt": prompts, "image": images})

    def rewards(completions: list[Any], **_: Any) -> list[float]:
        return reward([completion[0]["content"] for completion in completions])

    class Timed(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not clock.stamps:
                clock.stamp()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.stamp()

    arguments = GRPOConfig(
        output_dir=f"{folder}/trl", per_device_train_batch_size=options.group_size * options.studies,
        num_generations=options.group_size, max_completion_length=options.completion, beta=0.04,
        max_steps=options.steps + 1, gradient_checkpointing=options.checkpointing, bf16=False, report_to=[],
        logging_steps=1, save_strategy="no", learning_rate=1e-4, use_cpu=options.device == "cpu", temperature=1.0,
        disable_tqdm=True, generation_kwargs={"min_new_tokens": options.completion},
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=LANGUAGE_LINEARS)
    trainer = GRPOTrainer(model=model, reward_funcs=rewards, args=arguments, train_dataset=data,
                          processing_class=processor, peft_config=lora, callbacks=[Timed()])  # fmt: skip
    clock = Clock()
    trainer.train()
    return clock.result()


def ideal(options: argparse.Namespace, prompt: int, image_tokens: int) -> float:
    """Factor by which computing the prompt once per study reduces the operations of a step."""
    images, group = vision_operations(options.geometry, image_tokens), options.group_size
    once, repeated = (
        language_operations(options.geometry, prompt, copies, group, options.completion) for copies in (1, group)
    )
    # Rollout and reference take one pass each, the policy two: with frozen weights, backward costs as much as forward.
    return (4 * repeated + 3 * group * images) / (4 * once + images)


def efficiency(options: argparse.Namespace, mine: dict[str, Any]) -> dict[str, float]:
    """Tokens per second, and how close the policy pass and decoding come to the peak rates of the machine."""
    text, prompt = GEOMETRIES[options.geometry]["text"], mine["prompt_tokens"]
    passes = 3 if options.checkpointing else 2
    once = language_operations(options.geometry, prompt, 1, options.group_size, options.completion)
    done = passes * options.studies * once / mine["phases"]["seconds/policy"]
    kv = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["hidden_size"]
    kv //= text["num_attention_heads"]
    read = mine["weight_bytes"] + options.studies * prompt * kv * (2 if options.dtype == "bfloat16" else 4)
    least = options.completion * read / mine["bytes_per_s"]
    tokens = options.studies * (prompt + options.group_size * options.completion)
    return {
        "tokens_per_s": tokens / float(np.median(mine["seconds"])),
        "policy_share_of_matmul": done / mine["matmul_per_s"],
        "rollout_over_bandwidth_bound": mine["phases"]["seconds/rollout"] / least,
    }


def machine(options: argparse.Namespace, with_trl: bool = False) -> dict[str, Any]:
    names = ["torch", "transformers", "lightning", *(["trl"] if with_trl else [])]
    versions = {name: importlib.metadata.version(name) for name in names}
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    date = datetime.date.today().isoformat()
    return {"date": date, "machine": name, "threads": options.threads, "versions": versions}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=list(GEOMETRIES), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--height", type=int, default=952)
    parser.add_argument("--width", type=int, default=1008)
    parser.add_argument("--completion", type=int, default=200)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--studies", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--alone", action="store_true", help="mrg alone, also with the tiny model")
    parser.add_argument("--load-in-4bit", action="store_true", help="QLoRA: mrg alone, on a CUDA GPU")
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=["mrg", "trl"], help="run one side and print its numbers as JSON")
    parser.add_argument("--folder")
    parser.add_argument("--keep", type=Path, help="folder in which the random model is kept for another run")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def run_side(side: str, folder: str) -> dict[str, Any]:
    """Run a side in a separate process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # warnings and errors are seen
    lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{side} failed with {output.returncode}:\n{output.stdout[-2000:]}")
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def report(options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print and return the comparison."""
    mine = results["mrg"]
    prompt, image_tokens = mine["prompt_tokens"], mine["image_tokens"]
    print(
        f"P {prompt} ({image_tokens} image tokens), C {options.completion}, G {options.group_size}, studies "
        f"{options.studies}, checkpointing {options.checkpointing}, {options.threads} threads"
    )
    for side, row in results.items():
        seconds, memory = row["seconds"], row["peak_mb"] - row["base_mb"]
        print(
            f"{side:<5}{np.median(seconds):8.2f} s per step ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{memory:,.0f} MB above the loaded model"
        )
    print("mrg by phase: " + ", ".join(f"{k.removeprefix('seconds/')} {v:.2f}" for k, v in mine["phases"].items()))
    near = efficiency(options, mine)
    print(
        f"{near['tokens_per_s']:,.0f} tokens/s; the policy pass runs at "
        f"{100 * near['policy_share_of_matmul']:.0f} % of the speed of a large matrix product; the rollout takes "
        f"{near['rollout_over_bandwidth_bound']:.1f} times the time "
        "of reading the weights and one copy of each prompt's keys"
    )
    settings = {k: v for k, v in vars(options).items() if k not in ("output", "side", "folder", "keep")}
    summary: dict[str, Any] = {**machine(options, "trl" in results), "settings": settings, "efficiency": near}
    if "trl" in results:
        speedup = float(np.median(results["trl"]["seconds"]) / np.median(mine["seconds"]))
        memory = [row["peak_mb"] - row["base_mb"] for row in (mine, results["trl"])]
        best = ideal(options, prompt, image_tokens)
        print(
            f"{speedup:.2f} times faster, using {memory[0] / memory[1]:.2f} of the memory; the ratio of operations "
            f"is {best:.2f}"
        )
        summary |= {"speedup": speedup, "memory_ratio": memory[0] / memory[1], "ideal": best}
    return summary


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.side:
        result = (run_mrg if options.side == "mrg" else run_trl)(options, options.folder)
        print("RESULT " + json.dumps(result))
        return
    with random_model(options, options.height * options.width) as folder:
        installed = all(importlib.util.find_spec(name) for name in ("trl", "datasets"))
        sides = ["mrg", "trl"] if installed and options.geometry == "tiny" and not options.alone else ["mrg"]
        # One alone needs no process of its own: on a GPU, memory is counted from the start of training.
        mine = run_mrg(options, folder) if sides == ["mrg"] else run_side("mrg", folder)
        results, failed = {"mrg": mine}, ""
        if "trl" in sides:
            try:
                results["trl"] = run_side("trl", folder)
            except SystemExit as stop:  # what was measured of mrg is reported nevertheless
                failed = str(stop)
    summary = report(options, results)
    if options.output:
        options.output.write_text(json.dumps({**summary, "results": results}, indent=1) + "\n")
    raise SystemExit(failed or 0)


if __name__ == "__main__":
    main()

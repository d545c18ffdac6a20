"""Rollouts sampled by vLLM in the trainer's process, on the trainer's GPU.

The engine holds a second copy of the base weights. Between two rollouts it sleeps: its weights are moved to CPU memory
and its KV cache is dropped, so that training has the GPU to itself (on a CPU it does not sleep). Only its adapter
changes: it is written to a temporary folder of the process before each round. Under DDP every process has an engine.

vLLM's public Python API is used alone (https://docs.vllm.ai): `LLM` with `chat`, `sleep` and `wake_up`,
`SamplingParams`, and `LoRARequest`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from mrg.datamodules.collate import Batch
from mrg.errors import MissingPackageError, RunError, UserError
from mrg.log import log
from mrg.modules.policy.lora import largest_rank
from mrg.modules.policy.policy import Policy
from mrg.modules.policy.precision import PRECISIONS
from mrg.modules.rl.correction import Correction, check_correction
from mrg.modules.rollout.exchange import Contents, check_prompt, prompt_tokens, sampling_options, to_rollout
from mrg.modules.rollout.sampling import Rollout

OLDEST, NEWEST = (0, 32), (0, 32)
"""First and last minor release of vLLM with which this has been tested."""

SUPPORTED = f"vllm>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks of an adapter that vLLM can be started with."""
WHERE = "model.init_args.rollout.colocate"
GIB = 2**30


@dataclasses.dataclass
class Colocate:
    """A vLLM engine in the trainer's process.

    Args:
        memory: Share of a GPU's memory that the engine may use while it is awake: weights, activations and KV cache.
        max_length: Largest number of tokens of a prompt with its completion; fewer need less memory.
        eager: Run without CUDA graphs, which starts faster and decodes slower.
        correction: Correction for the gap between policy and engine, as that of `servers`.
        ratio_limit: Limit of the ratio in the correction.
    """

    memory: float = 0.4
    max_length: int = 8192
    eager: bool = False
    correction: Correction = "truncate"
    ratio_limit: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.memory < 1:
            raise UserError(f"Expected {WHERE}.memory to be above 0 and below 1, but got {self.memory}.")
        if self.max_length < 1:
            raise UserError(f"Expected {WHERE}.max_length to be at least 1, but got {self.max_length}.")
        check_correction(self.correction, self.ratio_limit, f"{WHERE}.")


def check_version() -> str:
    """Check that a supported vLLM is installed, without importing it.

    Returns:
        Its version.

    Raises:
        MissingPackageError: If it is not installed.
        UserError: If its version is not supported.
    """
    remedy = f"Install it (pip install '{SUPPORTED}'), or use rollout.servers (configs/rollout/vllm.yaml)."
    try:
        found = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise MissingPackageError(
            f"Expected vLLM in this Python environment for {WHERE}, but it is not installed. {remedy}"
        ) from None
    numbers = found.split(".")[:2]
    if not all(map(str.isdecimal, numbers)) or not OLDEST <= tuple(map(int, numbers)) <= NEWEST:
        raise UserError(f"Expected {SUPPORTED} for {WHERE}, but found version {found}. {remedy}")
    return found


def check_memory(free: int, needed: int, setting: str) -> None:
    """Check that the engine's memory is free.

    Args:
        free: Free GPU memory in bytes.
        needed: Memory that the engine needs, in bytes.
        setting: What the need follows from, and what to change.

    Raises:
        UserError: If there is not enough.
    """
    if free < needed:
        raise UserError(
            f"Expected {needed / GIB:.1f} GiB of GPU memory to be free for the vLLM engine, but {free / GIB:.1f} GiB "
            f"are free: {setting}."
        )


class ColocatedEngine:
    """vLLM in this process, which samples rollouts.

    Args:
        settings: Settings of the engine.
        policy: Policy whose adapter the engine loads.
        source: Checkpoint of the policy's base model: a folder or a Hub id.
        num_images: Largest number of images of a study.
        trainer: Trainer whose device, precision and processes the engine shares.

    Raises:
        UserError: If the engine cannot be started, for example because too little memory is free.
    """

    def __init__(self, settings: Colocate, policy: Policy, source: str, num_images: int, trainer: L.Trainer) -> None:
        self.settings, self.policy = settings, policy
        self.version = f"vLLM {check_version()}"
        self.contents = Contents(policy, lambda image: {"type": "image_pil", "image_pil": image})
        self.folder = tempfile.TemporaryDirectory(prefix="mrg-adapter-")
        self.adapter: Any = None
        self.last_sync = -1
        self.device = trainer.strategy.root_device
        self.sleeps = self.device.type == "cuda"
        self.asleep = 0  # bytes that the engine gave back when it fell asleep
        self.threads = torch.get_num_threads()
        if self.sleeps:
            free, total = torch.cuda.mem_get_info(self.device)
            lower = f"lower {WHERE}.memory ({settings.memory} of {total / GIB:.1f} GiB), or end what uses the GPU"
            check_memory(free, int(settings.memory * total), lower)
        with _launched(trainer, self.device), self._apart():
            self.engine = self._start(source, num_images, str(trainer.precision))
            self._sleep()
        log.info("Completions are sampled by %s in this process.", self.version)

    def _start(self, source: str, num_images: int, precision: str) -> Any:
        from vllm import LLM

        config, settings = self.policy.base.config, self.settings
        longest = getattr(config.get_text_config(), "max_position_embeddings", settings.max_length)
        rank = largest_rank(self.policy.model)
        frozen = next(self.policy.base.parameters()).dtype
        options: dict[str, Any] = (
            {}
            if not torch.distributed.is_initialized() and not self.device.index
            else {"distributed_executor_backend": "external_launcher"}
        )
        try:
            return LLM(
                source,
                dtype="bfloat16" if PRECISIONS[precision] else str(frozen).removeprefix("torch."),
                gpu_memory_utilization=settings.memory,
                max_model_len=min(settings.max_length, longest),
                enforce_eager=settings.eager,
                enable_sleep_mode=self.sleeps,
                enable_lora=True,
                max_lora_rank=next((size for size in RANKS if size >= rank), rank),
                max_loras=1,
                limit_mm_per_prompt={"image": num_images},
                mm_processor_cache_gb=0,
                logprobs_mode="processed_logprobs",
                seed=0,
                **options,
            )
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:400]
            raise UserError(
                f"{self.version} does not start in this process ({type(error).__name__}: {reason}). If memory is "
                f"short, change {WHERE}.memory ({settings.memory}) or lower {WHERE}.max_length ({settings.max_length})."
            ) from error

    def synchronize(self, round_index: int, trainer: L.Trainer) -> None:
        """Load the policy's adapter into the engine, once per round.

        Args:
            round_index: Index of the round.
            trainer: Not used: each process writes the adapter for its own engine.
        """
        if self.adapter is not None and round_index == self.last_sync:
            return
        from vllm.lora.request import LoRARequest

        before = self.adapter
        number = 1 if before is None else before.lora_int_id + 1
        folder = Path(self.folder.name) / str(number)
        self.policy.save_adapter(folder)
        self.adapter = LoRARequest(f"adapter-{number}", number, str(folder))
        self.last_sync = round_index
        if before is not None:
            for file in Path(before.lora_path).iterdir():
                file.unlink()

    def sample(
        self, batch: Batch, seeds: Mapping[int, int], group_size: int, max_new_tokens: int, temperature: float
    ) -> Rollout:
        """Sample `group_size` completions per study.

        Args:
            batch: B studies.
            seeds: Index of a study in the batch -> its seed, in the order of the result.
            group_size: Completions per study.
            max_new_tokens: Largest number of tokens of a completion.
            temperature: Sampling temperature; 0 takes the most likely token, for one completion per study.

        Raises:
            UserError: If a study does not fit into `max_length`, or the engine reads another prompt than the policy.
            RunError: If too little memory is free to wake the engine up.
        """
        from vllm import SamplingParams

        requests, settings = [], []
        for row, seed in seeds.items():
            requests.append([{"role": "user", "content": self.contents.of(batch, row)}])
            settings.append(
                SamplingParams(
                    **sampling_options(self.policy, group_size, temperature, seed),
                    max_tokens=max_new_tokens,
                    logprobs=0,
                    detokenize=False,
                )
            )
            self._check_length(batch, row, max_new_tokens)
        with self._apart():
            self._wake_up()
            try:
                written = self.engine.chat(requests, settings, use_tqdm=False, lora_request=self.adapter)
            finally:
                self._sleep()
        tokens, logps = [], []
        for row, study in zip(seeds, written, strict=True):
            check_prompt(study.prompt_token_ids, prompt_tokens(batch, row), batch.study_id[row], "engine")
            for output in study.outputs:
                tokens.append(list(output.token_ids))
                logps.append(
                    [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
                )
        return to_rollout(self.policy, tokens, logps, batch.prompt_ids.device)

    def _check_length(self, batch: Batch, row: int, max_new_tokens: int) -> None:
        length = int(batch.prompt_mask[row].sum())
        if length + max_new_tokens > self.settings.max_length:
            raise UserError(
                f"Study {batch.study_id[row]}: expected at most {self.settings.max_length} tokens of prompt and "
                f"completion ({WHERE}.max_length), but its prompt has {length} and its completion up to "
                f"{max_new_tokens}: raise max_length, or lower max_pixels or max_new_tokens."
            )

    def _wake_up(self) -> None:
        if not self.sleeps:
            return
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        try:
            lower = f"lower {WHERE}.memory ({self.settings.memory}), or what training holds"
            check_memory(free, self.asleep, lower)
        except UserError as error:
            raise RunError(str(error)) from None
        self.engine.wake_up()

    def _sleep(self) -> None:
        if not self.sleeps:
            return
        before, _ = torch.cuda.mem_get_info(self.device)
        self.engine.sleep(level=1)
        self.asleep = max(0, torch.cuda.mem_get_info(self.device)[0] - before)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Keep the engine's state of the process from the training, and the training's from the engine.

        The engine seeds and uses the random generators, and sets the number of threads, which its compiled code expects
        again. A training step runs under autocast, which the engine must not.
        """
        python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
        devices = [self.device] if self.device.type == "cuda" else []
        _set_threads(self.threads)
        try:
            with torch.random.fork_rng(devices), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.threads = torch.get_num_threads()
            _set_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)


def _set_threads(number: int) -> None:
    if torch.get_num_threads() != number:  # on a CPU, vLLM logs a line at every call
        torch.set_num_threads(number)


@contextlib.contextmanager
def _launched(trainer: L.Trainer, device: torch.device) -> Iterator[None]:
    """Set the variables by which vLLM runs in this process, with one engine for each process of the trainer."""
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    if torch.distributed.is_initialized() or device.index:
        variables |= {
            "RANK": str(trainer.global_rank),
            "LOCAL_RANK": str(device.index if device.type == "cuda" else trainer.local_rank),
            "WORLD_SIZE": str(trainer.world_size),
            "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
            "MASTER_PORT": os.environ.get("MASTER_PORT") or str(find_free_network_port()),
        }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

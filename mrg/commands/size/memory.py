"""GPU memory that a rank needs, in bytes: what is resident, and what each phase of a round adds."""

from __future__ import annotations

import dataclasses

from mrg.commands.size.activations import (
    TRAINED,
    Training,
    forward_work,
    head_copy,
    kv_cache,
    policy_pass,
    reference_pass,
    sampling_work,
    vision_pass,
)
from mrg.commands.size.geometry import Geometry
from mrg.modules.rollout.static_cache import LENGTH_MULTIPLE

NF4_BYTES = 4.127 / 8
"""Bytes of a weight in NF4 with double quantization (Dettmers et al., QLoRA, 2023)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a run that its memory depends on."""

    training: Training  # how the model is held and trained
    strategy: str = "one"  # `"one"` for a single GPU, `"ddp"` or `"fsdp"`, see `mrg.strategy`
    world_size: int = 1  # number of GPUs
    batch_size: int = 8  # studies per round on one GPU
    group_size: int = 8  # completions per study; 1 in SFT
    max_new_tokens: int = 256  # length of the longest completion in tokens
    micro_batch_tokens: int = 16_384  # token budget of one pass; 0 in SFT, which passes over its whole batch
    eval_batch_size: int = 16  # studies per batch in validation
    text_tokens: int = 80  # tokens of a prompt without its images
    images: int = 2  # images per study
    image_tokens: int = 330  # tokens per image
    reference: bool = True  # whether there is a KL term
    train_vision: bool = False  # whether the vision tower is trained
    quantized: bool = False  # whether the decoder's weights are held in 4 bits
    servers: bool = False  # whether rollouts come from vLLM, on servers or in the trainer's process
    compile_decode: bool = False  # whether decoding steps are compiled, which keeps their tensors allocated
    colocate: float = 0.0  # share of a GPU that a vLLM engine in the trainer's process may use; 0 without one
    engine_length: int = 0  # largest number of tokens of a prompt with its completion in that engine
    gpu_memory: int = 0  # memory of one GPU in bytes, which `colocate` is a share of

    @property
    def static_cache(self) -> bool:
        """Whether the KV cache stays allocated between rollouts."""
        return self.compile_decode and self.strategy != "fsdp" and not self.quantized

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt."""
        return self.text_tokens + self.images * self.image_tokens

    @property
    def shards(self) -> int:
        """Number of ranks that the decoder layers are sharded over."""
        return self.world_size if self.strategy == "fsdp" else 1

    @property
    def group_tokens(self) -> int:
        """Tokens of one group in a pass; the last token of a completion is never an input."""
        return self.prompt_tokens + self.group_size * (self.max_new_tokens - 1)

    @property
    def pass_tokens(self) -> int:
        """Largest number of tokens in one pass: if completions are short, more groups fill the budget."""
        if not self.micro_batch_tokens:
            return self.batch_size * (self.prompt_tokens + self.max_new_tokens)
        return max(self.group_tokens, min(self.micro_batch_tokens, self.batch_size * self.group_tokens))

    @property
    def completion_tokens(self) -> int:
        """Tokens of one pass whose log-probabilities are computed, for completions of full length."""
        if not self.micro_batch_tokens:
            return self.batch_size * self.max_new_tokens
        return round(self.pass_tokens / self.group_tokens * self.group_size * self.max_new_tokens)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one rank in bytes.

    Args:
        resident: What is always allocated, by name.
        phases: What each phase adds at its peak, by its name in metrics.csv.
        engine: What a vLLM engine in the trainer's process uses in its rollouts, by name; empty without one.
        engine_needs: What that engine needs to start.
    """

    resident: dict[str, int]
    phases: dict[str, int]
    engine: dict[str, int] = dataclasses.field(default_factory=dict)
    engine_needs: int = 0

    def fits(self, allowed: float) -> bool:
        """Whether the peak is at most a number of bytes, and the engine starts."""
        return self.total <= allowed and self.engine_needs <= sum(self.engine.values())

    @property
    def largest(self) -> str:
        """Name of the phase that adds most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def total(self) -> int:
        """Peak memory: resident, plus the largest phase."""
        return sum(self.resident.values()) + self.phases[self.largest]


def memory(shape: Geometry, plan: Plan) -> Memory:
    """Predict the memory of one rank.

    Not included: the CUDA context, NCCL's buffers and fragmentation, together some GiB.
    """
    resident = trained_state(shape, plan)
    prompts = plan.batch_size * plan.prompt_tokens
    embeddings = prompts * shape.width * plan.training.language
    resident["prompts and pixels"] = embeddings + _pixels(shape, plan, plan.batch_size)
    writes = plan.group_size > 1 and not plan.servers
    engine, needs = engine_memory(shape, plan)
    if plan.static_cache:
        resident["KV cache"] = static_kv_cache(shape, plan, writes)
    phases = {
        "vision": vision_pass(shape, plan.training, _patches(shape, plan, plan.batch_size), plan.train_vision),
        "rollout": rollout(shape, plan, plan.batch_size, plan.group_size) if writes else sum(engine.values()),
        "reference": _passing(shape, plan, reference=True) if plan.reference else 0,
        "policy": _passing(shape, plan),
        "validation": _validation(shape, plan),
    }
    if plan.train_vision:  # the tower's saved tensors wait for the gradient of the embeddings
        phases = {name: size + (phases["vision"] if name == "policy" else 0) for name, size in phases.items()}
    return Memory(resident, phases, engine, needs)


def engine_memory(shape: Geometry, plan: Plan) -> tuple[dict[str, int], int]:
    """Bytes of a vLLM engine in the trainer's process while it is awake, and the bytes that it needs to start.

    The engine takes the share `colocate` of a GPU, whatever it needs: a copy of all weights, in bfloat16 under autocast
    and otherwise in the type of the frozen weights, and the rest for its KV cache and activations. It starts if the KV
    cache of one sequence of `engine_length` tokens fits, 2 * layers * key width * bytes per token. While the engine
    sleeps, the copy is in CPU memory.
    """
    if not plan.colocate:
        return {}, 0
    size = 2 if plan.training.autocast else plan.training.weights
    weights, whole = shape.total * size, round(plan.colocate * plan.gpu_memory)
    parts = {"engine's weights": min(weights, whole), "engine's KV cache, work": max(0, whole - weights)}
    return parts, weights + 2 * shape.num_layers * shape.kv_width * size * plan.engine_length


def trained_state(shape: Geometry, plan: Plan) -> dict[str, int]:
    """Exact bytes of weights, adapter, gradients, Adam's two moments and a copied reference.

    Only the decoder layers are sharded, with their gradients and moments.
    """
    training, size = plan.training, plan.training.language
    quantized = shape.adapted if plan.quantized else 0
    decoder = round(quantized * NF4_BYTES) + (shape.decoder - quantized) * size
    outside = shape.total - shape.decoder - shape.vision
    vision = shape.vision * (TRAINED if plan.train_vision else training.weights)
    resident = {"decoder layers": -(-decoder // plan.shards), "embedding, head, vision": outside * size + vision}
    if training.rank:
        resident["adapter"] = trained = shape.adapter(training.rank) * TRAINED
    else:
        trained = (-(-shape.decoder // plan.shards) + outside) * TRAINED
    if plan.train_vision:
        trained += vision
    if plan.reference and not training.rank:
        resident["copied reference"] = trained
    resident["gradients"] = trained
    resident["AdamW"] = 2 * trained
    if plan.strategy == "ddp":
        resident["DDP's buckets"] = trained
    return resident


def rollout(shape: Geometry, plan: Plan, prompts: int, group_size: int) -> int:
    """Bytes of sampling `group_size` completions for each of a number of prompts."""
    training, rows = plan.training, prompts * group_size
    read = kv_cache(shape, training, prompts, plan.prompt_tokens, 0, 0)
    written = 0 if plan.static_cache else kv_cache(shape, training, 0, 0, rows, plan.max_new_tokens)
    reading = forward_work(shape, training, prompts * plan.prompt_tokens)
    writing = written + sampling_work(shape, rows) + head_copy(shape, training)
    gathered = shape.decoder * training.language - -(-shape.decoder * training.language // plan.shards)
    # In float32, the weights are copied before the adapter is merged into them, see `Policy.merged`.
    merges = training.rank and training.weights == 4 and not (training.autocast or plan.quantized)
    merged = 4 * shape.adapted if merges else 0
    return gathered + merged + read + max(reading, writing)


def static_kv_cache(shape: Geometry, plan: Plan, writes: bool) -> int:
    """Bytes of the KV caches of compiled decoding, one for rollouts and one for evaluation.

    Args:
        shape: Geometry of the model.
        plan: The settings.
        writes: Whether the policy samples rollouts itself.
    """
    longest = -(-plan.prompt_tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    uses = [(plan.eval_batch_size, 1)] + [(plan.batch_size, plan.group_size)] * writes
    return sum(
        kv_cache(shape, plan.training, prompts, longest, prompts * places, plan.max_new_tokens)
        for prompts, places in uses
    )


def _passing(shape: Geometry, plan: Plan, reference: bool = False) -> int:
    one = reference_pass if reference else policy_pass
    work = one(shape, plan.training, plan.pass_tokens, plan.completion_tokens)
    return work + _gathered_layers(shape, plan, reference)


def _gathered_layers(shape: Geometry, plan: Plan, reference: bool) -> int:
    """One layer computes while the next is gathered; a trained layer also has its unsharded gradient."""
    if plan.shards == 1:
        return 0
    layers = 2 if reference or plan.training.rank else 3
    return layers * shape.largest_layer * plan.training.language


def _validation(shape: Geometry, plan: Plan) -> int:
    vision = vision_pass(shape, plan.training, _patches(shape, plan, plan.eval_batch_size), trained=False)
    return _pixels(shape, plan, plan.eval_batch_size) + max(vision, rollout(shape, plan, plan.eval_batch_size, 1))


def _patches(shape: Geometry, plan: Plan, studies: int) -> int:
    return studies * plan.images * plan.image_tokens * shape.patches_per_token


def _pixels(shape: Geometry, plan: Plan, studies: int) -> int:
    return 4 * shape.patch_values * _patches(shape, plan, studies)

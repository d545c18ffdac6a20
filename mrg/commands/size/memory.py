"""Bytes of GPU memory that a rank needs: what stays, and what each phase of a round adds."""

from __future__ import annotations

import dataclasses

from mrg.commands.size.activations import (
    TRAINED,
    Numbers,
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

FOUR_BITS = 4.127 / 8
"""Bytes of a weight in NF4 with double quantisation (Dettmers et al., QLoRA, 2023)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a run that its memory depends on.

    Args:
        numbers: Precision, adapter and checkpointing.
        strategy: `"one"`, `"ddp"` or `"fsdp"`, see `mrg.strategy`.
        world_size: Number of GPUs.
        batch_size: Studies of a round on one GPU.
        group_size: Completions per study; 1 in supervision.
        max_new_tokens: Longest completion.
        micro_batch_tokens: Tokens of one pass; 0 in supervision, which passes over its whole batch.
        eval_batch_size: Studies of a batch in validation.
        text_tokens: Tokens of a prompt beside its images.
        images: Images of a study.
        image_tokens: Tokens of an image.
        reference: Whether there is a KL term.
        train_vision: Whether the vision tower is trained.
        four_bits: Whether the decoder's weights are held in 4 bits.
        servers: Whether others write the rollouts.
        compile_decode: Whether decoding steps are compiled, for which their tensors stay.
    """

    numbers: Numbers
    strategy: str = "one"
    world_size: int = 1
    batch_size: int = 8
    group_size: int = 8
    max_new_tokens: int = 256
    micro_batch_tokens: int = 16_384
    eval_batch_size: int = 16
    text_tokens: int = 80
    images: int = 2
    image_tokens: int = 330
    reference: bool = True
    train_vision: bool = False
    four_bits: bool = False
    servers: bool = False
    compile_decode: bool = False

    @property
    def keeps_tables(self) -> bool:
        """Whether keys and values of decoding stay from one rollout to the next."""
        return self.compile_decode and self.strategy != "fsdp" and not self.four_bits

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt."""
        return self.text_tokens + self.images * self.image_tokens

    @property
    def shards(self) -> int:
        """Number of ranks that share the decoder layers."""
        return self.world_size if self.strategy == "fsdp" else 1

    @property
    def group_tokens(self) -> int:
        """Tokens that a pass reads of one group; the last of a completion is never read."""
        return self.prompt_tokens + self.group_size * (self.max_new_tokens - 1)

    @property
    def pass_tokens(self) -> int:
        """Most tokens of one pass: where completions are short, more groups fill the budget."""
        if not self.micro_batch_tokens:
            return self.batch_size * (self.prompt_tokens + self.max_new_tokens)
        return max(self.group_tokens, min(self.micro_batch_tokens, self.batch_size * self.group_tokens))

    @property
    def completion_tokens(self) -> int:
        """Tokens of one pass whose log-probabilities are wanted, if completions have full length."""
        if not self.micro_batch_tokens:
            return self.batch_size * self.max_new_tokens
        return round(self.pass_tokens / self.group_tokens * self.group_size * self.max_new_tokens)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Args:
        stays: What is there all the time, by name.
        phases: What each phase adds at its peak, by its name in metrics.csv.
    """

    stays: dict[str, int]
    phases: dict[str, int]

    @property
    def largest(self) -> str:
        """The phase that adds most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def total(self) -> int:
        """The peak."""
        return sum(self.stays.values()) + self.phases[self.largest]


def memory(shape: Geometry, plan: Plan) -> Memory:
    """Predict the memory of one rank.

    Not in it: the CUDA context, NCCL's buffers and what the allocator cannot use, together some GiB.

    Args:
        shape: Of the model.
        plan: The settings.
    """
    stays = trained_state(shape, plan)
    prompts = plan.batch_size * plan.prompt_tokens
    stays["prompts and pixels"] = prompts * shape.width * plan.numbers.language + _pixels(shape, plan, plan.batch_size)
    writes = plan.group_size > 1 and not plan.servers
    if plan.keeps_tables:
        stays["keys and values"] = kept_tables(shape, plan, writes)
    phases = {
        "vision": vision_pass(shape, plan.numbers, _patches(shape, plan, plan.batch_size), plan.train_vision),
        "rollout": rollout(shape, plan, plan.batch_size, plan.group_size) if writes else 0,
        "reference": _passing(shape, plan, reference=True) if plan.reference else 0,
        "policy": _passing(shape, plan),
        "validation": _validation(shape, plan),
    }
    if plan.train_vision:  # what the tower keeps waits for the gradient of the embeddings
        phases = {name: size + (phases["vision"] if name == "policy" else 0) for name, size in phases.items()}
    return Memory(stays, phases)


def trained_state(shape: Geometry, plan: Plan) -> dict[str, int]:
    """Bytes of weights, adapter, gradients, Adam's two moments and a copied reference, exact to the tensor.

    Only the decoder layers are sharded, and of what is trained only they.
    """
    numbers, size = plan.numbers, plan.numbers.language
    decoder = round(shape.adapted * FOUR_BITS) + (shape.decoder - shape.adapted) * size if plan.four_bits else (
        shape.decoder * size)  # fmt: skip
    outside = shape.total - shape.decoder - shape.vision
    vision = shape.vision * (TRAINED if plan.train_vision else numbers.weights)
    stays = {"decoder layers": -(-decoder // plan.shards), "embedding, head, vision": outside * size + vision}
    if numbers.rank:
        stays["adapter"] = trained = shape.adapter(numbers.rank) * TRAINED
    else:
        trained = (-(-shape.decoder // plan.shards) + outside) * TRAINED
    if plan.train_vision:
        trained += vision
    if plan.reference and not numbers.rank:
        stays["copied reference"] = trained
    stays["gradients"] = trained
    stays["AdamW"] = 2 * trained
    if plan.strategy == "ddp":
        stays["DDP's buckets"] = trained
    return stays


def rollout(shape: Geometry, plan: Plan, prompts: int, group_size: int) -> int:
    """Bytes of writing `group_size` completions for each of so many prompts."""
    numbers, rows = plan.numbers, prompts * group_size
    read = kv_cache(shape, numbers, prompts, plan.prompt_tokens, 0, 0)
    written = 0 if plan.keeps_tables else kv_cache(shape, numbers, 0, 0, rows, plan.max_new_tokens)
    reading = forward_work(shape, numbers, prompts * plan.prompt_tokens)
    writing = written + sampling_work(shape, rows) + head_copy(shape, numbers)
    gathered = shape.decoder * numbers.language - -(-shape.decoder * numbers.language // plan.shards)
    # In float32 the adapter is merged into copies of the weights, see `Policy.merged`.
    merged = (
        4 * shape.adapted if numbers.rank and numbers.weights == 4 and not (numbers.autocast or plan.four_bits) else 0
    )
    return gathered + merged + read + max(reading, writing)


def kept_tables(shape: Geometry, plan: Plan, writes: bool) -> int:
    """Bytes of the keys and values that stay where decoding is compiled, those of rollouts and of evaluation.

    Args:
        shape: Of the model.
        plan: The settings.
        writes: Whether the policy writes rollouts.
    """
    longest = -(-plan.prompt_tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    uses = [(plan.eval_batch_size, 1)] + [(plan.batch_size, plan.group_size)] * writes
    return sum(
        kv_cache(shape, plan.numbers, prompts, longest, prompts * places, plan.max_new_tokens)
        for prompts, places in uses
    )


def _passing(shape: Geometry, plan: Plan, reference: bool = False) -> int:
    one = reference_pass if reference else policy_pass
    work = one(shape, plan.numbers, plan.pass_tokens, plan.completion_tokens)
    return work + _gathered_layers(shape, plan, reference)


def _gathered_layers(shape: Geometry, plan: Plan, reference: bool) -> int:
    """One layer computes while the next is gathered; a trained one also has a whole gradient."""
    if plan.shards == 1:
        return 0
    layers = 2 if reference or plan.numbers.rank else 3
    return layers * shape.largest_layer * plan.numbers.language


def _validation(shape: Geometry, plan: Plan) -> int:
    vision = vision_pass(shape, plan.numbers, _patches(shape, plan, plan.eval_batch_size), trained=False)
    return _pixels(shape, plan, plan.eval_batch_size) + max(vision, rollout(shape, plan, plan.eval_batch_size, 1))


def _patches(shape: Geometry, plan: Plan, studies: int) -> int:
    return studies * plan.images * plan.image_tokens * shape.patches_per_token


def _pixels(shape: Geometry, plan: Plan, studies: int) -> int:
    return 4 * shape.patch_values * _patches(shape, plan, studies)

"""Bytes that a pass over T tokens keeps for its backward pass, and works with.

What autograd keeps of a decoder layer follows from its formulas, for a language model with RMSNorm, rotary positions,
grouped attention that keeps its log-sum-exp, and a gated MLP. With D the width, Q and K those of queries and keys, I
the MLP's, r the rank and e the bytes of a number:

| kept for each token | LoRA | all weights trained |
|---|---|---|
| norms, in float32, and their scale | 2 (4 D + 4) | 2 (4 D + 4 + D w) |
| input of q, k, v | n e D | m e D |
| queries, keys, values, output, log-sum-exp | e (2 Q + 2 K) + 4 H | the same |
| input of o, where it is a copy | c e Q | 0 |
| input of gate and up | n' e D | m' e D |
| gate, its activation, up, input of down | 4 e I | 4 e I |
| adapters' inner states | 7 e r | 0 |

What is trained is float32. Under autocast, a linear layer that is trained or has an adapter casts its input itself, so
that n and m are 3 and n' and m' are 2, otherwise 1. w is the precision of the norms.

What a pass works with besides is fitted to measurement (how near it comes:
`tests/commands/size/test_activations.py`).
"""

from __future__ import annotations

import dataclasses

from mrg.commands.size.geometry import Geometry
from mrg.modules.policy.logps import TILE

TRAINED = 4
"""Bytes of a number that is trained, see `mrg.modules.policy.precision`."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Precision of a run.

    Args:
        weights: Bytes of a frozen number of the base model.
        autocast: Whether products are computed in bfloat16 whatever the weights are.
        rank: Of the adapter; 0 where the language model itself is trained.
        checkpointing: Whether layers are computed again in the backward pass.
    """

    weights: int = 2
    autocast: bool = True
    rank: int = 16
    checkpointing: bool = True

    @property
    def language(self) -> int:
        """Bytes of a number of the language model."""
        return self.weights if self.rank else TRAINED

    @property
    def compute(self) -> int:
        """Bytes of a number in a product."""
        return 2 if self.autocast else self.language


def kept_by_layer(shape: Geometry, numbers: Numbers, tokens: int) -> int:
    """Bytes that autograd keeps of one decoder layer."""
    e, d = numbers.compute, shape.width
    inputs = 5 if numbers.autocast else 2
    norms = 2 * (4 * d + 4)
    attention = e * 2 * (shape.query_width + shape.kv_width) + 4 * shape.num_heads
    mlp = 4 * e * shape.inner_width
    if numbers.rank:
        low = 7 * e * numbers.rank
        output = e * shape.query_width if numbers.autocast else 0
        return tokens * (norms + inputs * e * d + attention + output + mlp + low)
    return tokens * (norms + 2 * TRAINED * d + inputs * e * d + attention + mlp)


def kept_by_pass(shape: Geometry, numbers: Numbers, tokens: int, completion_tokens: int) -> int:
    """Bytes that autograd keeps of a forward pass, without copies of weights.

    Args:
        shape: Of the model.
        numbers: Its precision.
        tokens: Of the packed row.
        completion_tokens: Those whose log-probabilities are wanted.
    """
    e, d = numbers.compute, shape.width
    # A checkpointed layer keeps its input alone.
    by_layer = tokens * d * numbers.language if numbers.checkpointing else kept_by_layer(shape, numbers, tokens)
    layers = shape.num_layers * by_layer
    if numbers.rank and not numbers.checkpointing:
        layers -= tokens * (4 * d + 4)  # nothing before the first layer is trained, so its first norm keeps nothing
    last_norm = tokens * (4 * d + 4 + (0 if numbers.rank else TRAINED * d))
    rotary = 0 if numbers.checkpointing else 2 * tokens * (shape.query_width // shape.num_heads) * numbers.language
    head = completion_tokens * (e * d + 8 if numbers.rank else 2 * e * d + 16)
    return layers + last_norm + rotary + head


def cast_weights(shape: Geometry, numbers: Numbers) -> int:
    """Bytes of the bfloat16 copies that autocast makes of float32 weights, and keeps for the backward pass.

    With checkpointing, those of one layer at a time; a trained head's in any case.
    """
    if not numbers.autocast:
        return 0
    layers = shape.adapted if numbers.language == 4 else 0
    layers += shape.adapter(numbers.rank) if numbers.rank else 0
    if numbers.checkpointing:
        layers //= shape.num_layers
    return 2 * layers + (0 if numbers.rank else head_copy(shape, numbers))


def head_copy(shape: Geometry, numbers: Numbers) -> int:
    """Bytes of the bfloat16 copy that autocast makes of a float32 head, the largest weight, whenever it is used."""
    return 2 * shape.vocab_size * shape.width if numbers.autocast and numbers.language == 4 else 0


def backward_work(shape: Geometry, numbers: Numbers, tokens: int) -> int:
    """Bytes that the backward pass of a layer works with beside what was kept; fitted."""
    return tokens * (3 * numbers.compute * shape.inner_width + 9 * shape.width)


def forward_work(shape: Geometry, numbers: Numbers, tokens: int) -> int:
    """Bytes that a forward pass without gradients works with; fitted."""
    return tokens * (4 * numbers.compute * shape.inner_width + 14 * shape.width)


def logits_work(shape: Geometry, completion_tokens: int) -> int:
    """Bytes of the vocabulary's logits at one tile of tokens: four float32 copies live at once."""
    return 4 * 4 * shape.vocab_size * min(completion_tokens, max(1, TILE // shape.vocab_size))


def head_work(shape: Geometry, numbers: Numbers, completion_tokens: int) -> int:
    """Bytes that the head works with: a tile's logits, and the gradient of a trained head, which is summed in float32.

    Beside the sum live three copies of a tile's logits, or one in the type of the products and the tile's part of it.
    """
    logits = logits_work(shape, completion_tokens)
    if numbers.rank:
        return logits
    weight = shape.vocab_size * shape.width
    return max(logits, 4 * weight + max(logits * 3 // 4, numbers.compute * (weight + logits // 16)))


def policy_pass(shape: Geometry, numbers: Numbers, tokens: int, completion_tokens: int) -> int:
    """Bytes of a forward and backward pass at its peak, beside weights and gradients."""
    kept = kept_by_pass(shape, numbers, tokens, completion_tokens)
    again = kept_by_layer(shape, numbers, tokens) if numbers.checkpointing else 0
    work = again + backward_work(shape, numbers, tokens)
    return kept + cast_weights(shape, numbers) + max(work, head_work(shape, numbers, completion_tokens))


def reference_pass(shape: Geometry, numbers: Numbers, tokens: int, completion_tokens: int) -> int:
    """Bytes of a pass without gradients at its peak."""
    logits = logits_work(shape, completion_tokens) + head_copy(shape, numbers)
    return max(forward_work(shape, numbers, tokens), logits)


def vision_pass(shape: Geometry, numbers: Numbers, patches: int, trained: bool) -> int:
    """Bytes that the vision tower works with, or keeps where it is trained, for all patches of a batch; fitted."""
    held = TRAINED if trained else numbers.weights
    e, d, i = 2 if numbers.autocast else held, shape.vision_width, shape.vision_inner_width
    pixels = patches * shape.patch_values * (e if numbers.autocast else 0)
    if trained:
        casts = 2 * shape.vision if numbers.autocast else 0
        return casts + pixels + patches * shape.vision_depth * (4 * e * i + (37 if numbers.autocast else 15 * e) * d)
    return pixels + patches * max(3 * e * i + 4 * e * d, 36 * d if numbers.autocast else 0)


def kv_cache(shape: Geometry, numbers: Numbers, prompts: int, prompt_tokens: int, rows: int, row_tokens: int) -> int:
    """Bytes of the keys and values of a rollout: each prompt once, and every row behind them.

    Args:
        shape: Of the model.
        numbers: Its precision.
        prompts: Number of prompts.
        prompt_tokens: Of the longest of them.
        rows: Completions.
        row_tokens: Most tokens of a completion.
    """
    return 2 * shape.num_layers * shape.kv_width * numbers.compute * (prompts * prompt_tokens + rows * row_tokens)


def sampling_work(shape: Geometry, rows: int) -> int:
    """Bytes of the logits, log-probabilities and noise of one decoding step; fitted."""
    return 26 * rows * shape.vocab_size

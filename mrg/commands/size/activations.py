"""Bytes that a pass over T tokens saves for its backward pass, and bytes that it works with.

What autograd saves of a decoder layer follows from the layer's formulas: RMSNorm, rotary positions, grouped-query
attention that saves its log-sum-exp, and a gated MLP. Per token, with hidden size D, widths Q of the queries and K of
the keys, H heads, intermediate size I, rank r, e bytes per number in a product and w per weight of a norm:

| saved | LoRA | all weights trained |
|---|---|---|
| norms and their scales, in float32 | 2 (4 D + 4) | 2 (4 D + 4 + D w) |
| input of q, k, v | n e D | m e D |
| queries, keys, values, output, log-sum-exp | e (2 Q + 2 K) + 4 H | the same |
| input of o, if it is a copy | c e Q | 0 |
| input of gate and up | n' e D | m' e D |
| gate, its activation, up, input of down | 4 e I | 4 e I |
| inner states of the adapters | 7 e r | 0 |

Trained weights are float32. Under autocast, every linear layer that is trained or adapted casts its input itself, so
that n and m are 3 and n' and m' are 2; otherwise they are 1.

The remaining formulas are fitted to measurements; `tests/commands/size/test_activations.py` has the differences.
"""

from __future__ import annotations

import dataclasses

from mrg.commands.size.geometry import Geometry
from mrg.modules.policy.logps import TILE

TRAINED = 4
"""Bytes of a trained number, see `mrg.modules.policy.precision`."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model is held in memory and trained.

    Args:
        weights: Bytes of a frozen number of the base model.
        autocast: Whether matrix products are computed in bfloat16, whatever the type of the weights.
        rank: Rank of the adapter; 0 if the weights of the language model are trained.
        checkpointing: Whether layers are recomputed in the backward pass.
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


def saved_by_layer(shape: Geometry, training: Training, tokens: int) -> int:
    """Bytes that autograd saves of one decoder layer."""
    e, d = training.compute, shape.width
    inputs = 5 if training.autocast else 2
    norms = 2 * (4 * d + 4)
    attention = e * 2 * (shape.query_width + shape.kv_width) + 4 * shape.num_heads
    mlp = 4 * e * shape.inner_width
    if training.rank:
        low = 7 * e * training.rank
        output = e * shape.query_width if training.autocast else 0
        return tokens * (norms + inputs * e * d + attention + output + mlp + low)
    return tokens * (norms + 2 * TRAINED * d + inputs * e * d + attention + mlp)


def saved_by_pass(shape: Geometry, training: Training, tokens: int, completion_tokens: int) -> int:
    """Bytes that autograd saves of a forward pass, without copies of weights.

    Args:
        shape: Geometry of the model.
        training: How it is trained.
        tokens: Tokens of the packed row.
        completion_tokens: Tokens whose log-probabilities are computed.
    """
    e, d = training.compute, shape.width
    # A checkpointed layer saves its input alone.
    by_layer = tokens * d * training.language if training.checkpointing else saved_by_layer(shape, training, tokens)
    layers = shape.num_layers * by_layer
    if training.rank and not training.checkpointing:
        layers -= tokens * (4 * d + 4)  # without anything trained before it, the first norm saves nothing
    last_norm = tokens * (4 * d + 4 + (0 if training.rank else TRAINED * d))
    rotary = 0 if training.checkpointing else 2 * tokens * (shape.query_width // shape.num_heads) * training.language
    head = completion_tokens * (e * d + 8 if training.rank else 2 * e * d + 16)
    return layers + last_norm + rotary + head


def cast_weights(shape: Geometry, training: Training) -> int:
    """Bytes of autocast's bfloat16 copies of float32 weights, which are saved for the backward pass.

    With checkpointing, those of one layer at a time, and of a trained head in any case.
    """
    if not training.autocast:
        return 0
    layers = shape.adapted if training.language == 4 else 0
    layers += shape.adapter(training.rank) if training.rank else 0
    if training.checkpointing:
        layers //= shape.num_layers
    return 2 * layers + (0 if training.rank else head_copy(shape, training))


def head_copy(shape: Geometry, training: Training) -> int:
    """Bytes of the bfloat16 copy that autocast makes of a float32 head, the largest weight, at each use."""
    return 2 * shape.vocab_size * shape.width if training.autocast and training.language == 4 else 0


def backward_work(shape: Geometry, training: Training, tokens: int) -> int:
    """Bytes that the backward pass of a layer works with, besides what was saved; fitted."""
    return tokens * (3 * training.compute * shape.inner_width + 9 * shape.width)


def forward_work(shape: Geometry, training: Training, tokens: int) -> int:
    """Bytes that a forward pass without gradients works with; fitted."""
    return tokens * (4 * training.compute * shape.inner_width + 14 * shape.width)


def logits_work(shape: Geometry, completion_tokens: int) -> int:
    """Bytes of the logits of one tile of tokens, of which four float32 copies exist at once."""
    return 4 * 4 * shape.vocab_size * min(completion_tokens, max(1, TILE // shape.vocab_size))


def head_work(shape: Geometry, training: Training, completion_tokens: int) -> int:
    """Bytes that the head works with: the logits of a tile and, for a trained head, its float32 gradient.

    Besides the gradient there are three copies of a tile's logits, or one in the type of the products and the tile's
    part of the gradient.
    """
    logits = logits_work(shape, completion_tokens)
    if training.rank:
        return logits
    weight = shape.vocab_size * shape.width
    return max(logits, 4 * weight + max(logits * 3 // 4, training.compute * (weight + logits // 16)))


def policy_pass(shape: Geometry, training: Training, tokens: int, completion_tokens: int) -> int:
    """Peak of a forward and backward pass in bytes, without weights and gradients."""
    saved = saved_by_pass(shape, training, tokens, completion_tokens)
    again = saved_by_layer(shape, training, tokens) if training.checkpointing else 0
    work = again + backward_work(shape, training, tokens)
    return saved + cast_weights(shape, training) + max(work, head_work(shape, training, completion_tokens))


def reference_pass(shape: Geometry, training: Training, tokens: int, completion_tokens: int) -> int:
    """Peak of a pass without gradients in bytes, without weights."""
    logits = logits_work(shape, completion_tokens) + head_copy(shape, training)
    return max(forward_work(shape, training, tokens), logits)


def vision_pass(shape: Geometry, training: Training, patches: int, trained: bool) -> int:
    """Bytes that a frozen vision tower works with, or a trained one saves, for the patches of a batch; fitted."""
    held = TRAINED if trained else training.weights
    e, d, i = 2 if training.autocast else held, shape.vision_width, shape.vision_inner_width
    pixels = patches * shape.patch_values * (e if training.autocast else 0)
    if trained:
        casts = 2 * shape.vision if training.autocast else 0
        return casts + pixels + patches * shape.vision_depth * (4 * e * i + (37 if training.autocast else 15 * e) * d)
    return pixels + patches * max(3 * e * i + 4 * e * d, 36 * d if training.autocast else 0)


def kv_cache(shape: Geometry, training: Training, prompts: int, prompt_tokens: int, rows: int, row_tokens: int) -> int:
    """Bytes of the KV cache of a rollout, which holds each prompt once.

    Args:
        shape: Geometry of the model.
        training: How it is trained.
        prompts: Number of prompts.
        prompt_tokens: Tokens of the longest prompt.
        rows: Number of completions.
        row_tokens: Tokens of the longest completion.
    """
    return 2 * shape.num_layers * shape.kv_width * training.compute * (prompts * prompt_tokens + rows * row_tokens)


def sampling_work(shape: Geometry, rows: int) -> int:
    """Bytes of the logits, log-probabilities and noise of one decoding step; fitted."""
    return 26 * rows * shape.vocab_size

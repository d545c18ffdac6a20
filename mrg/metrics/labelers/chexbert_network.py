"""CheXbert's network: the forward pass of BERT, reduced to what the labels need.

BERT as in Devlin et al. (2019), with CheXbert's 14 heads on the first position (Smit et al., 2020). Choices:

- No padding and no masks: the tokens of all reports of a batch are one (T, H) matrix; only attention is computed per
  report length.
- The last layer is computed only for the first position, the pooler not at all, and the heads are one product.
- On a CPU with AVX, weights are converted to oneDNN's layout once, not in each call: 10 to 40 % faster.
- float32 is exact: the autocast and TF32 settings of a training run have no effect.
- There are no dropout, module or parameters that `.train()` or an optimizer could change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.errors import RunError
from mrg.metrics.shared import exact_inference

HEAD_CLASSES = (4,) * 13 + (2,)
HEAD_SIZE = 64  # of every published BERT; a checkpoint does not contain the number of attention heads
LAYER_NORM_EPS = 1e-12
PACKED_ROWS = 512  # tokens for which the packed layout is optimized; other numbers are nearly as fast


class CheXbertNetwork:
    """Scores and labels of the 14 heads for token sequences.

    Args:
        weights: Result of `read_checkpoint`; copied, so that the file may be removed.
        device: Device of the network.
        dtype: Type of the computation; softmax, normalization and sums within a product are always float32.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.num_layers = sum(name.endswith(".attention.self.query.weight") for name in weights)
        self._tables = [
            weights[f"bert.embeddings.{name}_embeddings.weight"].to(device, dtype, copy=True)
            for name in ("word", "position", "token_type")
        ]
        self.max_tokens = len(self._tables[1])
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}

        def add(name: str, *sources: str, product: bool = True) -> None:
            pair = (torch.cat([weights[f"{source}.{kind}"] for source in sources]) for kind in ("weight", "bias"))
            weight, bias = (tensor.to(device, dtype) for tensor in pair)
            self._pairs[name] = (_packed(weight) if product else weight, bias)

        add("norm", "bert.embeddings.LayerNorm", product=False)
        for index in range(self.num_layers):
            source = f"bert.encoder.layer.{index}"
            query, key, value = (f"{source}.attention.self.{part}" for part in ("query", "key", "value"))
            if index < self.num_layers - 1:
                add(f"{index}.query_key_value", query, key, value)
            else:
                add(f"{index}.query", query)
                add(f"{index}.key_value", key, value)
            add(f"{index}.attention", f"{source}.attention.output.dense")
            add(f"{index}.attention_norm", f"{source}.attention.output.LayerNorm", product=False)
            add(f"{index}.up", f"{source}.intermediate.dense")
            add(f"{index}.down", f"{source}.output.dense")
            add(f"{index}.norm", f"{source}.output.LayerNorm", product=False)
        add("heads", *(f"linear_heads.{index}" for index in range(len(HEAD_CLASSES))))

    def labels(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Label classes of tokenized reports.

        Args:
            sequences: B lists of token ids; those of equal length should be adjacent.

        Returns:
            uint8 (B, 14) on the CPU.

        Raises:
            RuntimeError: If a score is not finite.
        """
        scores = self.scores(sequences)
        if not bool(torch.isfinite(scores).all()):
            raise RunError("CheXbert's scores are not finite: the checkpoint is damaged.")
        heads = torch.split(scores, list(HEAD_CLASSES), -1)
        return torch.stack([head.argmax(-1) for head in heads], -1).to(torch.uint8)

    def scores(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Scores of all classes of all heads: float32 (B, 54) on the CPU."""
        with exact_inference(self.device):
            return self._linear(self._first(sequences), "heads").float().cpu()

    def embeddings(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Last state of the first position, which the heads read: float32 (B, H) on the CPU."""
        with exact_inference(self.device):
            return self._first(sequences).float().cpu()

    def _first(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        lengths = [len(sequence) for sequence in sequences]
        tokens = torch.tensor([token for sequence in sequences for token in sequence], device=self.device)
        places = torch.tensor([place for length in lengths for place in range(length)], device=self.device)
        word, position, token_type = self._tables
        x = self._norm(word[tokens] + token_type[0] + position[places], "norm")  # (T, H)
        for index in range(self.num_layers - 1):
            attended = _attend(self._linear(x, f"{index}.query_key_value"), lengths)
            x = self._after_attention(attended, x, index)
        ends = torch.tensor(lengths, device=self.device).cumsum(0)
        first, index = x[ends - ends.diff(prepend=ends.new_zeros(1))], self.num_layers - 1  # (B, H)
        query, key_value = self._linear(first, f"{index}.query"), self._linear(x, f"{index}.key_value")
        attended = _attend_first(query, key_value, lengths)
        return self._after_attention(attended, first, index)

    def _after_attention(self, attended: Tensor, x: Tensor, index: int) -> Tensor:
        """The rest of a layer, position by position."""
        x = self._norm(self._linear(attended, f"{index}.attention").add_(x), f"{index}.attention_norm")
        wide = F.gelu(self._linear(x, f"{index}.up"))
        return self._norm(self._linear(wide, f"{index}.down").add_(x), f"{index}.norm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._pairs[name]
        if weight.is_mkldnn:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return product
        return F.linear(x, weight, bias)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self._pairs[name], LAYER_NORM_EPS)


def _packed(weight: Tensor) -> Tensor:
    """A weight in oneDNN's layout if that is faster, otherwise unchanged."""
    # Private operators of torch.compile's freezing; without them, F.linear is used.
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    if not known or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return weight
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    return packed


def _runs(lengths: list[int]) -> list[tuple[int, int]]:
    """(count, length) of runs of equal length."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def _attend(qkv: Tensor, lengths: list[int]) -> Tensor:
    """(T, 3H) -> (T, H): each report attends to itself."""
    runs = _runs(lengths)
    outputs = []
    for (count, length), part in zip(runs, torch.split(qkv, [count * length for count, length in runs]), strict=True):
        heads = part.view(count, length, 3, -1, HEAD_SIZE).permute(2, 0, 3, 1, 4)  # (3, count, heads, length, 64)
        output = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        outputs.append(output.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(outputs)


def _attend_first(query: Tensor, key_value: Tensor, lengths: list[int]) -> Tensor:
    """(B, H) and (T, 2H) -> (B, H): the first position of each report attends to its report."""
    runs = _runs(lengths)
    queries = torch.split(query, [count for count, _ in runs])
    parts = torch.split(key_value, [count * length for count, length in runs])
    outputs = []
    for (count, length), one, part in zip(runs, queries, parts, strict=True):
        heads = part.view(count, length, 2, -1, HEAD_SIZE).permute(2, 0, 3, 1, 4)  # (2, count, heads, length, 64)
        one = one.view(count, 1, -1, HEAD_SIZE).transpose(1, 2)  # (count, heads, 1, 64)
        outputs.append(F.scaled_dot_product_attention(one, heads[0], heads[1]).reshape(count, -1))
    return torch.cat(outputs)

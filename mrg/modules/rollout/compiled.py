"""Decoding steps compiled by `torch.compile`, checked against the eager step, which replaces them on failure.

Choices: a step is compiled as one graph without breaks for each size of a static KV cache (`static_cache.py`): with
CUDA graphs on a GPU, where kernel launches dominate, and with plain inductor on a CPU. The first step of every rollout
and the first steps of every size are also computed by the eager step, and compared: logits, the keys and values
written, and all others, which must not change. If a step cannot be compiled or differs, one warning says so, the eager
step continues, and later rollouts use `kv_cache.py`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mrg.log import log
from mrg.modules.policy.policy import Policy
from mrg.modules.prefix.attention import PackedPrompts
from mrg.modules.rollout.kv_cache import KVCache
from mrg.modules.rollout.static_cache import CacheView, StaticDecoder, StaticKVCache, skipped_graphs, static_step

NUM_CHECKED = 3
"""Checked steps per size: CUDA graphs warm up in the first, record in the second and replay in the third."""
MAX_SIZES = 24
"""Largest number of compiled steps; other sizes use the eager step."""
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest relative difference by precision; rotations are always computed in float32."""
HALF_TOLERANCE = 0.1
"""The same in half precision, in which fused operations round less often than eager ones: a small random model of two
layers differs from its float32 copy by 4 to 10 %."""
ROW_FACTOR = 5.0
"""A single row may differ by this factor more."""

Step = Callable[[Policy, CacheView, Tensor, Tensor, Tensor], Tensor]


class DifferentError(Exception):
    """A compiled step differs from the eager one."""


class CompiledDecoder(StaticDecoder):
    """Compiles decoding steps, and checks them.

    Args:
        backend: Backend of `torch.compile`.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        super().__init__()
        self.backend = backend
        self.steps: dict[object, Step] = {}
        self.num_checked: dict[object, int] = {}
        self.first = True
        self.refused = ""
        self.said: set[str] = set()

    def start(
        self, policy: Policy, reading: PackedPrompts, group_size: int, max_new_tokens: int
    ) -> StaticKVCache | KVCache:
        """KV cache of a rollout: a static one, or `KVCache` if steps are not compiled."""
        reason = self.refused or unsupported(policy)
        if reason:
            self.memories.clear()
            self._say(f"Decoding is not compiled: {reason}.")
            return KVCache(reading, group_size, max_new_tokens)
        self.first = True
        return super().start(policy, reading, group_size, max_new_tokens)

    def step(self, policy: Policy, view: CacheView, token: Tensor, position: Tensor, step: Tensor) -> Tensor:
        """One decoding step, see `static_step`."""
        key = (view.key, token.shape, position.shape)
        if not self.refused and key not in self.steps and len(self.steps) == MAX_SIZES:
            self._say(f"Decoding is compiled for {MAX_SIZES} sizes; other sizes use the eager step.")
        elif not self.refused:
            if key not in self.steps:
                self.steps[key] = self._compile(view)
            checked = self.first or self.num_checked.get(key, 0) < NUM_CHECKED
            self.first = False
            expected = Expected(policy, view, token, position, step) if checked else None
            try:
                if view.lengths.device.type == "cuda":
                    torch.compiler.cudagraph_mark_step_begin()
                num_skipped = skipped_graphs()
                logits = self.steps[key](policy, view, token, position, step)
                if expected is not None:
                    self.num_checked[key] = self.num_checked.get(key, 0) + 1
                    expected.compare(logits)
                if skipped_graphs() > num_skipped and view.lengths.device.type == "cuda":
                    self._say("Decoding is compiled, but without CUDA graphs: TORCH_LOGS=perf_hints says why.")
                return logits
            except Exception as error:  # compilers raise errors of any type; the eager step needs none
                self._refuse(error, view)
                if expected is not None:
                    expected.restore()
                    return expected.logits
        return static_step(policy, view, token, position, step)

    def _compile(self, view: CacheView) -> Step:
        # Compiled code is cached per code object: a copy for each size keeps caches and their limits apart.
        code = static_step.__code__.replace(co_name=f"static_step_{view.num_prompts}x{view.num_places}")
        function = types.FunctionType(code, static_step.__globals__)
        mode = "reduce-overhead" if view.lengths.device.type == "cuda" else None
        compiled: Step = torch.compile(function, fullgraph=True, dynamic=False, backend=self.backend, mode=mode)
        return compiled

    def _refuse(self, error: Exception, view: CacheView) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        # A first line that ends with a colon introduces the second.
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300].rstrip(".")
        if not isinstance(error, DifferentError):
            reason = f"torch.compile failed with {type(error).__name__}: {reason}"
        self.refused = f"at {view.num_prompts} prompts of {view.num_places} completions {reason}"
        self.steps.clear()
        self._say(f"Decoding is not compiled: {self.refused}.")

    def _say(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            log.warning(line)


def unsupported(policy: Policy) -> str:
    """Reason why the steps of a policy cannot be compiled; empty if they can."""
    if policy.sharded:
        return "the policy's layers are sharded over ranks"
    if getattr(policy.base, "is_loaded_in_4bit", False):
        return "the policy's base is in 4 bits"
    kind = policy.base.lm_head.weight.device.type
    return "" if kind in ("cpu", "cuda") else f"device {kind} is neither a CPU nor a CUDA GPU"


class Expected:
    """Result of the eager step, and a copy of the cache, to compare a compiled step with.

    Args:
        policy: The policy.
        view: Cache before the step.
        token: (R,) int64 last token of each row.
        position: (A, R) position of each row's first token.
        step: (1,) int64 number of tokens before the last one.
    """

    def __init__(self, policy: Policy, view: CacheView, token: Tensor, position: Tensor, step: Tensor) -> None:
        self.index = step
        self.logits = static_step(policy, view, token, position, step)
        self.prompts = [x for pair in view.prompts.values() for x in pair]
        self.rows = [x for pair in view.rows.values() for x in pair]
        self.kept_prompts, self.kept_rows = ([x.clone() for x in tensors] for tensors in (self.prompts, self.rows))

    def compare(self, logits: Tensor) -> None:
        """Compare after the step; the cache ends as the eager step left it, whatever the step has done.

        Raises:
            DifferentError: If the step differs.
        """
        pairs = [(logits, self.logits)]
        for mine, kept in zip(self.rows, self.kept_rows, strict=True):
            written, expected = mine.index_select(2, self.index), kept.index_select(2, self.index)
            pairs.append((written, expected))
            mine.index_copy_(2, self.index, expected)
        kept_alone = all(torch.equal(mine, kept) for mine, kept in self._pairs())
        if not kept_alone:
            self.restore()
        if not bool(self.logits.isfinite().all()):
            return  # the policy has diverged, which is no fault of the compiler
        if not kept_alone:
            raise DifferentError("the compiled step changes keys or values of other tokens")
        most = TOLERANCE.get(self.logits.dtype, HALF_TOLERANCE)
        difference = max(relative_difference(*pair) for pair in pairs)
        if not difference <= most:
            raise DifferentError(
                f"the compiled step differs from the eager one by {difference:.2g} of its size, more than {most:g}"
            )

    def restore(self) -> None:
        """Restore the cache that the eager step left."""
        for mine, kept in self._pairs():
            mine.copy_(kept)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip([*self.prompts, *self.rows], [*self.kept_prompts, *self.kept_rows], strict=True)


def relative_difference(tensor: Tensor, expected: Tensor) -> float:
    """|tensor - expected| / |expected| in the Euclidean norm: over all rows, or of the worst row, see `ROW_FACTOR`.

    Args:
        tensor: (R, …) values to compare.
        expected: (R, …) expected values.
    """
    exact = torch.promote_types(expected.dtype, torch.float32)
    own, other = (x.to(exact).flatten(1) for x in (tensor, expected))
    of_rows = (own - other).norm(dim=1) / other.norm(dim=1).clamp(min=1e-12)
    of_all = (own - other).norm() / other.norm().clamp(min=1e-12)
    # The maximum with nan is nan, which is never small enough.
    return float(torch.maximum(of_all, of_rows.max() / ROW_FACTOR))

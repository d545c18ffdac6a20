"""Base of labelers and scores with a network: its weights are shared by copies, left out of pickles, and exact.

Such an object is not an `nn.Module`: its weights are not parameters of a metric or model that uses it, and `.train()`
does not affect it. Copies share the weights; a pickle contains only the settings, and the weights are read again after
loading. Calls from several threads are serialized.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import torch
from typing_extensions import Self

from mrg.errors import UserError

Item = TypeVar("Item", bound=Hashable)
Value = TypeVar("Value")


class Shared:
    """State shared by an object and its copies; created when needed, and never pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cache: dict[bytes, Any] = {}
        self.tokenizer: Any = None
        self.weights: Any = None  # until the network is built
        self.network: Any = None


class SharesWeights:
    """An object whose copies share its weights and its cache.

    Args:
        device: Device of the network. `None` selects the current GPU at the first call, so that each process of a run
            on several GPUs uses its own, or the CPU if there is no GPU.
        batch_tokens: Maximum number of tokens in one forward pass; a longer text is run alone.
        cache_size: Number of results that are cached; the least recently used is dropped first. 0 caches none.

    Raises:
        UserError: If a setting is out of range, or the device is not at hand.
    """

    def __init__(self, device: str | torch.device | None, batch_tokens: int, cache_size: int) -> None:
        for name, value, least in (("batch_tokens", batch_tokens, 1), ("cache_size", cache_size, 0)):
            if not isinstance(value, int) or value < least:
                raise UserError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value!r}.")
        self.device = None if device is None else as_device(device)
        self.batch_tokens = batch_tokens
        self.cache_size = cache_size
        self._shared = Shared()

    def to(self, device: str | torch.device) -> Self:
        """Move to another device; the next call reads the weights again. Earlier copies stay on their device."""
        self.device = as_device(device)
        self._shared = Shared()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_shared"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shared = Shared()

    def __copy__(self) -> Self:
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def _place(self) -> torch.device:
        """Device of the network, fixed even if the current GPU changes later."""
        device = self.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device

    def _remember(
        self,
        items: Iterable[Item],
        digest: Callable[[Item], bytes],
        compute: Callable[[list[Item]], Mapping[Item, Value]],
    ) -> dict[Item, Value]:
        """Item -> value of each distinct item; unknown ones are computed in one call and cached."""
        keys = {item: digest(item) for item in items}
        cache = self._shared.cache
        known: dict[Item, Value] = {item: cache.pop(key) for item, key in keys.items() if key in cache}
        values = {**known, **compute([item for item in keys if item not in known])}
        if self.cache_size:
            # Items of this call move to the end, so that the first is always the least recently used.
            cache.update((keys[item], value) for item, value in values.items())
            for key in list(islice(cache, max(len(cache) - self.cache_size, 0))):
                del cache[key]
        return values


def as_device(device: str | torch.device) -> torch.device:
    """A device that is at hand.

    Raises:
        UserError: If there is no such device.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UserError(
            f"Expected argument `device` to be a device such as cpu or cuda:0, but got {device!r}."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"Expected argument `device` to be at hand, but got {str(device)!r}, and there is no GPU.")
    return device


def batches(pairs: list[tuple[Item, list[int]]], batch_tokens: int) -> Iterator[list[tuple[Item, list[int]]]]:
    """Split a list of items and their tokens into batches of at most `batch_tokens` tokens."""
    batch: list[tuple[Item, list[int]]] = []
    size = 0
    for pair in pairs:
        if batch and size + len(pair[1]) > batch_tokens:
            yield batch
            batch, size = [], 0
        batch.append(pair)
        size += len(pair[1])
    if batch:
        yield batch


@contextlib.contextmanager
def exact_inference(device: torch.device) -> Iterator[None]:
    """Context without gradients and without the autocast and TF32 settings of a training run."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), _full_float32():
        yield


_SETTINGS = threading.Lock()


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Context without TF32 and similar reductions of precision; restores the settings of the process."""
    matmuls: list[Any] = [getattr(module, "matmul", None) for module in (torch.backends.cuda, torch.backends.mkldnn)]
    backends = [matmul for matmul in matmuls if hasattr(matmul, "fp32_precision")]  # from PyTorch 2.9 on
    with _SETTINGS:  # so that labelers in two threads do not restore each other's settings
        before = [backend.fp32_precision for backend in backends]
        try:
            legacy = torch.get_float32_matmul_precision()
        except RuntimeError:  # the backends have different settings
            legacy = None
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            if legacy is not None:
                torch.set_float32_matmul_precision(legacy)
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision

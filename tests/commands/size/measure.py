"""What a computation keeps and allocates, counted from its tensors."""

import contextlib
import weakref

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextlib.contextmanager
def saved_bytes(known):
    """Bytes of the storages that autograd keeps, each once; those of `known` tensors do not count."""
    seen = {id_of(tensor) for tensor in known}
    total = [0]
    alive = []  # a storage's address is its own only while it lives

    def keep(tensor):
        if id_of(tensor) not in seen:
            seen.add(id_of(tensor))
            total[0] += tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total


class Live(TorchDispatchMode):
    """Bytes of the storages that operations make, as long as they live: now, and the most at once.

    Those of `known` tensors do not count.
    """

    def __init__(self, known):
        super().__init__()
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, size)

    def remove(self, size):
        self.now -= size


def id_of(tensor):
    return tensor.untyped_storage()._cdata

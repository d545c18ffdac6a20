"""A device that is not the CPU, on any machine: its tensors keep their numbers on the CPU, but refuse to meet others.

What then shows on a GPU alone is speed, memory and a kernel's rounding. That a tensor was made on the wrong device, or
that a branch for "not a CPU" fails, shows here: the device is PyTorch's slot for foreign backends, its tensors say that
they are on it, and where CUDA refuses an operation with tensors of two devices, so does it.
"""

import contextlib

import pytest
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip(f"torch {torch.__version__} takes no device that is written in Python", allow_module_level=True)

NAME = "second"
present = [False]
"""Whether there is the device: outside of the tests that use it, nothing must find it."""


class Backend(backend_registration._DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def is_available(self):
        return present[0]

    def device_count(self):
        return int(present[0])

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16, torch.float32]


class Hook(backend_registration._DummyPrivateUse1Hook):
    """The same for PyTorch's core."""

    def is_available(self):
        return present[0]

    def has_primary_context(self, dev_id):
        return present[0]


backend_registration._setup_privateuseone_for_python_backend(NAME, Backend(), Hook())
SECOND = torch.device(NAME, 0)


class DeviceError(RuntimeError):
    """Tensors of two devices met."""


class There(torch.Tensor):
    """A tensor on the second device; `inner` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=SECOND,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"There({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


MOVES = {"aten::_to_copy", "aten::copy_", "aten::to"}
INDEXES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


def check_devices(name, args, there, here):
    """Refuse what CUDA refuses: a number may come from the CPU, an index too, all else not."""
    if name in MOVES or not there or not here:
        return
    if name in INDEXES and isinstance(args[0], There):
        here = [x for x in here if not any(x is index for index in args[1])]
    if any(x.dim() for x in here) or (name in INDEXES and here):
        raise DeviceError(f"{name} got tensors on {SECOND} and on the CPU, of shapes {[tuple(x.shape) for x in here]}.")


def run(func, args, kwargs):
    """An operation on the numbers, after a look at where its tensors are."""
    name = func._schema.name
    leaves = tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    here = [x for x in tensors if not isinstance(x, There)]
    check_devices(name, args, there, here)
    device = next((x for x in leaves if isinstance(x, torch.device)), None)
    own = tree_map_only(There, lambda x: x.inner, (args, kwargs))
    own_args, own_kwargs = tree_map_only(torch.device, lambda d: torch.device("cpu"), own)
    result = func(*own_args, **own_kwargs)
    if device is not None:
        is_there = device.type == NAME
    else:
        is_there = isinstance(args[0], There) if name == "aten::copy_" else bool(there)
    if not is_there:
        return result
    result = tree_map_only(torch.Tensor, lambda x: x if isinstance(x, There) else There(x), result)
    return return_and_correct_aliasing(func, args, kwargs, result) if there else result


class _Dispatch(TorchDispatchMode):
    """Also takes what makes tensors from nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What leaves tensors without an operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.tensor:  # of a list of tensors
            args = (tree_map_only(There, lambda x: x.item(), args[0]), *args[1:])
        elif args and isinstance(args[0], There):
            if func == torch.Tensor.data.__set__:
                args[0].inner = args[1].detach().inner
                return None
            if func is torch.Tensor.tolist:
                return args[0].detach().inner.tolist()
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise DeviceError("A tensor of another device is no array: copy it to the CPU first.")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def second_device(monkeypatch):
    """Within this context `SECOND` is a device like others; a generator for it is one of the CPU."""
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    monkeypatch.setattr(torch, "inference_mode", _inference_mode)
    monkeypatch.setattr(CausalBias, "__new__", staticmethod(_causal_bias))
    torch._C._set_only_lift_cpu_tensors(True)
    present[0] = True
    try:
        with _Functions(), _Dispatch():
            yield SECOND
    finally:
        present[0] = False
        torch._C._set_only_lift_cpu_tensors(False)
        monkeypatch.undo()


def _inference_mode(mode=True):
    """Without the tensors of inference, which cannot be wrapped."""
    return torch.no_grad() if mode else contextlib.nullcontext()


def _causal_bias(cls, *args):
    with _disable_current_modes():  # a mask without numbers, that the mode would take for a tensor
        return torch.Tensor.__new__(cls)


class SecondAccelerator(Accelerator):
    """Lets Lightning train there."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return [SECOND] * devices

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return NAME


def second_strategy():
    """One process on the second device."""
    return SingleDeviceStrategy(device=SECOND, accelerator=SecondAccelerator())

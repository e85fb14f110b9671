"""The codec's primitives, once per kind of hardware, bit for bit the same.

``reference`` (numpy) is slow and normative; ``cpu`` is the native core, or torch where that was not built; ``cuda``
is NVIDIA GPUs.
"""

from __future__ import annotations

from importlib.util import find_spec

from .. import native
from ..errors import BudgetError, ConfigError
from .interface import Backend

__all__ = ["BACKENDS", "Backend", "get_backend"]

BACKENDS = ("auto", "cpu", "cuda", "reference")
"""Names of devices. ``cuda`` is all that are visible, ``cuda:1`` and ``cuda:0,2`` are those; their
threads share a model. ``auto`` is ``cuda`` where there is one."""


def get_backend(name: str) -> Backend:
    """The backend of that name; modules are imported on first use, for torch takes seconds to load.

    Raises:
        ConfigError: there is no such backend, or not on this machine.
        BudgetError: others have all memory of the device.
    """
    if name == "auto":
        try:
            return get_backend("cuda" if _cuda_is_usable() else "cpu")
        except BudgetError:  # others have all of its memory
            return get_backend("cpu")
    if name.partition(":")[0] == "cuda":
        if find_spec("triton") is None:
            raise ConfigError(f"the device {name!r} needs Triton: install ddct[gpu], or use cpu")
        from .cuda import CudaBackend, find_devices, limit_memory

        devices = find_devices(name)
        limit_memory(devices)
        return CudaBackend(*devices)
    if name == "reference":
        from .reference import ReferenceBackend

        return ReferenceBackend()
    if name == "cpu":
        if native.core is not None:
            from .native_cpu import NativeCpuBackend

            return NativeCpuBackend(native.core)
        native.warn_without_core()
        from .torch_cpu import TorchCpuBackend

        return TorchCpuBackend()
    raise ConfigError(f"unknown device {name!r}; known are {', '.join(BACKENDS)}")


def _cuda_is_usable() -> bool:
    if find_spec("triton") is None:
        return False
    import torch

    return torch.cuda.is_available()

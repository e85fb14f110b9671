"""The codec's primitives, once per kind of hardware, bit for bit the same.

``reference`` (numpy) is slow and normative; ``cpu`` runs the same steps through torch.
"""

from __future__ import annotations

from ..errors import ConfigError
from .interface import Backend

__all__ = ["BACKENDS", "Backend", "get_backend"]

BACKENDS = ("cpu", "reference")


def get_backend(name: str) -> Backend:
    """The backend of that name; modules are imported on first use, for torch takes seconds to load.

    Raises:
        ConfigError: there is no such backend.
    """
    if name == "reference":
        from .reference import ReferenceBackend

        return ReferenceBackend()
    if name == "cpu":
        from .torch_cpu import TorchCpuBackend

        return TorchCpuBackend()
    raise ConfigError(f"unknown device {name!r}; known are {', '.join(BACKENDS)}")

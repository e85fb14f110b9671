"""dctq.v1 on NVIDIA GPUs, in Triton: one kernel per file, ``layer`` puts them together, ``backend`` is the door."""

from __future__ import annotations

from .backend import CudaBackend
from .device import find_device

__all__ = ["CudaBackend", "find_device"]

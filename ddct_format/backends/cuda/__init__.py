"""dctq.v1 and ulp.v1 on NVIDIA GPUs: CUDA C++ for patches of 16, Triton for the rest; ``backend`` is the door."""

from __future__ import annotations

from .backend import CudaBackend
from .device import find_devices, limit_memory

__all__ = ["CudaBackend", "find_devices", "limit_memory"]

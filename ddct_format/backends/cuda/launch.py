"""How every kernel of this folder is started."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import torch

__all__ = ["launch"]

_starting = threading.Lock()  # Triton compiles when it first launches a kernel


def launch(kernel: Any, grid: tuple[int, ...], first: torch.Tensor, *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first tensor, with multiply and add never fused (spec section 7.2.3)."""
    elsewhere = first.is_cuda and first.device.index != torch.cuda.current_device()
    with _starting, torch.cuda.device(first.device) if elsewhere else nullcontext():
        kernel[grid](first, *arguments, enable_fp_fusion=False, **options)

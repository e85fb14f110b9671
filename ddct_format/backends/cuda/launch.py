"""How every kernel of this folder is started."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["launch"]


def launch(kernel: Any, grid: tuple[int, ...], first: torch.Tensor, *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first tensor, with multiply and add never fused (spec section 7.2.3)."""
    if first.is_cuda and first.device.index != torch.cuda.current_device():
        with torch.cuda.device(first.device):
            kernel[grid](first, *arguments, enable_fp_fusion=False, **options)
    else:
        kernel[grid](first, *arguments, enable_fp_fusion=False, **options)

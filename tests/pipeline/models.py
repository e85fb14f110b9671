"""Small model directories with every kind of tensor, written by safetensors itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

__all__ = ["base_model", "fine_tune", "load", "write_model"]

Tensors = dict[str, torch.Tensor]


def base_model(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensors:
    """Matrices of awkward shapes, a convolution, stacked experts, a norm, a scalar, integers and an empty tensor."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=random) * 0.05).to(dtype)

    return {
        "conv.weight": normal(24, 3, 5, 5),
        "embed.weight": normal(130, 64),
        "experts.weight": normal(3, 40, 32),
        "head.weight": normal(63, 47),
        "norm.weight": torch.ones(64, dtype=dtype),
        "scalar": torch.tensor(1.5, dtype=dtype),
        "steps": torch.arange(5),
        "thin.weight": normal(200, 1),
        "unused": torch.empty(0, 16, dtype=dtype),
    }


def fine_tune(base: Tensors, seed: int = 1, size: float = 0.002) -> Tensors:
    """Every floating-point tensor moved by noise; the others copied."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + torch.randn(tensor.shape, generator=random) * size).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


def write_model(directory: Path, tensors: Mapping[str, torch.Tensor], **files: str) -> Path:
    """A plain model directory; ``files`` are side files by name, with ``_json`` for ``.json``."""
    directory.mkdir()
    save_file(dict(tensors), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text('{"model_type": "none"}')
    for name, text in files.items():
        (directory / name.replace("_json", ".json")).write_text(text)
    return directory


def load(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")

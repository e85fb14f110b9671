"""Small real models: a base, and fine-tunes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save, save_file

Tensors = dict[str, np.ndarray]


def base_tensors(seed: int = 0, width: int = 48) -> Tensors:
    """Matrices of 64 x width in F32 and F16, and a norm."""
    random = np.random.default_rng(seed)
    tensors = {f"layers.{i}.weight": random.normal(0, 0.1, (64, width)).astype(np.float32) for i in range(3)}
    tensors["head.weight"] = random.normal(0, 0.1, (64, width)).astype(np.float16)
    tensors["norm.weight"] = np.ones(width, np.float32)
    return tensors


def tuned_tensors(seed: int) -> Tensors:
    """Base + small noise."""
    random = np.random.default_rng(1000 + seed)
    return {
        name: (value.astype(np.float32) + random.normal(0, 1e-3, value.shape)).astype(value.dtype)
        for name, value in base_tensors().items()
    }


def tuned_bytes(seed: int) -> bytes:
    """The fine-tune as a safetensors file."""
    return save(tuned_tensors(seed), {"format": "pt"})


def write_model(directory: Path, tensors: Tensors) -> Path:
    """A plain model directory."""
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text('{"model_type": "test", "architectures": ["TestModel"]}')
    return directory


def nearest_seed(directory: Path) -> int:
    """Which fine-tune, of the first ten, a decoded model comes closest to."""
    decoded = load_file(directory / "model.safetensors")

    def distance(seed: int) -> float:
        exact = tuned_tensors(seed)
        return sum(float(np.sum((decoded[name].astype(np.float64) - exact[name]) ** 2)) for name in exact)

    return min(range(10), key=distance)

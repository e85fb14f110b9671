"""What a GPU packs is as close to the fine-tune as what the reference packs, at equal bytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from pipeline.models import load, write_model

import ddct_format

HAS_GPU = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
SHAPES = {"wide.weight": (768, 2048), "tall.weight": (1500, 700)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deltas like real ones: heavy tails, rows and columns of unequal size, a few strong directions."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    base, tuned = {}, {}
    for name, (rows, cols) in SHAPES.items():
        tails = normal(rows, cols) / (normal(3, rows, cols).square().mean(dim=0)).sqrt()
        sizes = (0.5 * normal(rows, 1)).exp() * (0.5 * normal(1, cols)).exp()
        strong = normal(rows, 4) @ normal(4, cols)
        weights = (normal(rows, cols) * 0.03).bfloat16()
        base[name] = weights
        tuned[name] = (weights.float() + 3e-4 * tails * sizes + 2e-4 * strong).bfloat16()
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "base", base)
    write_model(folder / "tuned", tuned)
    return folder


def bits_and_error(models: Path, preset: str, device: str) -> tuple[float, float]:
    """Bits per weight, and energy of what is wrong over the delta's."""
    archive, out = models / f"{preset}-{device}.ddct", models / f"{preset}-{device}"
    ddct_format.pack(models / "base", models / "tuned", archive, preset=preset, device=device)
    ddct_format.unpack(archive, models / "base", out)
    base, tuned, decoded = load(models / "base"), load(models / "tuned"), load(out)
    wrong = sum(float((decoded[name].double() - tuned[name].double()).square().sum()) for name in tuned)
    energy = sum(float((tuned[name].double() - base[name].double()).square().sum()) for name in tuned)
    return archive.stat().st_size * 8 / sum(rows * cols for rows, cols in SHAPES.values()), wrong / energy


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("preset", ["paper", "small", "balanced", "high"])
def test_the_error_at_equal_bytes_is_within_one_percent(models: Path, preset: str) -> None:
    bits, error = bits_and_error(models, preset, "reference")
    device_bits, device_error = bits_and_error(models, preset, "cuda")
    # A bit more of each weight divides the error's energy by four.
    at_equal_bytes = device_error * 4 ** (device_bits - bits)
    print(f"{preset}: reference {bits:.4f} bits, {error:.5f}; device {device_bits:.4f} bits, {device_error:.5f}")
    assert at_equal_bytes == pytest.approx(error, rel=0.01)

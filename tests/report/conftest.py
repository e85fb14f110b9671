"""A base and a fine-tune of every kind of tensor, quickly packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from report_pair import HOSTILE
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` and ``tuned``: matrices that moved unevenly, a norm, integers, a new tensor, tied ones."""
    folder = tmp_path_factory.mktemp("pair")
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    base = {
        "a.weight": (normal(160, 96) * 0.05).bfloat16(),
        HOSTILE: (normal(96, 200) * 0.05).bfloat16(),
        "norm.weight": torch.ones(96, dtype=torch.bfloat16),
        "same.weight": normal(32, 32).bfloat16(),
        "steps": torch.arange(5),
    }
    tuned = dict(base)
    for name, size in (("a.weight", 1e-3), (HOSTILE, 3e-3)):
        rows, cols = base[name].shape
        change = normal(rows, 2) @ normal(2, cols) + normal(rows, 1).exp() * normal(rows, cols)
        tuned[name] = (base[name].float() + change * size).bfloat16()
    tuned["norm.weight"] = (base["norm.weight"].float() + normal(96) * 0.05).bfloat16()
    tuned["steps"] = torch.arange(5) + 1
    tuned["tied.weight"] = tuned["a.weight"].clone()
    tuned["wide.weight"] = normal(4, 4)
    tuned["z.bias"] = base["norm.weight"].clone()
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    return folder

"""A base and a fine-tune that are quickly packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` and ``tuned``: one matrix that moved in two directions and by noise, and one norm."""
    folder = tmp_path_factory.mktemp("small")
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    base = {"a": normal(160, 96) * 0.05, "norm": torch.ones(96)}
    change = normal(160, 2) @ normal(2, 96) + normal(160, 96)
    tuned = {"a": base["a"] + change * 1e-3, "norm": base["norm"] + normal(96) * 0.01}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
    return folder

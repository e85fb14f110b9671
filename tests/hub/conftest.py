"""Objects to publish, and a small real model with its fine-tune."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hub_objects import MakeObject, Object
from safetensors.numpy import save_file


@pytest.fixture
def make_object(tmp_path: Path) -> MakeObject:
    """`(data) -> Object`: a file of these bytes, outside of any hub."""

    def make(data: bytes) -> Object:
        sha256 = hashlib.sha256(data).hexdigest()
        path = tmp_path / f"source-{sha256[:8]}"
        path.write_bytes(data)
        return Object(path, sha256, len(data))

    return make


@pytest.fixture
def model_pair(tmp_path: Path) -> tuple[Path, Path]:
    """(base, fine-tune): model directories with a few matrices; the fine-tune is base + small noise."""
    random = np.random.default_rng(7)
    base = {f"layer.{i}.weight": random.normal(0, 0.1, (64, 48)).astype(np.float32) for i in range(3)}
    base["norm.weight"] = np.ones(48, np.float32)
    tuned = {name: (value + random.normal(0, 1e-3, value.shape)).astype(np.float32) for name, value in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text('{"model_type": "test"}')
    return tmp_path / "base", tmp_path / "tuned"

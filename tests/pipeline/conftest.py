"""A base, its fine-tune and the archive between them, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import base_model, fine_tune, write_model

from ddct_format import pack


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", base_model())


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tuned", fine_tune(base_model()), tokenizer_json="{}")


@pytest.fixture
def archive(tmp_path: Path, base: Path, tuned: Path) -> Path:
    pack(base, tuned, tmp_path / "tuned.ddct")
    return tmp_path / "tuned.ddct"

"""A small working set changes nothing but the way: tensors beyond its share go through mapped files, in bands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from models import Tensors, write_model

from ddct_format import errors, open_archive, pack, unpack, verify
from ddct_format.pipeline.decoding import MIN_MEMORY

SETTINGS = [("paper", False), ("balanced", False), ("exact", False), ("paper", True)]
SHARE = MIN_MEMORY // 8
"""Of two threads."""


def large_pair(random: torch.Generator) -> tuple[Tensors, Tensors]:
    """Tensors beyond the share of the smallest working set, one of each operation, and small ones beside them."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.05

    scale = torch.exp(normal(300, 1) * 20)
    base = {
        "changed.weight": (normal(300, 517) * scale).bfloat16(),
        "kept.weight": normal(400, 333).bfloat16(),
        "norm": torch.ones(300).bfloat16(),
        "widened.weight": normal(333, 256).bfloat16(),
    }
    moved = base["changed.weight"].float() + normal(300, 517) * scale * 0.02
    tuned = {
        **base,
        "changed.weight": moved.bfloat16(),
        "integers": torch.arange(40_000),
        "new.weight": normal(200, 301),
        "norm": torch.full((300,), 1.25).bfloat16(),
        "tied.weight": moved.bfloat16(),
        "widened.weight": base["widened.weight"].float() + normal(333, 256) * 0.01,
    }
    for name in ("changed.weight", "kept.weight", "integers", "new.weight", "widened.weight"):
        assert tuned[name].nbytes > SHARE
    return base, tuned


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    base, tuned = large_pair(torch.Generator().manual_seed(3))
    write_model(folder / "base", base)
    write_model(folder / "tuned", tuned)
    return folder


def weights(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("preset", "exact"), SETTINGS, ids=["paper", "balanced", "exact", "paper and exact layer"])
def test_bytes_do_not_depend_on_the_memory(pair: Path, tmp_path: Path, preset: str, exact: bool) -> None:
    pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", preset=preset, exact=exact)
    with open_archive(tmp_path / "t.ddct") as archive:
        assert {record.op for record in archive.tensors.values()} == {"add", "alias", "keep", "replace"}
    unpack(tmp_path / "t.ddct", pair / "base", tmp_path / "plenty", threads=2)
    unpack(tmp_path / "t.ddct", pair / "base", tmp_path / "little", threads=2, memory=MIN_MEMORY, drop_cache=True)
    assert weights(tmp_path / "little") == weights(tmp_path / "plenty")
    if exact or preset == "exact":
        assert weights(tmp_path / "little") == weights(pair / "tuned")
    report = verify(tmp_path / "t.ddct", pair / "base", threads=2, memory=MIN_MEMORY)
    assert report.decoded == report.tensors == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["little", "plenty", "t.ddct"]


def test_a_wrong_base_is_refused_all_the_same(pair: Path, tmp_path: Path) -> None:
    pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", preset="paper")
    other, _ = large_pair(torch.Generator().manual_seed(4))
    write_model(tmp_path / "other", other)
    with pytest.raises(errors.BaseMismatchError, match="other contents"):
        unpack(tmp_path / "t.ddct", tmp_path / "other", tmp_path / "out", memory=MIN_MEMORY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "t.ddct"]


def test_damage_is_found_in_a_payload_that_is_not_in_memory(pair: Path, tmp_path: Path) -> None:
    archive = tmp_path / "t.ddct"
    pack(pair / "base", pair / "tuned", archive, preset="exact")
    with open_archive(archive) as opened:
        assert opened.tensors["changed.weight"].layers[0].size > SHARE
    damaged = bytearray(archive.read_bytes())
    damaged[-5] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(errors.CorruptError, match="checksum"):
        unpack(archive, pair / "base", tmp_path / "out", memory=MIN_MEMORY)
    with pytest.raises(errors.CorruptError, match="checksum"):
        verify(archive, pair / "base", memory=MIN_MEMORY)
    assert [path.name for path in tmp_path.iterdir()] == ["t.ddct"]


def test_temporary_files_that_do_not_fit_are_a_refusal(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", preset="exact")

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(errors.StorageError, match="No space left"):
        verify(tmp_path / "t.ddct", pair / "base", memory=MIN_MEMORY)
    with pytest.raises(errors.StorageError, match="No space left"):
        unpack(tmp_path / "t.ddct", pair / "base", tmp_path / "out", memory=MIN_MEMORY)
    assert [path.name for path in tmp_path.iterdir()] == ["t.ddct"]


def test_too_little_memory_is_refused(pair: Path, tmp_path: Path) -> None:
    pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", preset="paper")
    with pytest.raises(errors.ConfigError, match="too small"):
        verify(tmp_path / "t.ddct", pair / "base", memory=MIN_MEMORY - 1)


def test_too_little_memory_to_pack_in_is_refused_with_the_least(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"268435455 bytes is too small: packing needs 256M$"):
        pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", memory=(256 << 20) - 1)
    assert not list(tmp_path.iterdir())
    pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", memory=256 << 20)

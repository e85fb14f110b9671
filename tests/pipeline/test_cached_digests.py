"""Packing with cached base digests: nothing depends on one that was not compared with the bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from models import base_model, fine_tune, write_model
from safetensors.torch import save_file

from ddct_format import errors, pack, verify
from ddct_format.checkpoint import Checkpoint, default_cache, open_checkpoint


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DDCT_CACHE", str(tmp_path / "cache"))


def phases(base: Path | Checkpoint, tuned: Path, out: Path, **options: bool) -> set[str]:
    seen: set[str] = set()
    pack(base, tuned, out, preset="paper", progress=lambda done, total, what: seen.add(what), **options)
    return seen


def settled(model: Path) -> Path:
    then = time.time() - 60
    os.utime(model / "model.safetensors", (then, then))
    return model


def test_the_base_is_digested_once_for_two_fine_tunes(base: Path, tuned: Path, tmp_path: Path) -> None:
    settled(base)
    assert "reading base" in phases(base, tuned, tmp_path / "1.ddct")
    assert "reading base" not in phases(base, tuned, tmp_path / "2.ddct")
    assert (tmp_path / "1.ddct").read_bytes() == (tmp_path / "2.ddct").read_bytes()
    verify(tmp_path / "2.ddct", base)


def test_cached_digests_are_compared_once_while_the_base_is_open(base: Path, tuned: Path, tmp_path: Path) -> None:
    phases(settled(base), tuned, tmp_path / "0.ddct")
    with open_checkpoint(base) as opened:
        seen = [phases(opened, tuned, tmp_path / f"{number}.ddct") for number in (1, 2)]
    assert ["checking base" in each for each in seen] == [True, False]
    assert not any("reading base" in each for each in seen)


def test_no_cache_without_verification_or_when_it_is_refused(base: Path, tuned: Path, tmp_path: Path) -> None:
    settled(base)
    phases(base, tuned, tmp_path / "1.ddct")
    assert "reading base" in phases(base, tuned, tmp_path / "2.ddct", verify=False)
    assert "reading base" in phases(base, tuned, tmp_path / "3.ddct", cache=False)


def test_a_base_that_changed_behind_its_time_is_found_out(base: Path, tuned: Path, tmp_path: Path) -> None:
    settled(base)
    pack(base, tuned, tmp_path / "1.ddct", preset="paper")
    path = base / "model.safetensors"
    before = path.stat()
    other = tmp_path / "other.safetensors"
    save_file(fine_tune(base_model(), seed=7), other, {"format": "pt"})
    path.write_bytes(other.read_bytes())  # in place: the inode stays
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(errors.BaseMismatchError, match="try again"):
        pack(base, tuned, tmp_path / "2.ddct", preset="paper")
    assert not (tmp_path / "2.ddct").exists()
    pack(base, tuned, tmp_path / "2.ddct", preset="paper")
    verify(tmp_path / "2.ddct", base)


def test_the_cache_holds_the_digests_of_the_archive(base: Path, tuned: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "unrelated", base_model(seed=5))
    settled(base)
    pack(base, tuned, tmp_path / "1.ddct", preset="paper")
    cache = default_cache()
    assert cache is not None
    with open_checkpoint(base) as opened:
        assert cache.lookup(opened).keys() == opened.tensors.keys()
    with open_checkpoint(tmp_path / "unrelated") as opened:
        assert cache.lookup(opened) == {}

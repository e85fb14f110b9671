"""The digest cache finds what it was told of unchanged files, and nothing else, whatever happens to its database."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from ddct_format.checkpoint import DigestCache, default_cache, open_checkpoint

DIGESTS = {"a": "a" * 64, "b": "b" * 64}
OTHERS = zlib.compress(json.dumps({"a": "a" * 64}).encode())


@pytest.fixture
def model(tmp_path: Path, make_file: Callable[..., Path]) -> Path:
    path = make_file(tmp_path / "model" / "model.safetensors", "a", "b")
    age(path, 60)
    return path.parent


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "cache" / "ddct")


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def stored(cache: DigestCache, model: Path) -> DigestCache:
    with open_checkpoint(model) as opened:
        cache.store(opened, DIGESTS)
    return cache


def found(cache: DigestCache, model: Path) -> dict[str, str]:
    with open_checkpoint(model) as opened:
        return cache.lookup(opened)


def test_what_was_stored_is_found(cache: DigestCache, model: Path) -> None:
    assert found(cache, model) == {}
    assert not cache.path.exists()
    assert found(stored(cache, model), model) == DIGESTS


@pytest.mark.parametrize("change", ["time", "inode", "size"])
def test_a_file_in_another_state_is_not_found(
    cache: DigestCache, model: Path, make_file: Callable[..., Path], change: str
) -> None:
    stored(cache, model)
    path = model / "model.safetensors"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    if change == "time":
        os.utime(path, ns=(times[0], times[1] + 1))
    elif change == "inode":
        copy = path.with_suffix(".copy")
        copy.write_bytes(path.read_bytes())
        os.utime(copy, ns=times)
        copy.replace(path)
    else:
        make_file(path, "a", "b", "c")
        os.utime(path, ns=times)
    assert found(cache, model) == {}


def test_a_file_that_has_just_been_written_is_not_remembered(cache: DigestCache, model: Path) -> None:
    age(model / "model.safetensors", 0)
    assert found(stored(cache, model), model) == {}


def test_a_file_that_changed_while_it_was_read_is_not_remembered(cache: DigestCache, model: Path) -> None:
    with open_checkpoint(model) as opened:
        age(model / "model.safetensors", 30)
        cache.store(opened, DIGESTS)
    assert found(cache, model) == {}


@pytest.mark.parametrize("damage", ["garbage", "truncated", "other table", "other digests", "not zlib", "directory"])
def test_a_damaged_database_is_replaced(cache: DigestCache, model: Path, damage: str) -> None:
    stored(cache, model)
    raw = cache.path.read_bytes()
    if damage == "garbage":
        cache.path.write_bytes(b"garbage" * 1000)
    elif damage == "truncated":
        cache.path.write_bytes(raw[: len(raw) // 2])
    elif damage == "directory":
        cache.path.unlink()
        cache.path.mkdir()
    else:
        database = sqlite3.connect(cache.path)
        with database:
            if damage == "other table":
                database.execute("DROP TABLE files")
                database.execute("CREATE TABLE files (other TEXT)")
            else:
                database.execute("UPDATE files SET digests=?", (b"x" if damage == "not zlib" else OTHERS,))
        database.close()
    assert found(cache, model) == {}
    if damage != "directory":
        assert found(stored(cache, model), model) == DIGESTS


def test_what_was_forgotten_is_not_found(cache: DigestCache, model: Path) -> None:
    stored(cache, model)
    with open_checkpoint(model) as opened:
        cache.forget(opened)
    assert found(cache, model) == {}


def hammer(directory: str, model: str) -> None:
    cache = DigestCache(Path(directory))
    for _ in range(20):
        stored(cache, Path(model))
        assert found(cache, Path(model)) in ({}, DIGESTS)


def test_many_processes_share_it(cache: DigestCache, model: Path) -> None:
    context = get_context("spawn")
    workers = [context.Process(target=hammer, args=(str(cache.path.parent), str(model))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert found(cache, model) == DIGESTS


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_no_failure(tmp_path: Path, model: Path) -> None:
    tmp_path.chmod(0o500)
    assert found(stored(DigestCache(tmp_path / "cache"), model), model) == {}


def test_the_environment_says_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_cache() is None
    monkeypatch.setenv("DDCT_CACHE", str(tmp_path))
    assert (cache := default_cache()) is not None and cache.path.parent == tmp_path
    monkeypatch.delenv("DDCT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (cache := default_cache()) is not None and cache.path.parent == tmp_path / "xdg" / "ddct"


def test_a_place_that_cannot_even_be_looked_into_is_no_failure(tmp_path: Path, model: Path) -> None:
    cache = DigestCache(tmp_path / ("x" * 300))  # as a directory of somebody else, which root may read all the same
    assert found(stored(cache, model), model) == {}
    with open_checkpoint(model) as opened:
        cache.forget(opened)

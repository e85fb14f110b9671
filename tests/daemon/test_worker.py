"""Packing in the worker: what changes meanwhile is discarded, what is rotated away is not lost."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_models import write_model

from ddct_daemon import worker
from ddct_daemon.listing import list_checkpoint
from ddct_daemon.worker import run_pack
from ddct_format import verify


def fingerprint(runs: Path) -> str:
    listing = list_checkpoint(runs, "model")
    assert listing is not None
    return listing.fingerprint


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """A model that takes a second or so to pack, and the job to pack it."""
    random = np.random.default_rng(0)
    base = {f"layers.{i}": random.normal(0, 0.1, (512, 512)).astype(np.float32) for i in range(8)}
    tuned = {name: value + random.normal(0, 1e-3, value.shape).astype(np.float32) for name, value in base.items()}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "runs" / "model", tuned)
    (tmp_path / "spool").mkdir()
    return {
        "job": "pack",
        "name": "model",
        "watch": str(tmp_path / "runs"),
        "fingerprint": fingerprint(tmp_path / "runs"),
        "bases": [str(tmp_path / "base")],
        "out": str(tmp_path / "spool" / "archive.ddct"),
        "preset": "paper",
        "device": "reference",
        "threads": 1,
        "nice": 0,
        "base_names": {},
        "memory": 0,
        "training_state": False,
        "link": None,
        "decoded": None,
    }


def pack_while(job: dict[str, Any], interfere: Callable[[], object]) -> dict[str, Any]:
    """Run the job, and call ``interfere`` once the archive's temporary file is being written."""
    spool, happened = Path(job["out"]).parent, []

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not any(spool.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.001)
        interfere()
        happened.append(not Path(job["out"]).exists())

    thread = threading.Thread(target=watch)
    thread.start()
    answer = run_pack(job)
    thread.join()
    assert happened == [True], "the interference came too late to be a test"
    return answer


def test_a_quiet_pack_gives_a_report(job: dict[str, Any], tmp_path: Path) -> None:
    answer = run_pack(job)
    assert answer["outcome"] == "packed"
    assert answer["report"]["file_size"] == Path(job["out"]).stat().st_size
    assert verify(job["out"], tmp_path / "base").decoded


def rewrite_in_place(directory: Path) -> None:
    with (directory / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")


@pytest.mark.parametrize(
    "change",
    [
        rewrite_in_place,
        lambda directory: (directory / "config.json").write_text("{}"),
        lambda directory: (directory / "tokenizer.json").write_text("{}"),
        lambda directory: (directory / "late").mkdir(),
    ],
    ids=["weights in place", "side file", "new file", "new directory"],
)
def test_a_checkpoint_that_changes_while_it_is_packed_is_discarded(
    job: dict[str, Any], tmp_path: Path, change: Callable[[Path], object]
) -> None:
    answer = pack_while(job, lambda: change(tmp_path / "runs" / "model"))
    assert answer["outcome"] == "changed"
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_checkpoint_that_is_rotated_away_while_it_is_packed_is_packed_whole_or_not_at_all(
    job: dict[str, Any], tmp_path: Path
) -> None:
    answer = pack_while(job, lambda: shutil.rmtree(tmp_path / "runs" / "model"))
    if answer["outcome"] == "packed":
        assert verify(job["out"], tmp_path / "base").decoded
    else:
        assert answer["outcome"] == "changed"
        assert list((tmp_path / "spool").iterdir()) == []


def test_a_checkpoint_that_is_not_the_one_that_was_planned_is_not_packed(job: dict[str, Any], tmp_path: Path) -> None:
    job["fingerprint"] = "of an earlier listing"
    assert run_pack(job)["outcome"] == "changed"
    shutil.rmtree(tmp_path / "runs" / "model")
    assert run_pack(job)["outcome"] == "changed"
    assert list((tmp_path / "spool").iterdir()) == []


def test_trouble_with_the_base_is_a_failure_and_with_the_checkpoint_it_is_unusable(
    job: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "aside")
    assert run_pack(job)["outcome"] == "failed"
    (tmp_path / "aside").rename(tmp_path / "base" / "model.safetensors")
    (tmp_path / "runs" / "model" / "adapter_config.json").write_text("{}")
    job["fingerprint"] = fingerprint(tmp_path / "runs")
    assert run_pack(job)["outcome"] == "unusable"


@pytest.mark.parametrize("limit", [0, 300_000_000, 900_000_000, 8_000_000_000])
def test_any_limit_of_memory_leaves_a_working_set_that_packing_takes(job: dict[str, Any], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "limit_memory", lambda size: None)  # it is for all of a process
        assert run_pack({**job, "memory": limit})["outcome"] == "packed"

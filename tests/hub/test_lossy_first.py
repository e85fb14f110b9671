"""Lossy first: a pull that fetches the start of an archive only, and one that fetches the rest later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_servers import MiniHub
from safetensors.numpy import load_file, save_file

from ddct_format import open_archive, pack, unpack
from ddct_format.errors import BaseMismatchError, CheckpointError, HubError, StorageError
from ddct_format.hub import Hub, HubOptions, Pointer, open_hub, pull, push
from ddct_format.hub.fetch import PartialArchive


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, tuned/, and two.ddct with a lossy and an exact layer."""
    folder = tmp_path_factory.mktemp("lossy-first")
    random = np.random.default_rng(11)
    base = {f"layer.{i}.weight": random.normal(0, 0.1, (256, 256)).astype(np.float32) for i in range(6)}
    for name, noise in (("base", 0.0), ("tuned", 1e-3)):
        (folder / name).mkdir()
        tensors = {key: (value + noise * random.normal(size=value.shape)).astype("f4") for key, value in base.items()}
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text('{"model_type": "test"}')
    pack(folder / "base", folder / "tuned", folder / "two.ddct", preset="small", exact=True)
    unpack(folder / "two.ddct", folder / "base", folder / "expected-lossy", lossy=True)
    return folder


@pytest.fixture(params=["directory", "hf_lfs", "hf_xet", "hf_weak", "s3", "s3_weak"])
def hub(request: pytest.FixtureRequest, tmp_path: Path, models: Path) -> Hub:
    """Each kind, with two.ddct as ``run``."""
    kind: str = request.param
    if kind == "directory":
        (tmp_path / "hub").mkdir()
        hub = open_hub(str(tmp_path / "hub"))
    else:
        server = request.getfixturevalue(kind)
        if kind.startswith("s3"):
            hub = open_hub("s3://bucket/lossy-first", HubOptions(endpoint=server))
        else:
            hub = open_hub("hf://acme/lossy-first", HubOptions(server.url, str(server.token_file)))
    push(hub, "run", models / "two.ddct")
    return hub


@pytest.fixture
def local(tmp_path: Path, models: Path) -> Hub:
    (tmp_path / "hub").mkdir()
    hub = open_hub(str(tmp_path / "hub"))
    push(hub, "run", models / "two.ddct")
    return hub


def prefix_size(models: Path) -> int:
    with open_archive(models / "two.ddct") as archive:
        return archive.reader.prefix_size(1)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_lossy_then_exact_fetches_every_byte_once(hub: Hub, models: Path, tmp_path: Path) -> None:
    size = (models / "two.ddct").stat().st_size
    first = pull(hub, "run", models / "base", tmp_path / "lossy", lossy=True)
    assert not first.lossless
    # What brings the metadata may bring a little more than the first layers.
    assert first.fetched == max(prefix_size(models), 256 << 10) < size // 2
    assert first.missing == size - first.fetched
    assert first.partial is not None
    assert Path(first.partial).stat().st_size == first.fetched
    assert weights(tmp_path / "lossy") == weights(models / "expected-lossy")
    second = pull(hub, "run", models / "base", tmp_path / "exact")
    assert second.lossless
    assert second.fetched == first.missing
    assert second.partial is None
    assert weights(tmp_path / "exact") == weights(models / "tuned")
    assert not list(tmp_path.glob(".*"))


def test_an_archive_of_one_layer_leaves_nothing_behind(local: Hub, models: Path, tmp_path: Path) -> None:
    pack(models / "base", models / "tuned", tmp_path / "one.ddct", preset="small")
    push(local, "one", tmp_path / "one.ddct")
    report = pull(local, "one", models / "base", tmp_path / "out", lossy=True)
    assert (report.missing, report.partial) == (0, None)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("place", [20, 100, 5_000, 200_000])
@pytest.mark.parametrize("lossy", [True, False])
def test_a_kept_part_that_was_damaged_is_fetched_again(
    local: Hub, models: Path, tmp_path: Path, place: int, lossy: bool
) -> None:
    kept = pull(local, "run", models / "base", tmp_path / "first", lossy=True).partial
    assert kept is not None
    damaged = bytearray(Path(kept).read_bytes())
    damaged[place] ^= 1
    Path(kept).write_bytes(damaged)
    report = pull(local, "run", models / "base", tmp_path / "out", lossy=lossy)
    assert report.lossless is not lossy
    assert weights(tmp_path / "out") == weights(models / ("expected-lossy" if lossy else "tuned"))


def test_a_pointer_to_another_archive_of_the_same_size_is_refused(local: Hub, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "hub/refs/run.json"
    record = json.loads(path.read_text())
    for field in ("content_id", "base_id", "target_id"):
        path.write_text(json.dumps(record | {field: "0" * 64}))
        with pytest.raises(HubError, match="does not describe"):
            pull(local, "run", models / "base", tmp_path / "out", lossy=True)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".*"))


def test_the_wrong_base_and_no_base_leave_nothing(local: Hub, models: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError):
        pull(local, "run", models / "tuned", tmp_path / "out", lossy=True)
    with pytest.raises(CheckpointError):
        pull(local, "run", tmp_path / "no-model", tmp_path / "out", lossy=True)
    assert not list(tmp_path.glob(".*"))


def test_two_pulls_of_one_archive_to_one_place_do_not_mix(local: Hub, models: Path, tmp_path: Path) -> None:
    pointer = local.get_pointer("run")
    assert isinstance(pointer, Pointer)
    part = tmp_path / f".{pointer.sha256[:32]}.ddct-part"
    with PartialArchive(local, "run", pointer, part), pytest.raises(StorageError, match="another process"):
        pull(local, "run", models / "base", tmp_path / "out")
    pull(local, "run", models / "base", tmp_path / "out")


def test_the_lossy_model_of_a_chain_needs_its_links_whole(local: Hub, models: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(12)
    later = {
        name: (value + 1e-3 * random.normal(size=value.shape)).astype("f4")
        for name, value in load_file(models / "tuned/model.safetensors").items()
    }
    (tmp_path / "later").mkdir()
    save_file(later, tmp_path / "later/model.safetensors", {"format": "pt"})
    archive = tmp_path / "later.ddct"
    pack(models / "tuned", tmp_path / "later", archive, preset="small", exact=True, base_hint={"name": "run"})
    push(local, "later", archive)
    unpack(archive, models / "tuned", tmp_path / "expected", lossy=True)
    first = pull(local, "later", models / "base", tmp_path / "lossy", lossy=True)
    assert weights(tmp_path / "lossy") == weights(tmp_path / "expected")
    assert first.missing > 0
    second = pull(local, "later", models / "base", tmp_path / "exact")
    assert second.fetched == first.missing + (models / "two.ddct").stat().st_size
    assert weights(tmp_path / "exact") == weights(tmp_path / "later")
    assert not list(tmp_path.glob(".*"))


def test_kill_9_in_the_middle_of_a_pull_costs_only_what_was_on_its_way(
    hf_lfs: MiniHub, models: Path, tmp_path: Path
) -> None:
    hub = open_hub("hf://acme/killed", HubOptions(hf_lfs.url, str(hf_lfs.token_file)))
    pointer = push(hub, "run", models / "two.ddct")
    hf_lfs.fault(f"GET /_lfs/{pointer.sha256}", "trickle", seconds=0.05)
    arguments = ["pull", "hf://acme/killed", "run", tmp_path / "out", "--base", models / "base", "--json"]
    reach = ["--endpoint", hf_lfs.url, "--token-file", hf_lfs.token_file]
    command = [sys.executable, "-m", "ddct_format", *map(str, [*arguments, *reach])]
    victim = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    part = tmp_path / f".{pointer.sha256[:32]}.ddct-part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    here = part.stat().st_size
    assert 0 < here < pointer.size
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["fetched"] == pointer.size - here
    assert weights(tmp_path / "out") == weights(models / "tuned")
    assert not list(tmp_path.glob(".*"))

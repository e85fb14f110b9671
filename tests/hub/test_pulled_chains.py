"""Checkpoints packed against earlier ones: every link is fetched, decoded and compared, or the refusal names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddct_format import open_archive, open_hub, pack, pull, push, unpack
from ddct_format.errors import BaseMismatchError, ConfigError, HubError, InvalidError

Tensors = dict[str, np.ndarray]


def write(directory: Path, tensors: Tensors) -> Path:
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    return directory


class Run:
    """A base, three checkpoints each packed against what the one before decodes to, and a hub with all of them."""

    def __init__(self, root: Path) -> None:
        random = np.random.default_rng(0)
        tensors: Tensors = {name: random.normal(0, 1, (32, 48)).astype(np.float32) for name in ("a", "b")}
        self.root, self.base = root, write(root / "base", tensors)
        self.hub = open_hub(str(root / "hub"))
        self.archives, self.decoded = [], []
        previous, hint = self.base, {}
        for step in (1, 2, 3):
            tensors = {
                name: value + random.normal(0, 0.01, value.shape).astype(np.float32) for name, value in tensors.items()
            }
            tuned = write(root / f"checkpoint-{step}", tensors)
            archive, decoded = root / f"{step}.ddct", root / f"decoded-{step}"
            pack(previous, tuned, archive, preset="paper", base_hint=hint)
            unpack(archive, previous, decoded)
            push(self.hub, f"run/checkpoint-{step}", archive)
            self.archives.append(archive)
            self.decoded.append(decoded)
            previous, hint = decoded, {"name": f"run/checkpoint-{step}"}

    def leftovers(self) -> list[Path]:
        return [path for path in self.root.iterdir() if path.name.startswith(".")]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "hub").mkdir()
    return Run(tmp_path)


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_pull_resolves_the_whole_chain(run: Run, step: int) -> None:
    report = pull(run.hub, f"run/checkpoint-{step}", run.base, run.root / "out")
    assert weights(run.root / "out") == weights(run.decoded[step - 1])
    assert report.fetched == sum(archive.stat().st_size for archive in run.archives[:step])
    assert run.leftovers() == []


def test_a_base_that_is_the_direct_one_already_needs_no_link(run: Run) -> None:
    report = pull(run.hub, "run/checkpoint-3", run.decoded[1], run.root / "out")
    assert report.fetched == run.archives[2].stat().st_size
    assert weights(run.root / "out") == weights(run.decoded[2])


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_link_is_named(run: Run, missing: int) -> None:
    run.hub.remove(f"run/checkpoint-{missing}")
    with pytest.raises(BaseMismatchError, match=f"'run/checkpoint-{missing}', which it was packed against, is not on"):
        pull(run.hub, "run/checkpoint-3", run.base, run.root / "out")
    assert not (run.root / "out").exists()
    assert run.leftovers() == []


def test_a_link_that_was_replaced_is_no_link(run: Run) -> None:
    run.hub.remove("run/checkpoint-2")
    push(run.hub, "run/checkpoint-2", run.archives[0])
    with pytest.raises(BaseMismatchError, match="'run/checkpoint-2', which it was packed against, is not on"):
        pull(run.hub, "run/checkpoint-3", run.base, run.root / "out")


def test_a_wrong_base_is_refused_through_the_chain_as_without_one(run: Run) -> None:
    other = write(
        run.root / "other", {name: value + 1 for name, value in load_file(run.base / "model.safetensors").items()}
    )
    with pytest.raises(BaseMismatchError, match="other contents"):
        pull(run.hub, "run/checkpoint-3", other, run.root / "out")
    assert not (run.root / "out").exists()
    assert run.leftovers() == []


def test_a_transfer_that_breaks_in_a_link_is_resumed(run: Run) -> None:
    link = json.loads((run.root / "hub/refs/run/checkpoint-1.json").read_text())["sha256"]
    stored = run.root / "hub/objects" / link[:2] / f"{link}.ddct"
    stored.rename(run.root / "aside")
    with pytest.raises(HubError, match="does not hold"):
        pull(run.hub, "run/checkpoint-3", run.base, run.root / "out")
    assert len(run.leftovers()) == 3
    (run.root / "aside").rename(stored)
    report = pull(run.hub, "run/checkpoint-3", run.base, run.root / "out")
    assert report.fetched == run.archives[0].stat().st_size
    assert run.leftovers() == []


def test_a_chain_that_leads_back_to_itself_is_refused(run: Run) -> None:
    """An archive that a hostile hub makes its own base, by a pointer that lies."""
    looped = run.root / "loop.ddct"
    pack(run.decoded[0], run.root / "checkpoint-2", looped, preset="paper", base_hint={"name": "run/loop"})
    push(run.hub, "run/entrance", looped)
    push(run.hub, "run/loop", looped)
    path = run.root / "hub/refs/run/loop.json"
    pointer = json.loads(path.read_text())
    path.write_text(json.dumps(pointer | {"target_id": pointer["base_id"]}))
    with pytest.raises(InvalidError, match="leads back to 'run/loop'"):
        pull(run.hub, "run/entrance", run.base, run.root / "out")
    assert not (run.root / "out").exists()
    assert run.leftovers() == []


def test_unpack_takes_links_in_any_order_and_refuses_what_is_none(run: Run) -> None:
    with pytest.raises(BaseMismatchError, match="which is called 'run/checkpoint-2'"):
        unpack(run.archives[2], run.base, run.root / "out")
    report = unpack(run.archives[2], run.base, run.root / "out", links=run.archives[:2])
    assert weights(run.root / "out") == weights(run.decoded[2])
    with open_archive(run.archives[2]) as opened:
        assert report.target_id == opened.target_id()
    with pytest.raises(ConfigError, match=r"3\.ddct is no link of its chain"):
        unpack(run.archives[1], run.base, run.root / "new", links=[run.archives[2], run.archives[0]])
    with pytest.raises(BaseMismatchError):
        unpack(run.archives[2], run.base, run.root / "new", links=[run.archives[1]])
    assert run.leftovers() == []


def test_unpack_on_the_command_line(run: Run) -> None:
    command = [sys.executable, "-m", "ddct_format", "unpack", run.archives[2], run.root / "out", "--base", run.base]
    assert subprocess.run(command, capture_output=True).returncode == 6
    links = ["--link", run.archives[1], "--link", run.archives[0]]
    assert subprocess.run([*command, *links], capture_output=True).returncode == 0
    assert weights(run.root / "out") == weights(run.decoded[2])

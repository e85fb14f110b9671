"""Fixtures with real processes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_world import CLI, DEADLINE_SECONDS, DdctCommand, DigestTree, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for daemon in world.daemons:
        daemon.kill()
        daemon.wait()
    world.wait_for(lambda: not world.processes(), "the end of all workers")


@pytest.fixture
def ddct() -> DdctCommand:
    """`ddct(*arguments)`: run the command line as a process of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CLI, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)

    return run


@pytest.fixture
def digest_tree() -> DigestTree:
    """`digest_tree(directory)`: sha256 of every file below it."""

    def digest(directory: Path) -> dict[str, str]:
        return {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return digest

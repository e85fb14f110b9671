"""The files in examples/daemon do what they say, as far as that can be tried here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_world import World

EXAMPLES = Path(__file__).parents[2] / "examples" / "daemon"


def test_the_epilog_waits_for_publication_and_passes_the_status_on(world: World) -> None:
    tools = world.root / "bin"
    tools.mkdir()
    (tools / "ddct").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ddct_format "$@"\n')
    (tools / "ddct").chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "DDCT_CONFIG": str(world.config)}
    world.start()
    world.wait_until_ready()
    world.write("checkpoint-1", 1)
    for seconds, status in (("60", 0), ("1", 14)):
        run = [EXAMPLES / "slurm-epilog.sh"]
        done = subprocess.run(run, env=environment | {"DDCT_DRAIN_SECONDS": seconds}, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert "checkpoint-1  published" in done.stdout
        if status == 0:
            world.hub.rename(world.root / "unplugged")
            world.write("checkpoint-2", 2)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("no systemd on this machine")
    unit = tmp_path / "ddct.service"
    unit.write_text((EXAMPLES / "ddct.service").read_text().replace("%h/.local/bin/ddct", "/bin/true"))
    done = subprocess.run(
        [analyse, "--user", "verify", unit],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

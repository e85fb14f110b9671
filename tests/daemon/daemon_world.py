"""A world for a real daemon: a run directory, a base, a hub, a state directory and a configuration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon_models import base_tensors, write_model
from fake_trainer import write_checkpoint

from ddct_daemon.config import load_config
from ddct_daemon.status import read_status

DEADLINE_SECONDS = 60.0
CLI = "from ddct_format.cli.main import main; main()"

DdctCommand = Callable[..., subprocess.CompletedProcess[str]]
DigestTree = Callable[[Path], dict[str, str]]


class World:
    """Everything that a daemon works with, and the daemon itself as a real process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs, self.hub, self.state = root / "runs", root / "hub", root / "state"
        self.base = write_model(root / "base", base_tensors())
        self.runs.mkdir()
        self.hub.mkdir()
        self.config = root / "ddct.toml"
        self.log = root / "log-0"
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.configure()

    def configure(
        self,
        *,
        base: str = "base",
        chain: int = 0,
        training_state: bool = False,
        device: str = "reference",
        rescan: float = 1,
        stop: float = 20,
        hub: str = 'path = "hub"\nname = "my-run"',
        more: str = "",
    ) -> None:
        self.config.write_text(
            f"""
            [watch]
            path = "runs"
            settle_seconds = 0.3
            plain_settle_seconds = 0.6
            rescan_seconds = {rescan}
            [base]
            path = "{base}"
            chain = {chain}
            [pack]
            training_state = {str(training_state).lower()}
            device = "{device}"
            nice = 0
            [hub]
            {hub}
            [state]
            path = "state"
            stop_seconds = {stop}
            {more}
            """
        )

    def start(self, *, by_command_line: bool = False) -> subprocess.Popen[bytes]:
        program = ["-c", CLI, "daemon"] if by_command_line else ["-m", "ddct_daemon"]
        self.log = self.root / f"log-{len(self.daemons)}"
        with self.log.open("wb") as log:
            daemon = subprocess.Popen(
                [sys.executable, *program, "run", "--config", str(self.config)],
                stderr=log,
                env=os.environ | {"DDCT_TEST_WORLD": str(self.root)},
            )
        self.daemons.append(daemon)
        return daemon

    def stop(self) -> None:
        """SIGTERM to the newest daemon, which must end well."""
        self.wait_until_ready()
        self.daemons[-1].send_signal(signal.SIGTERM)
        assert self.daemons[-1].wait(DEADLINE_SECONDS) == 0

    def write(self, name: str, seed: int) -> Path:
        """A whole checkpoint, at once; it is moved into place like some trainers do."""
        hidden = self.root / "writing" / name
        write_checkpoint(hidden, int(name.rsplit("-", 1)[1]), seed)
        hidden.rename(self.runs / name)
        return self.runs / name

    def rows(self) -> dict[str, dict[str, Any]]:
        """Status per checkpoint."""
        status: dict[str, Any] = read_status(load_config(self.config))
        return {row["name"]: row for row in status["checkpoints"]}

    def stage(self, name: str) -> str | None:
        row = self.rows().get(name)
        return None if row is None else str(row["stage"])

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen; log:\n{self.log.read_text()}"
            time.sleep(0.02)

    def wait_for_stage(self, name: str, *stages: str) -> None:
        self.wait_for(lambda: self.stage(name) in stages, f"{name}: {' or '.join(stages)}")

    def pointers(self) -> dict[str, dict[str, Any]]:
        refs = self.hub / "refs"
        return {
            path.relative_to(refs).with_suffix("").as_posix(): json.loads(path.read_bytes())
            for path in refs.rglob("*.json")
        }

    def objects(self) -> list[Path]:
        return [path for path in (self.hub / "objects").rglob("*") if path.is_file()]

    def leftovers(self) -> list[Path]:
        """Temporary files in the hub and everything in the spool."""
        return [*(self.hub / "incoming").glob("*"), *(self.state / "spool").glob("*")]

    def wait_until_ready(self) -> None:
        """Until the newest daemon has taken over from the one before."""
        self.wait_for(lambda: "watching" in self.log.read_text(), "the start")

    def processes(self) -> dict[int, str]:
        """Living processes that belong to this world, daemons and workers, with their command lines."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"DDCT_TEST_WORLD={self.root}\0".encode() in (process / "environ").read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return {number: line for number, line in found.items() if line}

    def freeze_worker(self) -> int:
        """Stop the one worker in its tracks; its process id. The journal tells of a worker before it is started."""
        workers: list[int] = []

        def appeared() -> bool:
            workers[:] = [number for number, line in self.processes().items() if "ddct_daemon.worker" in line]
            return bool(workers)

        self.wait_for(appeared, "the start of a worker")
        (worker,) = workers
        os.kill(worker, signal.SIGSTOP)
        return worker

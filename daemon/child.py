"""The parent's side of a worker: one process per job, one JSON line in, one JSON line out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from ddct_format.errors import StorageError

__all__ = ["Child"]

_MAX_RESULT_BYTES = 1 << 20


class Child:
    """A running worker.

    It has a session of its own, so that a terminal's Ctrl-C reaches the daemon alone; and its
    standard input stays open, so that it notices when the daemon dies.

    Args:
        job: what to do, JSON-ready; see ``worker``.
        threads: CPU threads that numeric libraries may use.
        device: GPUs are hidden from the worker unless this is ``cuda``.
        gpu_memory: bytes of each GPU's memory that it may take; 0 for no limit.

    Raises:
        StorageError: the process could not be started.
    """

    def __init__(
        self, job: Mapping[str, object], *, threads: int = 1, device: str = "cpu", gpu_memory: int = 0
    ) -> None:
        self.name = str(job["name"])
        self.job = job
        command = [sys.executable, "-P", "-m", "ddct_daemon.worker"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_environment(threads, device, gpu_memory),
                start_new_session=True,
            )
        except OSError as error:
            raise StorageError(f"no worker could be started: {error.strerror}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._received = b""
        # If it died already, its status will tell.
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(job).encode() + b"\n")
            self._input.flush()

    def fileno(self) -> int:
        """For a selector: readable when ``finished`` has something to look at."""
        return self._output.fileno()

    def finished(self) -> bool:
        """Take what the worker has written; whether it has ended. Call only when readable."""
        piece = os.read(self._output.fileno(), 65536)
        if piece and len(self._received) <= _MAX_RESULT_BYTES:
            self._received += piece
            return False
        return True

    def result(self) -> dict[str, object]:
        """What came of the job, once ``finished``: the worker's answer, or how it died."""
        status = self._end()
        try:
            answer = json.loads(self._received)
        except ValueError:
            answer = None
        if status == 0 and isinstance(answer, dict) and "outcome" in answer:
            return answer
        if status < 0:
            reason = f"the worker was killed by signal {-status}" + (
                " (out of memory?)" if status == -signal.SIGKILL else ""
            )
        else:
            reason = f"the worker ended with status {status} and no answer; see the log"
        return {"outcome": "failed", "reason": reason}

    def kill(self) -> None:
        """End it at once, without an answer."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._end()

    def _end(self) -> int:
        self._output.close()
        status = self._process.wait()
        # Only now: a worker whose input ends kills itself.
        with contextlib.suppress(OSError):
            self._input.close()
        return status


def _environment(threads: int, device: str, gpu_memory: int) -> dict[str, str]:
    environment = dict(os.environ)
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        environment[f"{library}_NUM_THREADS"] = str(threads)
    if not device.startswith("cuda"):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if gpu_memory:
        environment["DDCT_GPU_MEMORY"] = str(gpu_memory)
    return environment

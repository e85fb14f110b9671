"""The daemon's control socket: a Unix socket of mode 0600 in the state directory.

One JSON object in one line asks, one answers: ``{"command": "pause" | "resume" | "drain" | "status"}``, or
``{"command": "submit", "path": ...}``. Answers have ``error`` if the daemon refuses.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddct_format.errors import ConfigError, StorageError

__all__ = ["ControlServer", "ask_daemon"]

_NAME = "control.sock"
_MAX_BYTES = 1 << 20
_PATIENCE_SECONDS = 2.0
_ANSWER_SECONDS = 60.0
"""The daemon answers between two steps, and a listing of a slow share is one."""

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class ControlServer:
    """Listens from now on; ``fileno`` is for a selector, ``serve`` for when it is readable."""

    def __init__(self, state_path: Path, handle: Handler) -> None:
        self._handle = handle
        self._path = state_path / _NAME
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Whoever holds the state's lock owns the socket: what is there is of a dead daemon.
            self._path.unlink(missing_ok=True)
            with _short_path(state_path) as short:
                previous = os.umask(0o177)
                try:
                    self._socket.bind(short)
                finally:
                    os.umask(previous)
            self._socket.listen(8)
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            raise StorageError(f"cannot listen: {error.strerror}", place=self._path) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def serve(self) -> None:
        """Answer one client; a strange one, or one that is slow to ask, costs about two seconds."""
        with contextlib.suppress(OSError, ValueError):
            client, _ = self._socket.accept()
            with client:
                request = json.loads(_receive_line(client, _PATIENCE_SECONDS))
                client.settimeout(_PATIENCE_SECONDS)
                known = isinstance(request, dict)
                answer = self._handle(request) if known else {"error": "a request is a JSON object"}
                client.sendall(json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)


def ask_daemon(state_path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The running daemon's answer.

    Raises:
        ConfigError: no daemon works on this state, or it refuses the request.
        StorageError: it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_ANSWER_SECONDS)
        try:
            with _short_path(state_path) as short:
                channel.connect(short)
            channel.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_receive_line(channel, _ANSWER_SECONDS))
        except (FileNotFoundError, ConnectionRefusedError):
            raise ConfigError("no daemon is running on this state", place=state_path) from None
        except (OSError, ValueError) as error:
            raise StorageError(f"the daemon does not answer: {error}", place=state_path) from error
    if not isinstance(answer, dict) or "error" in answer:
        reason = answer["error"] if isinstance(answer, dict) else "nonsense"
        raise ConfigError(f"the daemon refuses: {reason}", place=state_path)
    return answer


@contextlib.contextmanager
def _short_path(state_path: Path) -> Iterator[str]:
    """The socket's address through an open directory: addresses have at most 107 bytes, paths have more."""
    directory = os.open(state_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{_NAME}"
    finally:
        os.close(directory)


def _receive_line(channel: socket.socket, seconds: float) -> bytes:
    """All of a line, within so many seconds; OSError if it takes longer."""
    received, deadline = b"", time.monotonic() + seconds
    while not received.endswith(b"\n") and len(received) <= _MAX_BYTES:
        channel.settimeout(max(0.001, deadline - time.monotonic()))
        piece = channel.recv(65536)
        if not piece:
            break
        received += piece
    return received

"""One daemon for one folder and one hub, whatever states they keep: the second would only do the same work again."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from pathlib import Path
from types import TracebackType

from ddct_format.errors import ConfigError

__all__ = ["Claim"]

_PEER = struct.Struct("3i")


class Claim:
    """Held by this process until ``close``, or until it dies; a context manager.

    A socket in Linux's abstract namespace: it needs no file in the user's folder, and leaves nothing behind. It does
    not reach other machines or containers; there, publishing itself sees what is done already.

    Raises:
        ConfigError: another daemon on this machine has it.
    """

    def __init__(self, watch: Path, hub: str, name: str) -> None:
        key = "\0".join((os.path.realpath(watch), hub, name)).encode("utf-8", "surrogateescape")
        address = f"\0ddct-daemon-{hashlib.sha256(key).hexdigest()[:32]}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(address)
            self._socket.listen(1)
        except OSError:
            self._socket.close()
            holder = _holder(address)
            who = "another daemon" if holder is None else f"another daemon (process {holder})"
            raise ConfigError(f"{who} already publishes this folder to {hub}", place=watch) from None

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def _holder(address: str) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(1)
        try:
            channel.connect(address)
            peer = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        except OSError:
            return None
    return int(_PEER.unpack(peer)[0])

"""What systemd wants to hear from a service of ``Type=notify``: one datagram per message, see sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["Notifier"]


class Notifier:
    """Silent unless systemd asked for messages (NOTIFY_SOCKET), and for heartbeats (WATCHDOG_USEC)."""

    def __init__(self) -> None:
        # Taken out of the environment: workers must not speak for the daemon.
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog = os.environ.pop("WATCHDOG_USEC", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = int(watchdog) / 2e6 if watchdog.isdecimal() and self._address else None

    @property
    def interval(self) -> float:
        """Seconds between heartbeats: half of what systemd allows; endless if it wants none."""
        return float("inf") if self._interval is None else self._interval

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        if self._interval is not None:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A service manager that does not listen is no reason to stop working.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(self._address)
            channel.send(message.encode())

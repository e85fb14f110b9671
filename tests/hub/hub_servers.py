"""Test hubs: one as a process of its own, one in this process."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TOKEN = "test-token"


class MiniHub:
    """The repository's own look-alike of the Hugging Face Hub, see ``minihub``; and a file with its token."""

    def __init__(self, root: Path, *options: str) -> None:
        root.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("minihub.py"), root, *options], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self.token_file = root / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(TOKEN)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def fault(self, match: str, mode: str, **details: object) -> None:
        self._ask("/_fault", {"match": match, "mode": mode, **details})

    def clear_faults(self) -> None:
        self._ask("/_clear", {})

    def set_token(self, token: str) -> None:
        self._ask("/_token", token)

    def log(self) -> list[str]:
        return list(self._ask("/_log"))

    def repository(self, name: str = "acme/run") -> dict[str, Any]:
        """``titles`` of all commits, ``private``, and ``files``: path to sha256."""
        return dict(self._ask("/_repositories")[name])

    def _ask(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=20) as answer:
            return json.load(answer)


class S3Store:
    """A WSGI application before moto's, which adds faults. ``weak``: conditions and ranges are ignored.

    A fault is a regular expression on "METHOD path?query", a mode, how many times, and what the mode needs:

        status  answer with ``status`` and the error ``code`` instead of doing it
        after   do it, then answer so: the answer is lost
        drop    close the connection
        cut     send half of the answer, then close the connection
        slow    wait ``seconds`` first
    """

    def __init__(self, application: Callable[..., Iterable[bytes]], *, weak: bool) -> None:
        self.url = ""
        self.faults: list[dict[str, Any]] = []
        self._application, self._weak = application, weak

    def fault(self, match: str, mode: str, *, times: int = 1, **details: object) -> None:
        self.faults.append({"match": match, "mode": mode, "times": times, **details})

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        for header in ("IF_MATCH", "IF_NONE_MATCH", "RANGE") if self._weak else ():
            environ.pop(f"HTTP_{header}", None)
        fault = self._take(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        if fault.get("mode") == "slow":
            time.sleep(fault["seconds"])
        if fault.get("mode") == "after":
            list(self._application(environ, lambda *_: None))
        if fault.get("mode") in ("status", "after"):
            body = f"<Error><Code>{fault['code']}</Code><Message>as told</Message></Error>".encode()
            start_response(
                f"{fault['status']} told", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            )
            return [body]
        if fault.get("mode") == "drop":
            self._hang_up(environ)
            return []
        if fault.get("mode") == "cut":
            body = b"".join(self._application(environ, start_response))
            return self._half(environ, body)
        return self._application(environ, start_response)

    def _take(self, request: str) -> dict[str, Any]:
        for fault in self.faults:
            if fault["times"] > 0 and re.search(fault["match"], request):
                fault["times"] -= 1
                return fault
        return {}

    def _half(self, environ: dict[str, Any], body: bytes) -> Iterable[bytes]:
        yield body[: len(body) // 2]
        self._hang_up(environ)

    def _hang_up(self, environ: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

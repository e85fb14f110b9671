"""Test hubs as real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
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

"""What tests publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddct_format.hub import Pointer


@dataclass(frozen=True)
class Object:
    """A file with its digest and size."""

    path: Path
    sha256: str
    size: int

    def pointer(self, content: str = "c") -> Pointer:
        return Pointer(self.sha256, self.size, content * 64, "b" * 64, "a" * 64)


MakeObject = Callable[[bytes], Object]

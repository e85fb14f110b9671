"""The encoder's freedom: what to spend bits on. Nothing here is needed to read a file."""

from __future__ import annotations

__all__: list[str] = []

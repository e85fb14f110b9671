"""The .ddct container: bytes and JSON, without a notion of what the tensors mean."""

from __future__ import annotations

__all__: list[str] = []

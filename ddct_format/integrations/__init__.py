"""Archives in other libraries' objects: imported only on use."""

from __future__ import annotations

__all__: list[str] = []

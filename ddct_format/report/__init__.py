"""What people look at: what an archive holds and how close it comes, as numbers, pages and plots."""

from __future__ import annotations

__all__: list[str] = []

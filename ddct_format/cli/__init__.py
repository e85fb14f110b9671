"""The ``ddct`` command: one module per sub-command, imported when it is called."""

from __future__ import annotations

__all__: list[str] = []

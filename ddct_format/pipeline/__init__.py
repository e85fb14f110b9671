"""Whole models: pack, unpack and verify."""

from __future__ import annotations

__all__: list[str] = []

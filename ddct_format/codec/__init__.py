"""Codecs: what a layer's payload means (spec section 7), with the numpy arithmetic that is normative."""

from __future__ import annotations

__all__: list[str] = []

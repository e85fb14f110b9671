"""What the tests of reports know of their pair of models."""

from __future__ import annotations

__all__ = ["HOSTILE"]

HOSTILE = "<script>alert('&\"x\"')</script>.weight"
"""A legal name of a tensor that means something to a browser."""

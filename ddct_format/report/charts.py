"""Small drawings as SVG, for a page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import sqrt

from .archive_report import Distribution
from .stored_bytes import PARTS

__all__ = ["histogram", "part_class", "stacked_bar"]


def part_class(part: str) -> str:
    """The CSS class that gives a part of the file its colour."""
    return f"p{list(PARTS).index(part)}"


def stacked_bar(parts: Mapping[str, float]) -> str:
    """One bar, as wide as its container, with a rectangle per part, each with its name as a tooltip."""
    total = sum(parts.values()) or 1.0
    pieces = []
    start = 0.0
    for part, label in PARTS.items():
        width = 1000 * parts.get(part, 0.0) / total
        if width > 0:
            title = f"{label}: {width / 10:.1f} %"
            pieces.append(
                f'<rect class="{part_class(part)}" x="{start:.2f}" width="{width:.2f}" height="28">'
                f"<title>{escape(title)}</title></rect>"
            )
        start += width
    return (
        '<svg class="bar" viewBox="0 0 1000 28" preserveAspectRatio="none" role="img" aria-label="Bytes by part">'
        f"{''.join(pieces)}</svg>"
    )


def histogram(decoded: Distribution | None, original: Distribution | None, *, width: int, height: int) -> str:
    """Decoded changes as an area, original ones as a line, on a square-root scale; nothing if there are no counts."""
    shown = [d for d in (decoded, original) if d is not None and d.histogram]
    if not shown:
        return ""
    top = sqrt(max(max(d.histogram) for d in shown)) or 1.0
    area = "" if decoded is None else _outline(decoded.histogram, top, width, height)
    line = "" if original is None else _outline(original.histogram, top, width, height)
    drawn = f'<path class="decoded" d="M0 {height}{area}L{width} {height}Z"/>' if area else ""
    drawn += f'<path class="original" d="M{line[1:]}"/>' if line else ""
    return (
        f'<svg class="histogram" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="Histogram of changes">{drawn}</svg>'
    )


def _outline(counts: Sequence[float], top: float, width: int, height: int) -> str:
    """Steps from left to right, as the rest of a path."""
    step = width / len(counts)
    points = []
    for number, count in enumerate(counts):
        y = height - (height - 2) * sqrt(max(count, 0.0)) / top
        points.append(f"L{number * step:.1f} {y:.1f}L{(number + 1) * step:.1f} {y:.1f}")
    return "".join(points)

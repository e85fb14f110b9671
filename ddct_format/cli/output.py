"""What commands print: progress on stderr, results on stdout, and the same results as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from ..pipeline.progress import Progress

__all__ = ["format_bytes", "json_option", "print_json", "print_table", "show_progress"]

_LINE_EVERY_SECONDS = 5.0
_REDRAW_EVERY_SECONDS = 0.1
_RATE_AFTER_SECONDS = 1.0
"""A rate that was measured for less time says nothing about what is left."""

json_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
)


def show_progress(as_json: bool) -> Progress | None:
    """A progress display for stderr: one line redrawn on a terminal, a plain line now and then elsewhere.

    With the rate since the step began, and what is left of the step at that rate.
    """
    if as_json:
        return None
    terminal = sys.stderr.isatty()
    started: dict[str, float] = {}
    last_shown = 0.0

    def show(done: int, total: int, what: str) -> None:
        nonlocal last_shown
        now = time.monotonic()
        began = started.setdefault(what, now)
        if not terminal and now == began:
            last_shown = now
        finished = done >= total
        if not finished and now - last_shown < (_REDRAW_EVERY_SECONDS if terminal else _LINE_EVERY_SECONDS):
            return
        if finished and not terminal and now - began < _LINE_EVERY_SECONDS:
            return
        last_shown = now
        line = _progress_line(done, total, what, now - began)
        if terminal:
            click.echo(f"\r\x1b[K{line}" + ("\n" if finished else ""), nl=False, err=True)
        else:
            click.echo(line, err=True)

    return show


def _progress_line(done: int, total: int, what: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    line = f"{what}: {100 * done // max(total, 1)} % of {format_bytes(total)}"
    if seconds < _REDRAW_EVERY_SECONDS:  # a rate would be a guess
        return line
    line += f", {format_bytes(int(rate))}/s"
    if done >= total or seconds < _RATE_AFTER_SECONDS or not done:
        return line
    return f"{line}, {_duration((total - done) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on one line, in ASCII: names of files may be anything, and so may the terminal's encoding."""
    click.echo(json.dumps(value, allow_nan=False))


def print_table(rows: Mapping[str, object]) -> None:
    """Names and values in two aligned columns."""
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


def format_bytes(size: int) -> str:
    """A size in powers of 1000, as disks and hubs count."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"

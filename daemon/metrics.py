"""The daemon's state for Prometheus, in its text format: for node_exporter's textfile collector, or scraped."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .state import Stage

__all__ = ["render_metrics", "write_metrics"]


def render_metrics(status: dict[str, Any]) -> str:
    """``status``: what ``status.read_status`` returns. No names of checkpoints, which would be labels without end."""
    rows = status["checkpoints"]
    stages = Counter(row["stage"] for row in rows)
    published = [row for row in rows if row["stage"] == Stage.PUBLISHED]
    newest = max((row["updated_at"] for row in published), default=0.0)
    failing = max((row["attempts"] for row in rows if row["stage"] == Stage.FAILED), default=0)
    lines = [
        *_metric("ddct_daemon_up", "gauge", "1 if the daemon runs", int(status["daemon"]["running"])),
        *_metric("ddct_daemon_paused", "gauge", "1 if it was told to pause", int(status["daemon"].get("paused", 0))),
        "# HELP ddct_checkpoints Checkpoints by stage",
        "# TYPE ddct_checkpoints gauge",
        *(f'ddct_checkpoints{{stage="{stage}"}} {stages[stage]}' for stage in Stage),
        *_metric("ddct_failed_attempts", "gauge", "Most failures in a row of one checkpoint", failing),
        *_metric("ddct_last_published_seconds", "gauge", "When one was published last, seconds of the epoch", newest),
        *_metric(
            "ddct_original_bytes",
            "gauge",
            "Published checkpoints before packing",
            sum(row["original_size"] for row in published),
        ),
        *_metric(
            "ddct_published_bytes",
            "gauge",
            "Published checkpoints after packing",
            sum(row["size"] for row in published),
        ),
        *_metric("ddct_written_seconds", "gauge", "When this was written, seconds of the epoch", time.time()),
    ]
    return "\n".join(lines) + "\n"


def write_metrics(path: Path, status: dict[str, Any]) -> None:
    """Replace the file at once: its reader must never see half of it. OSError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(render_metrics(status))
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _metric(name: str, kind: str, text: str, value: float) -> tuple[str, str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"

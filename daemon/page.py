"""A status page on loopback, read-only: ``/``, ``/status.json`` and ``/metrics``. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import json
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ddct_format.errors import ConfigError

from .metrics import render_metrics

__all__ = ["StatusPage", "render_page"]

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 85em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .3em .6em; border-bottom: 1px solid #ddd; vertical-align: top }
td:first-child { white-space: nowrap }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.published { color: #186a3b } .failed { color: #a93226 } .skipped { color: #777 }
figure { margin: 1em 0; display: inline-block; width: 49% } figcaption { color: #555 }
svg { width: 100%; height: 6em }
"""


class StatusPage:
    """Serves from a thread of its own until ``close``.

    Args:
        port: on 127.0.0.1; 0 for any, see ``port`` afterwards.
        read: the status; called per request, from other threads.

    Raises:
        ConfigError: the port is taken or not allowed.
    """

    def __init__(self, port: int, read: Callable[[], dict[str, Any]]) -> None:
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(f"[status] port: {error.strerror}", place=f"127.0.0.1:{port}") from error
        self._server.read = read
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    read: Callable[[], dict[str, Any]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def do_GET(self) -> None:
        # A name that a stranger's DNS points to 127.0.0.1 must not read the page from a browser.
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost"):
            self._send(403, "text/plain", "only as 127.0.0.1 or localhost\n")
            return
        views: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
            "/": ("text/html", render_page),
            "/status.json": ("application/json", json.dumps),
            "/metrics": ("text/plain; version=0.0.4", render_metrics),
        }
        if self.path not in views:
            self._send(404, "text/plain", "there are /, /status.json and /metrics\n")
            return
        kind, render = views[self.path]
        try:
            text = render(self.server.read())
        except Exception as error:  # a reader must not end the daemon's thread without an answer
            self._send(500, "text/plain", f"{error}\n")
            return
        self._send(200, kind, text)

    def _send(self, status: int, kind: str, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind if "version" in kind or "json" in kind else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Reading the status is nothing to log."""


def render_page(status: dict[str, Any]) -> str:
    """The page as HTML; everything that comes from disks and hubs is escaped."""
    rows = sorted(status["checkpoints"], key=lambda row: row["updated_at"], reverse=True)
    daemon = status["daemon"]
    state = "paused" if daemon.get("paused") else "running" if daemon["running"] else "not running"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<title>ddct: {state}</title><style>{_STYLE}</style></head><body>
<h1>ddct daemon: {state}</h1>
<p>Publishes to {html.escape(str(status["hub"]))}. {len(rows)} checkpoints.</p>
{_charts([row for row in rows[::-1] if row["size"]][-60:])}
<table id="checkpoints"><thead><tr><th>checkpoint<th>state<th>before<th>after<th>error<th>next try<th>changed<th>why
</thead><tbody>
{"".join(_row(row) for row in rows)}</tbody></table></body></html>
"""


def _row(row: dict[str, Any]) -> str:
    error = "" if row["error"] is None else f"{row['error']:.4f}"
    retry = "" if row["retry_in"] is None else f"in {row['retry_in']:.0f} s"
    cells = (_size(row["original_size"]), _size(row["size"]), error, retry, _clock(row["updated_at"]))
    stage = html.escape(str(row["stage"]))
    return (
        f'<tr><td>{html.escape(row["name"])}<td class="{stage}">{stage}'
        + "".join(f'<td class="n">{cell}' for cell in cells)
        + f"<td>{html.escape(row['line'])}\n"
    )


def _charts(rows: Sequence[dict[str, Any]]) -> str:
    """Sizes before and after packing, oldest first, each on a scale of its own: one is a small part of the other."""
    if not rows:
        return ""
    return "".join(
        f"<figure>{_chart(rows, key, colour)}<figcaption>{caption}, from 0 to {_size(max(row[key] for row in rows))}"
        "</figcaption></figure>"
        for key, caption, colour in (
            ("original_size", "Size before packing", "#9aa7b8"),
            ("size", "Size after packing", "#3b6fd4"),
        )
    )


def _chart(rows: Sequence[dict[str, Any]], key: str, colour: str) -> str:
    # Not wider than a column of a full chart: a single bar is no wall.
    most, step = max(row[key] for row in rows) or 1, min(600 / len(rows), 30)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{90 - 80 * row[key] / most:.1f}" width="{step * 0.8:.1f}" '
        f'height="{80 * row[key] / most:.1f}" fill="{colour}"><title>{html.escape(row["name"])}: '
        f"{_size(row['original_size'])} to {_size(row['size'])}</title></rect>"
        for i, row in enumerate(rows)
    )
    return f'<svg viewBox="0 0 600 90" preserveAspectRatio="none" role="img" aria-label="{key}">{bars}</svg>'


def _size(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size else ""


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""

"""What reading one tensor of a remote archive costs: requests and bytes, against a server on loopback.

Usage: python benchmarks/remote.py [TENSORS]

Packs a synthetic model of TENSORS matrices of 256 × 256 (400 by default), serves the archive by ranges, lists it and
decodes one tensor.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ddct_format import open_archive, open_checkpoint, pack


class RangeServer(ThreadingHTTPServer):
    """Serves one file by ranges and counts requests and bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), RangeHandler)
        self.data = data
        self.requests = self.sent = 0


class RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        start, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        body = self.server.data[int(start) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(body) - 1}/{len(self.server.data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.requests += 1
        self.server.sent += len(body)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = np.random.default_rng(0)
        for model, noise in (("base", 0.0), ("tuned", 0.01)):
            (folder / model).mkdir()
            tensors = {
                f"layers.{i:05}.weight": (i + noise * random.normal(size=(256, 256))).astype("f4") for i in range(count)
            }
            save_file(tensors, folder / model / "model.safetensors")
        report = pack(folder / "base", folder / "tuned", folder / "tuned.ddct", preset="paper")
        server = RangeServer((folder / "tuned.ddct").read_bytes())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/tuned.ddct"
        with open_archive(url) as archive, open_checkpoint(folder / "base") as base:
            print(f"archive: {report.file_size:,} bytes, {len(archive.tensors)} tensors")
            print(f"listing: {server.requests} requests, {server.sent:,} bytes")
            server.requests = server.sent = 0
            name_read = f"layers.{count - 1:05}.weight"
            archive.decode(name_read, base)
            stored = archive.reader.stored_size(name_read)
            print(f"one tensor: {server.requests} requests, {server.sent:,} bytes; it is stored in {stored:,}")
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()

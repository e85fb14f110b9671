"""Archives behind a URL: how many requests, how many bytes, and which servers are refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ddct_format import errors, open_archive, open_checkpoint, pack
from ddct_format.container.remote import FIRST_READ, HttpSource


class _Server(ThreadingHTTPServer):
    """Serves one file by ranges and counts; ``fault`` makes it a bad server."""

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = data
        self.tag = '"1"'
        self.requests = 0
        self.sent = 0
        self.fault = ""
        self.whole_from = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.ddct"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no reason to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests += 1
        if server.fault == "no ranges":
            self.answer(200, server.data, {})
        elif server.fault == "missing":
            self.answer(404, b"", {})
        elif server.fault == "flaky" and server.requests % 2:
            self.answer(503, b"", {})
        else:
            self.answer_range()

    def answer_range(self) -> None:
        server = self.server
        start, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        begin, end = int(start), min(int(last) + 1, len(server.data))
        if server.fault == "shifted" and begin:
            begin += 1
        body = server.data[begin:end]
        headers = {"Content-Range": f"bytes {begin}-{end - 1}/{len(server.data)}", "ETag": server.tag}
        if server.fault == "longer" and begin:
            body += b"more"
        if server.fault == "broken" and begin and server.requests < server.whole_from:
            self.answer(206, body, headers, cut=True)
            return
        self.answer(206, body, headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.server.sent += len(body)  # before the client can have it, and ask for the sum
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, and tuned.ddct of 40 tensors, of which one is larger than the first read."""
    folder = tmp_path_factory.mktemp("remote")
    random = np.random.default_rng(0)
    base = {f"layers.{i:02}.weight": random.normal(size=(256, 256)).astype("f4") for i in range(40)}
    base["zz.weight"] = random.normal(size=(2048, 2048)).astype("f4")
    for name, noise in (("base", 0.0), ("tuned", 0.01)):
        (folder / name).mkdir()
        save_file(
            {key: (value + noise * random.normal(size=value.shape)).astype("f4") for key, value in base.items()},
            folder / name / "model.safetensors",
        )
    pack(folder / "base", folder / "tuned", folder / "tuned.ddct")
    return folder


@pytest.fixture
def server(models: Path) -> Iterator[_Server]:
    server = _Server((models / "tuned.ddct").read_bytes())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_listing_costs_one_request(server: _Server) -> None:
    with open_archive(server.url) as archive:
        assert len(archive.tensors) == 41
    assert server.requests == 1
    assert server.sent == FIRST_READ


def test_no_request_brings_more_than_memory_should_hold(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive may be larger than memory: it is read, whole or a tensor of it, in pieces."""
    assert HttpSource.read_size <= 64 << 20
    largest = 0
    request = HttpSource._request

    def measured(source: HttpSource, offset: int, length: int) -> bytes:
        nonlocal largest
        largest = max(largest, length)
        return request(source, offset, length)

    monkeypatch.setattr(HttpSource, "_request", measured)
    monkeypatch.setattr(HttpSource, "read_size", 64 << 10)
    with open_archive(server.url) as archive:
        assert archive.reader.stored_size("zz.weight") > 4 * archive.metadata.chunk_size
        largest = 0
        archive.reader.payload("zz.weight", 0)
        archive.reader.verify_chunks()
        archive.authenticate(hashlib.sha256(server.data).hexdigest())
        assert 0 < largest <= max(64 << 10, archive.metadata.chunk_size)


def test_one_tensor_costs_its_own_bytes_and_at_most_one_more_request(server: _Server, models: Path) -> None:
    with open_archive(server.url) as archive, open_checkpoint(models / "base") as base:
        server.requests = server.sent = 0
        far = archive.decode("zz.weight", base)
        assert server.requests == 1
        assert server.sent <= archive.reader.stored_size("zz.weight")
        with open_archive(models / "tuned.ddct") as local:
            assert np.array_equal(far, local.decode("zz.weight", base))


def test_metadata_beyond_the_first_read_cost_one_more_request(models: Path, server: _Server) -> None:
    source = HttpSource(server.url)
    assert source.read_at(FIRST_READ - 10, 20) == server.data[FIRST_READ - 10 : FIRST_READ + 10]
    assert server.requests == 2
    assert server.sent == FIRST_READ + 10


def test_an_archive_in_memory(models: Path) -> None:
    with open_archive((models / "tuned.ddct").read_bytes()) as archive:
        assert len(archive.tensors) == 41


def test_a_passing_failure_is_retried(server: _Server) -> None:
    server.fault = "flaky"
    with open_archive(server.url) as archive:
        assert len(archive.tensors) == 41


def test_an_answer_that_breaks_off_is_asked_for_again(server: _Server, models: Path) -> None:
    with open_archive(server.url) as archive, open_checkpoint(models / "base") as base:
        server.fault, server.requests, server.whole_from = "broken", 0, 3
        archive.decode("zz.weight", base)
        assert server.requests == 3
        server.whole_from = 99
        with pytest.raises(errors.HubError, match="broke"):
            archive.decode("zz.weight", base)
        assert server.requests == 6


@pytest.mark.parametrize(("fault", "reason"), [("no ranges", "by ranges"), ("missing", "no such file")])
def test_a_server_that_cannot_serve_ranges_is_refused(server: _Server, fault: str, reason: str) -> None:
    server.fault = fault
    with pytest.raises(errors.HubError, match=reason) as caught:
        open_archive(server.url)
    assert caught.value.place == server.url


@pytest.mark.parametrize("fault", ["shifted", "longer"])
def test_a_server_that_sends_something_else_is_refused(server: _Server, models: Path, fault: str) -> None:
    with open_archive(server.url) as archive, open_checkpoint(models / "base") as base:
        server.fault = fault
        with pytest.raises(errors.HubError):
            archive.decode("zz.weight", base)


def test_a_file_that_changes_between_requests_is_refused(server: _Server, models: Path) -> None:
    with open_archive(server.url) as archive, open_checkpoint(models / "base") as base:
        server.tag = '"2"'
        with pytest.raises(errors.HubError, match="changed"):
            archive.decode("zz.weight", base)


def test_nothing_listening_is_a_hub_error() -> None:
    with pytest.raises(errors.HubError, match="cannot be read"):
        HttpSource("http://127.0.0.1:9/model.ddct")


def test_a_short_file_is_no_archive(server: _Server) -> None:
    server.data = b"short"
    with pytest.raises(errors.InvalidError):
        open_archive(server.url)
    server.data = b"\x89DDCT"
    with pytest.raises(errors.TruncatedError):
        open_archive(server.url)


def test_a_malformed_hub_address_is_refused() -> None:
    with pytest.raises(errors.HubError, match="is written"):
        open_archive("hf://only-a-name")

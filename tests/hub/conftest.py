"""Objects to publish, and a small real model with its fine-tune."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_objects import MakeObject, Object
from hub_servers import MiniHub, S3Store
from safetensors.numpy import save_file

from ddct_format.hub import fetch


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts to fetch, in this process: how long they are is not what is tested."""
    monkeypatch.setattr(fetch, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def make_object(tmp_path: Path) -> MakeObject:
    """`(data) -> Object`: a file of these bytes, outside of any hub."""

    def make(data: bytes) -> Object:
        sha256 = hashlib.sha256(data).hexdigest()
        path = tmp_path / f"source-{sha256[:8]}"
        path.write_bytes(data)
        return Object(path, sha256, len(data))

    return make


@pytest.fixture
def model_pair(tmp_path: Path) -> tuple[Path, Path]:
    """(base, fine-tune): model directories with a few matrices; the fine-tune is base + small noise."""
    random = np.random.default_rng(7)
    base = {f"layer.{i}.weight": random.normal(0, 0.1, (64, 48)).astype(np.float32) for i in range(3)}
    base["norm.weight"] = np.ones(48, np.float32)
    tuned = {name: (value + random.normal(0, 1e-3, value.shape)).astype(np.float32) for name, value in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text('{"model_type": "test"}')
    return tmp_path / "base", tmp_path / "tuned"


def _serve(factory: pytest.TempPathFactory, *options: str) -> Iterator[MiniHub]:
    server = MiniHub(factory.mktemp("minihub") / "root", *options)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def hf_lfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniHub]:
    """A hub with large file storage, shared by all tests: each takes a repository of its own."""
    yield from _serve(tmp_path_factory)


@pytest.fixture(scope="session")
def hf_xet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniHub]:
    """One with Xet storage."""
    yield from _serve(tmp_path_factory, "--xet")


@pytest.fixture(scope="session")
def hf_weak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniHub]:
    """One that lacks requests, fields and conditions."""
    yield from _serve(tmp_path_factory, "--weak", "--no-races")


@pytest.fixture(scope="session")
def s3_store() -> Iterator[S3Store]:
    """An S3 store in this process, with the bucket ``bucket``, and faults on demand."""
    yield from _serve_s3(weak=False)


@pytest.fixture
def s3(s3_store: S3Store) -> str:
    """The URL of that store, which has no faults."""
    s3_store.faults.clear()
    return s3_store.url


@pytest.fixture(scope="session")
def s3_weak() -> Iterator[str]:
    """The URL of one that knows neither conditions nor ranges."""
    for store in _serve_s3(weak=True):
        yield store.url


@pytest.fixture(scope="session")
def s3rver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of npm's s3rver, whose answers are not moto's: it ignores conditions and lists no unfinished uploads."""
    boto3 = pytest.importorskip("boto3")
    local = Path(__file__).parents[2] / "build/s3rver/node_modules/.bin/s3rver"
    program = shutil.which("s3rver") or (local if local.exists() else None)
    if program is None:
        pytest.skip("s3rver is not installed: npm install --prefix build/s3rver s3rver")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = tmp_path_factory.mktemp("s3rver")
    server = subprocess.Popen(
        [program, "--directory", root, "--port", str(port), "--address", "127.0.0.1", "--configure-bucket", "bucket"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with _credentials():
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        for _ in range(100):
            with contextlib.suppress(Exception):
                client.list_objects_v2(Bucket="bucket")
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


def _serve_s3(*, weak: bool) -> Iterator[S3Store]:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    store = S3Store(moto.DomainDispatcherApplication(moto.create_backend_app), weak=weak)
    server = make_server("127.0.0.1", 0, store, threaded=True)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with _credentials():
        boto3.client("s3", endpoint_url=store.url).create_bucket(Bucket="bucket")
        yield store
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def _credentials() -> Iterator[None]:
    """s3rver knows only these; moto takes any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "S3RVER")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "S3RVER")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield

"""Objects to publish, and a small real model with its fine-tune."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_objects import MakeObject, Object
from hub_servers import MiniHub
from safetensors.numpy import save_file


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
def s3() -> Iterator[str]:
    """An S3 store in this process, with the bucket ``bucket``; its URL."""
    yield from _serve_s3(weak=False)


@pytest.fixture(scope="session")
def s3_weak() -> Iterator[str]:
    """One that knows neither conditions nor ranges."""
    yield from _serve_s3(weak=True)


def _serve_s3(*, weak: bool) -> Iterator[str]:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    store = moto.DomainDispatcherApplication(moto.create_backend_app)

    def application(environ: dict[str, object], start_response: object) -> object:
        for header in ("IF_MATCH", "IF_NONE_MATCH", "RANGE") if weak else ():
            environ.pop(f"HTTP_{header}", None)
        return store(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        url = f"http://127.0.0.1:{server.server_port}"
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="bucket")
        yield url
    server.shutdown()
    thread.join()
    server.server_close()

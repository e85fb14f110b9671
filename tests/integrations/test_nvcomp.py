"""Decompressing on the GPU: only what somebody vouches for, only where nvCOMP is, and to the same bytes."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from container import forge
from pipeline.models import base_model, fine_tune, write_model

import ddct_format
from ddct_format.container.zstd_frame import compress, decompress
from ddct_format.errors import ConfigError, CorruptError
from ddct_format.integrations.nvcomp import DeviceInflater, read_chunks
from ddct_format.native import core
from ddct_format.native import inflate as native_inflate
from ddct_format.pipeline.archive import Archive

HAS_NVCOMP = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.libnvcomp") is not None
CHUNK = 4096

needs_native = pytest.mark.skipif(
    core is None or native_inflate._zstd() is None, reason="no native core, or no libzstd.so.1"
)
needs_nvcomp = pytest.mark.skipif(
    not (torch.cuda.is_available() and HAS_NVCOMP), reason="no CUDA device, or no nvCOMP (ddct[nvcomp])"
)


def payloads() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    return {
        "compressible": random.integers(0, 3, 5 * CHUNK + 17, dtype=np.uint8).tobytes(),
        "mixed": random.bytes(2 * CHUNK) + bytes(3 * CHUNK) + random.bytes(CHUNK) + b"x" * 100,
        "random": random.bytes(3 * CHUNK + 1),
        "short": b"y" * 300,
    }


def written(path: Path) -> Path:
    raw = payloads()
    chunks = [compress(data[at : at + CHUNK]) for data in raw.values() for at in range(0, len(data), CHUNK)]
    path.write_bytes(forge.archive(forge.document(*(forge.replaced(name, data) for name, data in raw.items())), chunks))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with ddct_format.open_archive(written(tmp_path / "model.ddct")) as opened:
        yield opened


def wanted() -> tuple[list[tuple[str, int, int]], int]:
    """A place for each payload, with gaps between them, in another order than that of the file; and bytes in all."""
    places, position = [], 64
    for name, data in reversed(payloads().items()):
        places.append((name, 0, position))
        position += len(data) + 64
    return places, position


@needs_native
def test_chunks_lie_in_memory_as_they_are_stored_and_say_where_they_belong(archive: Archive) -> None:
    places, size = wanted()
    staged, result = np.zeros(size, dtype=np.uint8), bytearray(size)
    chunks = read_chunks(archive.reader, places, staged, 2)
    assert chunks is not None
    for at, stored, into, raw in chunks.T.tolist():
        result[into : into + raw] = decompress(staged[at : at + stored].tobytes(), raw)
    for name, _, place in places:
        assert result[place : place + len(payloads()[name])] == payloads()[name]


@needs_native
def test_a_damaged_chunk_is_not_given_to_anybody(tmp_path: Path) -> None:
    path = written(tmp_path / "model.ddct")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    places, size = wanted()
    with ddct_format.open_archive(path) as opened:
        assert read_chunks(opened.reader, places, np.zeros(size, dtype=np.uint8), 1) is None


@needs_native
@pytest.mark.parametrize(
    "stored",
    [
        forge.frame(forge.rle_block(7, CHUNK), content_size=CHUNK - 1),
        forge.frame(forge.rle_block(7, CHUNK), content_size=None, window_byte=0x10),
        forge.frame(forge.rle_block(7, CHUNK), content_size=CHUNK) + b"\0",
        forge.frame(forge.rle_block(7, CHUNK, last=False), content_size=CHUNK),
        forge.frame(forge.rle_block(7, CHUNK), content_size=CHUNK, dictionary=5),
        b"\0" * 40,
    ],
    ids=["other size", "no size", "bytes after it", "no end", "dictionary", "no frame"],
)
def test_a_frame_that_is_not_plainly_right_is_not_given_to_anybody(tmp_path: Path, stored: bytes) -> None:
    path = tmp_path / "model.ddct"
    path.write_bytes(forge.archive(forge.document(forge.replaced("a", b"\7" * CHUNK)), [stored]))
    with ddct_format.open_archive(path) as opened:
        assert read_chunks(opened.reader, [("a", 0, 0)], np.zeros(CHUNK, dtype=np.uint8), 1) is None


def test_only_the_very_file_is_authentic(archive: Archive) -> None:
    with pytest.raises(CorruptError, match="SHA-256"):
        archive.authenticate("0" * 64)
    assert not archive.is_authentic
    archive.authenticate(hashlib.sha256(Path(archive.place).read_bytes()).hexdigest().upper())
    assert archive.is_authentic


def test_a_file_of_uncertain_origin_is_refused(archive: Archive) -> None:
    for given in (archive, archive.place):
        with pytest.raises(ConfigError, match="authenticate"):
            ddct_format.apply({}, given, decompress="gpu")


@pytest.mark.skipif(HAS_NVCOMP, reason="nvCOMP is installed")
def test_without_nvcomp_it_is_said_what_to_install(archive: Archive) -> None:
    archive.authenticate(hashlib.sha256(Path(archive.place).read_bytes()).hexdigest())
    with pytest.raises(ConfigError, match=r"ddct\[nvcomp\]"):
        ddct_format.apply({}, archive, decompress="gpu")


def authentic(path: Path) -> Archive:
    opened = ddct_format.open_archive(path)
    opened.authenticate(hashlib.sha256(path.read_bytes()).hexdigest())
    return opened


@pytest.mark.gpu
@needs_nvcomp
@needs_native
def test_the_device_decompresses_to_the_same_bytes(archive: Archive) -> None:
    archive.authenticate(hashlib.sha256(Path(archive.place).read_bytes()).hexdigest())
    places, size = wanted()
    result = torch.full((size,), 0xA5, dtype=torch.uint8, device="cuda")
    assert DeviceInflater(archive).inflate(places, torch.empty(size, dtype=torch.uint8, pin_memory=True), result, 2)
    expected = bytearray(b"\xa5" * size)
    for name, _, place in places:
        expected[place : place + len(payloads()[name])] = payloads()[name]
    assert result.cpu().numpy().tobytes() == expected


@pytest.mark.gpu
@needs_nvcomp
@pytest.mark.parametrize("preset", ["balanced", "paper"])
@pytest.mark.parametrize("in_place", [True, False])
def test_applying_gives_the_same_model(tmp_path: Path, preset: str, in_place: bool) -> None:
    base = base_model()
    base["large.weight"] = (torch.randn(700, 1024) * 0.05).bfloat16()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", fine_tune(base))
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", tmp_path / "model.ddct", preset=preset)
    model, other = ({name: tensor.cuda() for name, tensor in base.items()} for _ in range(2))
    with authentic(tmp_path / "model.ddct") as opened:
        ours = ddct_format.apply(model, opened, decompress="gpu", into=None if in_place else True)
    theirs = ddct_format.apply(other, tmp_path / "model.ddct")
    for name, tensor in theirs.tensors.items():
        assert torch.equal(ours.tensors[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name
    ours.revert()
    assert all(torch.equal(model[name].cpu(), base[name]) for name in base)


@pytest.mark.gpu
@needs_nvcomp
def test_damage_since_then_is_found_and_named_as_ever(tmp_path: Path) -> None:
    base = base_model() | {"zz.weight": (torch.randn(700, 1024) * 0.05).bfloat16()}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", fine_tune(base))
    path = tmp_path / "model.ddct"
    ddct_format.pack(tmp_path / "base", tmp_path / "tuned", path)
    model = {name: tensor.cuda() for name, tensor in base.items()}
    with authentic(path) as opened:
        with path.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
        with pytest.raises(CorruptError, match=r"zz\.weight.*checksum"):
            ddct_format.apply(model, opened, decompress="gpu")
    assert all(torch.equal(model[name].cpu(), base[name]) for name in base)

"""Many chunks at once: the same bytes as chunk by chunk, and nothing that the careful path would refuse."""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.container.reader import ArchiveReader
from ddct_format.container.source import BytesSource
from ddct_format.container.zstd_frame import compress, decompress
from ddct_format.native import core
from ddct_format.native import inflate as module
from ddct_format.native.inflate import inflate

CHUNK = 4096

pytestmark = pytest.mark.skipif(core is None or module._zstd() is None, reason="no native core, or no libzstd.so.1")


def laid_out(pieces: list[bytes], start: int = 64) -> tuple[bytes, list[int], list[int]]:
    offsets = [start]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return b"".join(pieces), offsets, [google_crc32c.value(piece) for piece in pieces]


@given(st.binary(max_size=300))
def test_both_checksums_are_crc32c(data: bytes) -> None:
    assert core is not None
    assert core.crc32c(data, True) == core.crc32c(data, False) == google_crc32c.value(data)


@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK, 5 * CHUNK + 17])
def test_chunks_come_back(size: int) -> None:
    raw = bytes(np.random.default_rng(size).integers(0, 3, size, dtype=np.uint8))
    raw = raw[:CHUNK] + os.urandom(len(raw[CHUNK : 2 * CHUNK])) + raw[2 * CHUNK :]  # one that is stored as it is
    stored = laid_out([compress(raw[at : at + CHUNK]) for at in range(0, size, CHUNK)])
    out = bytearray(size)
    assert inflate(*stored, CHUNK, out)
    assert out == raw


@pytest.mark.parametrize(
    "piece",
    [
        zstandard.compress(b"a" * CHUNK) + b"\x50\x2a\x4d\x18\x00\x00\x00\x00",  # a skippable frame follows
        zstandard.compress(b"a" * CHUNK) * 2,
        zstandard.compress(b"a" * (CHUNK - 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"a" * CHUNK),
        zstandard.compress(b"a" * CHUNK)[:-1],
        b"\x00" * 40,
    ],
    ids=["skippable", "two frames", "too short", "no content size", "cut", "no frame"],
)
def test_what_is_not_plainly_right_is_left_to_the_careful_path(piece: bytes) -> None:
    out = bytearray(CHUNK)
    assert not inflate(*laid_out([piece]), CHUNK, out)


def test_a_wrong_checksum_is_refused() -> None:
    stored, offsets, checksums = laid_out([compress(b"a" * CHUNK)])
    assert not inflate(stored, offsets, [checksums[0] ^ 1], CHUNK, bytearray(CHUNK))


@given(st.data())
def test_nothing_is_taken_that_the_careful_path_refuses(data: st.DataObject) -> None:
    frame = bytearray(zstandard.compress(bytes(data.draw(st.binary(min_size=30, max_size=200))) * 5))
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    size = max(data.draw(st.sampled_from([150, 500, 1000])), len(frame) + 1)
    declared = bytearray(size)
    if inflate(*laid_out([bytes(frame)]), CHUNK, declared):
        assert decompress(bytes(frame), size) == declared


def test_sizes_that_disagree_are_a_mistake_of_the_caller() -> None:
    stored, offsets, checksums = laid_out([b"a" * 10])
    with pytest.raises(ValueError, match="do not agree"):
        inflate(stored, offsets, checksums, CHUNK, bytearray(CHUNK + 1))
    with pytest.raises(ValueError, match="do not agree"):
        inflate(stored + b"b", offsets, checksums, CHUNK, bytearray(10))


def test_the_reader_reads_the_same_either_way() -> None:
    for path in sorted((Path(__file__).parents[2] / "spec/vectors/good").rglob("*.ddct"))[:20]:
        with ArchiveReader.open(BytesSource(path.read_bytes())) as reader:
            for tensor in reader.metadata.tensors:
                for layer in range(len(tensor.layers)):
                    out = bytearray(tensor.layers[layer].size)
                    reader.payload_into(tensor.name, layer, out, inflate)
                    assert out == reader.payload(tensor.name, layer)
                    reader.payload_into(tensor.name, layer, out)
                    assert out == reader.payload(tensor.name, layer)

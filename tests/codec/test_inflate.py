"""Many chunks at once: the same bytes as chunk by chunk, and nothing that the careful path would refuse."""

from __future__ import annotations

import os
from array import array
from contextlib import closing
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.codec.dctq import DctqParams, PayloadSplits, StoredPayload, split_payload
from ddct_format.container.reader import ArchiveReader
from ddct_format.container.source import BytesSource, FileSource
from ddct_format.container.zstd_frame import compress, decompress
from ddct_format.errors import CorruptError
from ddct_format.native import core
from ddct_format.native import inflate as module
from ddct_format.native.inflate import inflate, inflate_payloads, read_stored

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


def all_payloads(reader: ArchiveReader) -> list[tuple[str, int, int]]:
    """Tensor, layer and a place for each payload, with gaps between them."""
    wanted, place = [], 3
    for tensor in reader.metadata.tensors:
        for layer in range(len(tensor.layers)):
            wanted.append((tensor.name, layer, place))
            place += tensor.layers[layer].size + 5
    return wanted


@pytest.mark.parametrize("threads", [1, 3])
def test_payloads_come_together_as_they_come_alone(threads: int) -> None:
    for path in sorted((Path(__file__).parents[2] / "spec/vectors/good").rglob("*.ddct"))[:20]:
        with ArchiveReader.open(FileSource(path)) as reader:
            wanted = all_payloads(reader)
            out = bytearray(sum(reader.tensors[name].layers[layer].size + 5 for name, layer, _ in wanted) + 3)
            reader.payloads_into(wanted, out, inflate_payloads, threads)
            for name, layer, place in wanted:
                expected = reader.payload(name, layer)
                assert out[place : place + len(expected)] == expected


def test_of_many_payloads_the_damaged_one_is_named(tmp_path: Path) -> None:
    data = bytearray((Path(__file__).parents[2] / "spec/vectors/good/chunks-compressed.ddct").read_bytes())
    data[-1] ^= 1
    path = tmp_path / "damaged.ddct"
    path.write_bytes(data)
    with ArchiveReader.open(FileSource(path)) as reader:
        wanted = all_payloads(reader)
        with pytest.raises(CorruptError) as caught:
            reader.payloads_into(wanted, bytearray(1 << 20), inflate_payloads, 2)
    assert caught.value.tensor == wanted[-1][0]


def test_payloads_that_do_not_fit_are_a_mistake_of_the_caller(tmp_path: Path) -> None:
    stored, offsets, checksums = laid_out([b"a" * 10], 0)
    (tmp_path / "file").write_bytes(stored)
    with closing(FileSource(tmp_path / "file")) as source:
        table = array("Q", offsets), array("I", checksums)
        out = bytearray(12)
        assert inflate_payloads(source.descriptor, *table, [(0, 2, 10)], CHUNK, out, 1) == b"\1"
        assert out == b"\0\0" + stored
        for wrong in ((0, 3, 10), (1, 0, 10), (0, 0, CHUNK + 1), (0, 2**64 - 1, 10)):
            for read in (inflate_payloads, read_stored):
                with pytest.raises(ValueError, match="do not agree"):
                    read(source.descriptor, *table, [wrong], CHUNK, out, 1)
        assert inflate_payloads(source.descriptor, *table, [(0, 0, 11)], CHUNK, out, 1) == b"\0"  # ends too early


def test_payloads_are_split_as_they_come(tmp_path: Path) -> None:
    for path in sorted((Path(__file__).parents[2] / "spec/vectors/good").rglob("dctq-*.ddct"))[:20]:
        with ArchiveReader.open(FileSource(path)) as reader:
            wanted = [item for item in all_payloads(reader) if item[1] == 0]
            records = [reader.tensors[name] for name, _, _ in wanted]
            params = [DctqParams.parse(record.layers[0].params, record.elements) for record in records]
            places = [
                (place, place + record.layers[0].size) for record, (_, _, place) in zip(records, wanted, strict=True)
            ]
            splits = PayloadSplits(params, places)
            out = np.empty(1 << 20, dtype=np.uint8)
            reader.payloads_into(wanted, out, partial(inflate_payloads, splits=splits.buffers), 2)
            assert splits.buffers[-1] == b"\1" * len(wanted)
            for own, (name, _, _), found in zip(params, wanted, splits.results(out), strict=True):
                assert isinstance(found, StoredPayload)
                alone = split_payload(own, np.frombuffer(reader.payload(name, 0), dtype=np.uint8))
                assert (found.sections, found.codes) == (alone.sections, alone.codes)

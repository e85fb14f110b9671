"""Opening and reading archives: spec sections 4, 6 and 9."""

from __future__ import annotations

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ddct_format.container.reader import ArchiveReader
from ddct_format.container.records import TensorRecord
from ddct_format.container.source import BytesSource, FileSource
from ddct_format.container.zstd_frame import compress
from ddct_format.errors import (
    ArchiveError,
    BudgetError,
    CorruptError,
    DdctError,
    InvalidError,
    StorageError,
    TruncatedError,
    UnsupportedError,
)

from . import forge

FIRST = bytes(range(256)) * 40
SECOND = b"second tensor " * 700
RESIDUAL = b"\x00\x01" * 3000
README = b"# A model\n" * 10


def chunks_of(data: bytes, *, plain: bool = False) -> list[bytes]:
    pieces = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    return pieces if plain else [compress(piece) for piece in pieces]


def sample(**changes: Any) -> bytes:
    """Two tensors (the first with two layers), a side file, an empty tensor; ten chunks."""
    metadata = forge.document(
        forge.replaced("a", FIRST, RESIDUAL),
        forge.replaced("b", SECOND),
        forge.replaced("empty", b""),
        files=[forge.file("README.md", README)],
    )
    chunks = [*chunks_of(README), *chunks_of(FIRST), *chunks_of(SECOND, plain=True), *chunks_of(RESIDUAL)]
    return forge.archive(metadata, chunks, **changes)


class CountingSource(BytesSource):
    """Remembers which bytes were read, and whether it was closed."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []
        self.closed = False

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return super().read_at(offset, length)

    def close(self) -> None:
        self.closed = True


def opened(data: bytes, **arguments: Any) -> ArchiveReader:
    return ArchiveReader.open(BytesSource(data, "sample.ddct"), **arguments)


def refusal(data: bytes, **arguments: Any) -> DdctError:
    with pytest.raises(DdctError) as caught:
        opened(data, **arguments)
    assert caught.value.place == "sample.ddct"
    return caught.value


def test_a_hand_built_archive_is_read() -> None:
    with opened(sample()) as reader:
        assert list(reader.tensors) == ["a", "b", "empty"]
        assert reader.payload("a", 0) == FIRST
        assert reader.payload("a", 1) == RESIDUAL
        assert reader.payload("b", 0) == SECOND
        assert reader.payload("empty", 0) == b""
        assert reader.file("README.md") == README
        assert reader.file_size == len(sample())
        assert reader.verify_chunks() == 9
        stored = sum(map(len, chunks_of(FIRST) + chunks_of(RESIDUAL)))
        assert reader.stored_size("a") == stored
        assert reader.stored_size("empty") == 0


def test_an_archive_without_tensors_is_read() -> None:
    with opened(forge.archive(forge.document())) as reader:
        assert reader.verify_chunks() == 0
        assert reader.tensors == {}


def test_compressed_metadata_are_read_and_keep_the_content_id() -> None:
    plain = sample()
    raw_size = struct.unpack_from("<I", plain, 44)[0]
    raw = plain[64 : 64 + raw_size]
    chunks = [*chunks_of(README), *chunks_of(FIRST), *chunks_of(SECOND), *chunks_of(RESIDUAL)]
    packed = forge.archive(raw, chunks, stored_metadata=compress(raw))
    assert len(packed) < len(plain)
    with opened(plain) as first, opened(packed) as second:
        assert first.content_id == second.content_id
        assert second.payload("b", 0) == SECOND


def test_reading_one_tensor_reads_its_chunks_alone() -> None:
    data = sample()
    source = CountingSource(data)
    with ArchiveReader.open(source) as reader:
        metadata_and_table = reader.preamble.chunks_offset
        assert source.reads == [(0, 64), (64, metadata_and_table - 64)]
        source.reads.clear()
        reader.payload("b", 0)
        before = metadata_and_table + sum(map(len, chunks_of(README) + chunks_of(FIRST)))
        assert source.reads == [(before, len(SECOND))]
        source.reads.clear()
        assert reader.payload_range("b", 0, 4095, 4097) == SECOND[4095:4097]
        assert source.reads == [(before, 8192)]
        source.reads.clear()
        assert reader.payload_range("b", 0, 4096, 8192) == SECOND[4096:8192]
        assert source.reads == [(before + 4096, 4096)]
        source.reads.clear()
        assert reader.payload_range("b", 0, 100, 100) == b""
        assert source.reads == []
    assert source.closed


def test_every_range_of_a_payload_is_the_slice_of_it() -> None:
    cuts = [0, 1, 4095, 4096, 4097, 8192, 10239, 10240]
    with opened(sample()) as reader:
        for start in cuts:
            for stop in cuts:
                if start <= stop:
                    assert reader.payload_range("a", 0, start, stop) == FIRST[start:stop]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, len(FIRST) + 1)])
def test_a_range_outside_of_a_payload_is_an_error_of_the_caller(start: int, stop: int) -> None:
    with opened(sample()) as reader, pytest.raises(ValueError, match="not in a payload"):
        reader.payload_range("a", 0, start, stop)


def test_unknown_names_are_key_errors() -> None:
    with opened(sample()) as reader:
        for name in ("c", ""):
            with pytest.raises(KeyError):
                reader.tensor(name)
            with pytest.raises(KeyError):
                reader.file(name)
        with pytest.raises(IndexError):
            reader.payload("b", 1)


def test_large_payloads_are_read_in_several_pieces(tmp_path: Path) -> None:
    payload = os.urandom(1 << 20) * 10
    pieces = [payload[start : start + 65536] for start in range(0, len(payload), 65536)]
    metadata = forge.document(forge.replaced("t", payload), chunk_size=65536)
    data = forge.archive(metadata, pieces)
    source = CountingSource(data)
    with ArchiveReader.open(source) as reader:
        source.reads.clear()
        assert reader.payload("t", 0) == payload
        assert len(source.reads) == 3
        assert sum(length for _, length in source.reads) == len(payload)


def test_threads_may_read_one_archive_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sample.ddct"
    path.write_bytes(sample())
    wanted = [("a", 0, FIRST), ("a", 1, RESIDUAL), ("b", 0, SECOND)] * 30
    with ArchiveReader.open(FileSource(path)) as reader, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda item: reader.payload(item[0], item[1]), wanted))
    assert found == [payload for _, _, payload in wanted]


def test_progress_is_told_chunk_by_chunk() -> None:
    told: list[tuple[int, int]] = []
    with opened(sample()) as reader:
        reader.verify_chunks(lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]


# Damage.


def test_no_byte_can_change_without_an_error() -> None:
    """Every byte of a small archive, with a bit flipped and with all of them flipped."""
    payload = b"0123456789" * 500
    metadata = forge.document(forge.replaced("t", payload), files=[forge.file("f", b"side file")])
    raw = json.dumps(metadata).encode()
    data = forge.archive(raw, [b"side file", *chunks_of(payload)], stored_metadata=compress(raw))
    with opened(data) as reader:
        assert reader.verify_chunks() == 3
    for position in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            with pytest.raises(ArchiveError), opened(bytes(damaged)) as reader:
                reader.verify_chunks()


def test_no_tail_can_be_cut_without_an_error() -> None:
    data = sample()
    for size in range(0, len(data), 7):
        assert type(refusal(data[:size])) is TruncatedError


def test_damage_behind_the_preamble_is_corrupt_whatever_it_hits() -> None:
    data = sample()
    with opened(data) as reader:
        regions = [64, reader.preamble.table_offset - 1, reader.preamble.table_offset]
    for position in regions:
        damaged = bytearray(data)
        damaged[position] ^= 0x20
        assert type(refusal(bytes(damaged))) is CorruptError


def test_a_damaged_chunk_is_corrupt_and_spares_the_others() -> None:
    damaged = bytearray(sample())
    damaged[-1] ^= 1
    with opened(bytes(damaged)) as reader:
        assert reader.payload("b", 0) == SECOND
        assert reader.payload("a", 0) == FIRST
        with pytest.raises(CorruptError) as caught:
            reader.payload("a", 1)
        assert str(caught.value) == "sample.ddct: tensor 'a': the checksum of chunk 8 does not match"
        with pytest.raises(CorruptError):
            reader.verify_chunks()


def test_a_wrong_metadata_checksum_is_corrupt() -> None:
    error = refusal(sample(metadata_crc32c=0, table_crc32c=0))
    assert (type(error), error.reason) == (CorruptError, "the metadata's checksum does not match")


def test_a_wrong_table_checksum_is_corrupt() -> None:
    error = refusal(sample(table_crc32c=0))
    assert (type(error), error.reason) == (CorruptError, "the chunk table's checksum does not match")


def test_a_wrong_chunk_checksum_is_corrupt() -> None:
    metadata = forge.document(forge.replaced("t", b"abc"))
    with opened(forge.archive(metadata, [b"abc"], table=[(3, 0)])) as reader, pytest.raises(CorruptError):
        reader.payload("t", 0)


def test_a_file_that_shrinks_while_it_is_open_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "sample.ddct"
    path.write_bytes(sample())
    with ArchiveReader.open(FileSource(path)) as reader:
        os.truncate(path, len(sample()) - 1)
        with pytest.raises(TruncatedError):
            reader.payload("a", 1)


# Metadata as stored.


def test_a_metadata_frame_that_breaks_section_4_is_invalid() -> None:
    raw = json.dumps(forge.document(generator="x" * 200)).encode()
    valid = compress(raw)
    other = compress(raw + b" ")
    for stored in (valid + b"\0", other, valid[:6], b"\0" * 20):
        error = refusal(forge.archive(raw, stored_metadata=stored))
        assert type(error) is InvalidError
        assert error.reason.startswith("metadata: ")
    assert type(refusal(forge.archive(raw, stored_metadata=valid[:-1]))) is CorruptError


def test_a_metadata_bomb_is_invalid() -> None:
    bomb = forge.frame(forge.rle_block(0x20, 1 << 17), content_size=1 << 31)
    data = forge.archive(b" ", stored_metadata=bomb, metadata_raw_size=100)
    assert type(refusal(data)) is InvalidError


# The chunk table.


def one_tensor(payload: bytes, chunks: list[bytes], **changes: Any) -> bytes:
    return forge.archive(forge.document(forge.replaced("t", payload)), chunks, **changes)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_table_of_the_wrong_length_is_invalid(count: int) -> None:
    error = refusal(one_tensor(b"x" * 5000, [b"y"] * count))
    assert (type(error), error.reason) == (InvalidError, f"the chunk table has {count} entries, not 2")


def test_an_empty_payload_has_no_chunk() -> None:
    assert type(refusal(one_tensor(b"", [b"y"]))) is InvalidError
    with opened(one_tensor(b"", [])) as reader:
        assert reader.payload("t", 0) == b""


def test_a_stored_size_of_0_is_invalid() -> None:
    assert type(refusal(one_tensor(b"x" * 5000, [b"y" * 100, b""]))) is InvalidError


def test_a_stored_size_above_the_chunk_size_is_invalid() -> None:
    assert type(refusal(one_tensor(b"x" * 8192, [b"y" * 4097, b"y" * 10]))) is InvalidError


def test_a_stored_size_above_the_last_chunks_raw_size_is_invalid() -> None:
    assert type(refusal(one_tensor(b"x" * 5000, [b"y" * 4096, b"y" * 905]))) is InvalidError
    with opened(one_tensor(b"x" * 5000, [b"x" * 4096, b"x" * 904])) as reader:
        assert reader.payload("t", 0) == b"x" * 5000


@pytest.mark.parametrize("change", [-1, 1])
def test_stored_sizes_that_do_not_add_up_to_the_file_are_invalid(change: int) -> None:
    chunk = b"y" * 100
    error = refusal(one_tensor(b"x" * 4000, [chunk], table=[(100 + change, forge.crc32c(chunk))]))
    assert type(error) is InvalidError
    assert "chunks end at" in error.reason


def test_a_payload_of_2_to_the_48_bytes_is_refused_without_allocating_for_it() -> None:
    tensor = forge.replaced("t", b"", layers=[forge.layer(b"", size=1 << 48)])
    error = refusal(forge.archive(forge.document(tensor), [b"y"]))
    assert (type(error), error.reason) == (
        InvalidError,
        f"the chunk table has 1 entries, not {(1 << 48) // 4096}",
    )


# Frames in chunks.


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (compress(b"x" * 4096) * 2, InvalidError),
        (compress(b"x" * 4096) + b"\0", InvalidError),
        (bytes.fromhex("502A4D18 00000000"), InvalidError),
        (compress(b"x" * 4095), InvalidError),
        (compress(b"x" * 4096)[:-1], CorruptError),
        (forge.frame(forge.rle_block(0, 4096), content_size=1 << 31), InvalidError),
        (forge.frame(forge.rle_block(0, 4096), content_size=4096, dictionary=1), InvalidError),
        (forge.frame(forge.rle_block(0, 4096), content_size=4096, window_byte=14 << 3), InvalidError),
        (forge.frame(forge.rle_block(0, 4096), content_size=None, window_byte=0), InvalidError),
    ],
)
def test_a_chunk_that_breaks_section_4_is_refused_when_it_is_read(stored: bytes, expected: type[DdctError]) -> None:
    with opened(one_tensor(b"x" * 4096, [stored])) as reader:
        for read in (lambda: reader.payload("t", 0), reader.verify_chunks):
            with pytest.raises(ArchiveError) as caught:
                read()
            assert type(caught.value) is expected
            assert (caught.value.place, caught.value.tensor) == ("sample.ddct", "t")
            assert caught.value.reason.startswith("chunk 0: ")


def test_a_wrong_checksum_comes_before_a_wrong_frame() -> None:
    data = one_tensor(b"x" * 4096, [b"no frame"], table=[(8, 0)])
    with opened(data) as reader, pytest.raises(CorruptError, match="checksum"):
        reader.payload("t", 0)


def test_a_side_file_whose_digest_differs_is_corrupt() -> None:
    files = [forge.file("f", b"abc", digest="0" * 64)]
    with opened(forge.archive(forge.document(files=files), [b"abc"])) as reader:
        for read in (lambda: reader.file("f"), reader.verify_chunks):
            with pytest.raises(CorruptError, match="digest of the side file 'f'"):
                read()


# Order, codecs, budget.


def test_codecs_are_checked_tensor_by_tensor_before_the_table() -> None:
    seen: list[tuple[str, int]] = []
    with opened(sample(), check_layer=lambda record, index: not seen.append((record.name, index))):
        assert seen == [("a", 0), ("a", 1), ("b", 0), ("empty", 0)]

    def refuse(record: TensorRecord, index: int) -> None:
        if record.name == "b":
            raise UnsupportedError("unknown codec")

    error = refusal(sample(table=b""), check_layer=refuse)
    assert (type(error), error.tensor) == (UnsupportedError, "b")
    assert type(refusal(sample(table=b""))) is InvalidError


def test_metadata_are_checked_before_codecs_and_after_checksums() -> None:
    def refuse(record: TensorRecord, index: int) -> None:
        raise UnsupportedError("unknown codec")

    broken = forge.document(forge.replaced("t", b"abc", shard=3))
    assert type(refusal(forge.archive(broken, [b"abc"]), check_layer=refuse)) is InvalidError
    assert type(refusal(forge.archive(broken, [b"abc"], table_crc32c=1), check_layer=refuse)) is CorruptError


def test_a_budget_bounds_what_opening_allocates() -> None:
    data = sample()
    raw_size, table_size = struct.unpack_from("<I", data, 44)[0], 9 * 8
    needed = 64 + 2 * raw_size + table_size
    assert type(refusal(data, budget=needed - 1)) is BudgetError
    with opened(data, budget=needed):
        pass


def test_a_budget_bounds_each_payload() -> None:
    payload = bytes(1 << 20)
    metadata = forge.document(forge.replaced("t", payload), files=[forge.file("f", payload)])
    data = forge.archive(metadata, chunks_of(payload) * 2)
    with opened(data, budget=60_000) as reader:
        assert reader.payload_range("t", 0, 100_000, 130_000) == bytes(30_000)
        with pytest.raises(BudgetError):
            reader.payload("t", 0)
        with pytest.raises(BudgetError):
            reader.file("f")
        assert reader.verify_chunks() == 512


def test_a_refused_source_is_closed() -> None:
    source = CountingSource(b"not an archive")
    with pytest.raises(InvalidError):
        ArchiveReader.open(source)
    assert source.closed


# Files.


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (10, 1), (5, 6), (99, 1)])
def test_a_source_gives_exactly_what_is_asked_for(tmp_path: Path, offset: int, length: int) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    file = FileSource(tmp_path / "file")
    for source in (file, BytesSource(b"0123456789")):
        assert source.size == 10
        assert source.read_at(3, 4) == b"3456"
        assert source.read_at(10, 0) == b""
        with pytest.raises(TruncatedError):
            source.read_at(offset, length)
    file.close()
    file.close()


def test_a_missing_file_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        FileSource(tmp_path / "missing.ddct")
    assert caught.value.place == str(tmp_path / "missing.ddct")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(StorageError, match="regular file"):
            FileSource(path)


def test_a_closed_reader_releases_its_file(tmp_path: Path) -> None:
    path = tmp_path / "sample.ddct"
    path.write_bytes(sample())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with ArchiveReader.open(FileSource(path)) as reader:
            reader.close()
        path.with_name("bad.ddct").write_bytes(sample()[:-1])
        with pytest.raises(TruncatedError):
            ArchiveReader.open(FileSource(path.with_name("bad.ddct")))
    assert len(list(Path("/proc/self/fd").iterdir())) == before

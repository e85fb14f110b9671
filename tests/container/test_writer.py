"""Writing archives: spec sections 2 to 6, and what is left behind when that fails."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.container.metadata import serialise_metadata
from ddct_format.container.payload import store_payload
from ddct_format.container.publish import publish_file
from ddct_format.container.reader import ArchiveReader
from ddct_format.container.records import FileRecord, Layer, Metadata, ShardRecord, TensorRecord, target_ids
from ddct_format.container.source import FileSource
from ddct_format.container.writer import ArchiveWriter
from ddct_format.errors import InvalidError, OutputExistsError, StorageError

from .strategies import metadata

A = "a" * 64


def tensor(name: str, *payloads: bytes) -> TensorRecord:
    layers = tuple(Layer("raw.v1", {"planes": 1}, len(payload), A) for payload in payloads)
    return TensorRecord(name, "U8", (1,), 0, "replace", layers=layers)


def describe(*tensors: TensorRecord, files: tuple[FileRecord, ...] = (), chunk_size: int = 65536) -> Metadata:
    ids = target_ids(tensors)
    shards = (ShardRecord("model.safetensors"),)
    return Metadata("test", chunk_size, A, {}, ids, A, shards, files, tensors)


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def content(size: int, seed: int) -> bytes:
    """Half noise and half not, so that some chunks are frames and some are not."""
    noise = np.random.default_rng(seed).integers(0, 256, size // 2, dtype=np.uint8).tobytes()
    return noise + bytes(size - len(noise))


@settings(deadline=None, max_examples=60)
@given(described=metadata(), seed=st.integers(0, 99), cut=st.integers(0, 9000))
def test_what_is_written_is_read_back(
    described: Metadata, seed: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("archive") / "model.ddct"
    payloads: dict[tuple[str, int], bytes] = {}
    with ArchiveWriter(path, chunk_size=described.chunk_size) as writer:
        files = tuple(writer.add_file(file.path, content(file.size, seed)) for file in described.files)
        for record in described.tensors:
            for index, layer in enumerate(record.layers):
                data = content(layer.size, seed + index)
                payloads[record.name, index] = data
                writer.append(index, writer.compress_payload([data[:cut], data[cut:]]))
        described = replace(described, files=files)
        sealed = writer.seal(described)
    assert left_in(path.parent) == ["model.ddct"]
    assert sealed.content_id == hashlib.sha256(serialise_metadata(described)).hexdigest()
    assert sealed.file_size == path.stat().st_size
    assert sealed.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with ArchiveReader.open(FileSource(path)) as reader:
        assert reader.metadata == described
        assert reader.content_id == sealed.content_id
        reader.verify_chunks()
        for (name, index), data in payloads.items():
            assert reader.payload(name, index) == data
            start = min(cut, len(data))
            assert reader.payload_range(name, index, start, len(data)) == data[start:]
        for file in files:
            assert reader.file(file.path) == content(file.size, seed)


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(6)), sizes=st.lists(st.integers(0, 9000), min_size=6, max_size=6))
def test_tensors_come_in_their_places_whenever_they_are_appended(
    order: list[int], sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    payloads = [content(size, seed) for seed, size in enumerate(sizes)]
    records = [tensor(f"t{number}", payload) for number, payload in enumerate(payloads)]
    files = []
    for places in (order, range(6)):
        path = tmp_path_factory.mktemp("archive") / "model.ddct"
        with ArchiveWriter(path, chunk_size=4096) as writer:
            for place in places:
                writer.append(0, writer.compress_payload([payloads[place]]), place=10 * place)
            sealed = writer.seal(describe(*records, chunk_size=4096))
        files.append(path.read_bytes())
        assert sealed.file_sha256 == hashlib.sha256(files[-1]).hexdigest()
        with ArchiveReader.open(FileSource(path)) as reader:
            assert [reader.payload(record.name, 0) for record in records] == payloads
    assert files[0] == files[1]


def test_all_first_layers_come_before_all_second_layers(tmp_path: Path) -> None:
    path = tmp_path / "model.ddct"
    with ArchiveWriter(path, chunk_size=4096) as writer:
        for index in (0, 1, 0, 1):
            writer.append(index, writer.compress_payload([os.urandom(5000)]))
        sizes = (bytes(5000), bytes(5000))
        writer.seal(describe(tensor("a", *sizes), tensor("b", *sizes), chunk_size=4096))
    with ArchiveReader.open(FileSource(path)) as reader:
        whole = path.read_bytes()
        order = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
        assert whole.endswith(b"".join(reader.payload(name, index) for name, index in order))


def test_a_section_that_ends_inside_a_chunk_changes_no_byte_of_the_payload(tmp_path: Path) -> None:
    sections: list[Any] = [bytes(range(8)) * 2000, b"\x07" * 70_000, np.arange(9000, dtype=np.uint16)]
    stored = store_payload(sections, 65536)
    data = b"".join(bytes(section) for section in sections)
    assert stored.raw_size == len(data)
    assert len(stored.chunks) == len(stored.checksums) == 2
    path = tmp_path / "model.ddct"
    with ArchiveWriter(path) as writer:
        writer.append(0, writer.compress_payload(sections))
        writer.seal(describe(tensor("t", data)))
    with ArchiveReader.open(FileSource(path)) as reader:
        assert reader.payload("t", 0) == data
        assert reader.stored_size("t") == stored.stored_size


def test_a_payload_that_is_large_waits_in_a_file_and_gives_the_same_archive(tmp_path: Path) -> None:
    data = content(9_000_000, 1)
    sections = [data[:5_000_001], b"", data[5_000_001:]]
    written = []
    for name, limit in (("memory", len(data)), ("file", len(data) - 1)):
        with ArchiveWriter(tmp_path / name, spill_above=limit) as writer:
            payload = writer.compress_payload(sections)
            assert payload.stored_size == sum(map(len, payload.chunks)) and payload.raw_size == len(data)
            writer.append(0, payload)
            writer.seal(describe(tensor("t", data)))
        written.append((tmp_path / name).read_bytes())
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"memory", name})
    assert written[0] == written[1]
    with ArchiveReader.open(FileSource(tmp_path / "file")) as reader:
        assert reader.payload("t", 0) == data


def test_the_same_input_gives_the_same_file(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        path = tmp_path / name
        with ArchiveWriter(path) as writer:
            writer.append(0, writer.compress_payload([content(100_000, 1)]))
            writer.seal(describe(tensor("t", bytes(100_000))))
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_the_file_is_checked_before_it_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.ddct"

    def check(complete: Path) -> None:
        assert not path.exists()
        with ArchiveReader.open(FileSource(complete)) as reader:
            assert reader.payload("t", 0) == b"abc"

    with ArchiveWriter(path) as writer:
        writer.append(0, writer.compress_payload([b"abc"]))
        writer.seal(describe(tensor("t", b"abc")), check)
    assert left_in(tmp_path) == ["model.ddct"]


def test_a_check_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def check(complete: Path) -> None:
        raise InvalidError("no")

    with pytest.raises(InvalidError), ArchiveWriter(tmp_path / "model.ddct") as writer:
        writer.seal(describe(), check)
    assert left_in(tmp_path) == []


def test_a_new_archive_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "model.ddct") as writer:
        writer.seal(describe())
    (tmp_path / "other").touch()
    assert (tmp_path / "model.ddct").stat().st_mode == (tmp_path / "other").stat().st_mode


# What is refused.


def test_an_existing_output_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "model.ddct"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        ArchiveWriter(path)
    assert path.read_bytes() == b"precious"


def test_a_dangling_link_is_an_existing_output(tmp_path: Path) -> None:
    (tmp_path / "model.ddct").symlink_to("nowhere")
    with pytest.raises(OutputExistsError):
        ArchiveWriter(tmp_path / "model.ddct")


def test_an_output_that_appears_meanwhile_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "model.ddct"
    with ArchiveWriter(path) as writer:
        writer.append(0, writer.compress_payload([b"abc"]))
        path.write_bytes(b"precious")
        with pytest.raises(OutputExistsError):
            writer.seal(describe(tensor("t", b"abc")))
    assert path.read_bytes() == b"precious"
    assert left_in(tmp_path) == ["model.ddct"]


def test_of_many_writers_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "model.ddct"
    writers = [ArchiveWriter(path) for _ in range(8)]
    ready = threading.Barrier(len(writers))
    outcomes: list[str] = []

    def seal(writer: ArchiveWriter) -> None:
        with writer:
            ready.wait()
            try:
                writer.seal(describe())
                outcomes.append("won")
            except OutputExistsError:
                outcomes.append("lost")

    threads = [threading.Thread(target=seal, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert left_in(tmp_path) == ["model.ddct"]


def test_a_file_system_without_hard_links_still_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "model.ddct"
    with ArchiveWriter(path) as writer:
        writer.seal(describe())
    sealed = path.read_bytes()
    temporary = tmp_path / "temporary"
    temporary.write_bytes(b"other")
    with pytest.raises(OutputExistsError):
        publish_file(temporary, path)
    assert path.read_bytes() == sealed
    assert left_in(tmp_path) == ["model.ddct", "temporary"]


def test_a_missing_directory_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        ArchiveWriter(tmp_path / "missing" / "model.ddct")


@pytest.mark.parametrize("chunk_size", [0, 2048, 5000, 32 << 20])
def test_a_chunk_size_that_readers_refuse_is_an_error_of_the_caller(tmp_path: Path, chunk_size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ArchiveWriter(tmp_path / "model.ddct", chunk_size=chunk_size)


def test_metadata_that_do_not_describe_the_payloads_are_refused(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "model.ddct") as writer:
        file = writer.add_file("config.json", b"{}")
        writer.append(0, writer.compress_payload([b"abc"]))
        writer.append(1, writer.compress_payload([b"de"]))
        right = describe(tensor("t", b"abc", b"de"), files=(file,))
        for wrong in (
            describe(tensor("t", b"abc", b"de")),
            describe(tensor("t", b"abc"), files=(file,)),
            describe(tensor("t", b"abc", b"d"), files=(file,)),
            describe(tensor("t", b"abc", b"de"), tensor("u", b""), files=(file,)),
            describe(tensor("t", b"abc", b"de"), files=(replace(file, digest=A),)),
            replace(right, chunk_size=4096),
            replace(right, target_ids=(A, A)),
            replace(right, generator="x" * 257),
            replace(right, generator="\ud800"),
        ):
            with pytest.raises(InvalidError) as caught:
                writer.seal(wrong)
            assert caught.value.place == str(tmp_path / "model.ddct")
            assert left_in(tmp_path) == []
        writer.seal(right)
    assert left_in(tmp_path) == ["model.ddct"]


def test_payloads_of_another_chunk_size_are_refused(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "model.ddct") as writer:
        writer.append(0, store_payload([bytes(10_000)], 4096))
        with pytest.raises(InvalidError):
            writer.seal(describe(tensor("t", bytes(10_000))))
    assert left_in(tmp_path) == []


def test_errors_of_the_caller_are_value_errors(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path / "model.ddct")
    payload = writer.compress_payload([b"abc"])
    for index in (-1, 4):
        with pytest.raises(ValueError, match="layer"):
            writer.append(index, payload)
    writer.add_file("b", b"")
    for path in ("a", "b"):
        with pytest.raises(ValueError, match="ascending"):
            writer.add_file(path, b"")
    writer.close()
    writer.close()
    for call in (lambda: writer.append(0, payload), lambda: writer.seal(describe()), lambda: writer.add_file("c", b"")):
        with pytest.raises(ValueError, match="closed"):
            call()


# What is left behind.


def test_an_error_of_the_caller_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ArchiveWriter(tmp_path / "model.ddct") as writer:
        writer.add_file("f", b"abc")
        writer.append(0, writer.compress_payload([b"abc"]))
        raise KeyboardInterrupt
    assert left_in(tmp_path) == []


WRITE_WITH_A_LIMIT = """
import os, resource, sys
from ddct_format.container.records import Layer, Metadata, ShardRecord, TensorRecord, target_ids
from ddct_format.container.writer import ArchiveWriter
from ddct_format.errors import StorageError
path, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
layers = tuple(Layer("raw.v1", {"planes": 1}, 100_000, "a" * 64) for _ in range(2))
tensor = TensorRecord("t", "U8", (100_000,), 0, "replace", layers=layers)
stage = "append"
try:
    with ArchiveWriter(path) as writer:
        for index in range(2):
            writer.append(index, writer.compress_payload([os.urandom(100_000)]))
        stage = "seal"
        ids = target_ids([tensor])
        shards = (ShardRecord("model.safetensors"),)
        writer.seal(Metadata("test", 65536, "a" * 64, {}, ids, ids[1], shards, (), (tensor,)))
        stage = "done"
except StorageError as error:
    print(stage, error.place == path)
else:
    print(stage)
"""


@pytest.mark.parametrize(("limit", "stage"), [(50_000, "append"), (150_000, "seal"), (250_000, "done")])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path, limit: int, stage: str) -> None:
    """A limit on the size of files stands for the disk: real writes fail, in spools and in the archive."""
    path = tmp_path / "model.ddct"
    command = [sys.executable, "-c", WRITE_WITH_A_LIMIT, str(path), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    if stage == "done":
        assert result.stdout == "done\n"
        assert left_in(tmp_path) == ["model.ddct"]
    else:
        assert result.stdout == f"{stage} True\n"
        assert left_in(tmp_path) == []


KILLED = """
import os, sys, time
from ddct_format.container.writer import ArchiveWriter
writer = ArchiveWriter(sys.argv[1])
writer.append(0, writer.compress_payload([os.urandom(1_000_000)]))
writer.append(1, writer.compress_payload([os.urandom(1_000_000)]))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_writer_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Spools have no names, so that not even a kill can leave them behind."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model.ddct")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=30) != 0
    assert left_in(tmp_path) == []


def test_an_unwritable_directory_is_a_storage_error(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    with ArchiveWriter(directory / "model.ddct") as writer:
        directory.rmdir()
        with pytest.raises(StorageError):
            writer.append(0, writer.compress_payload([b"abc"]))
        with pytest.raises(StorageError):
            writer.seal(describe())

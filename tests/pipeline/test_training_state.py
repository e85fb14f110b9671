"""Optimizer state and other pickles: left out unless asked for, on both sides; then byte for byte, and never loaded."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddct_format import open_archive, pack, unpack, verify
from ddct_format.checkpoint import open_checkpoint
from ddct_format.container.writer import ArchiveWriter
from ddct_format.errors import CheckpointError

STATE = {
    "global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt": 300_000,
    "optimizer.pt": 5 << 20,
    "optimizer_0/.metadata": 100,
    "optimizer_0/__0_0.distcp": 70_000,
    "rng_state_0.pth": 1,
    "scheduler.pt": 0,
}


@pytest.fixture
def resumable(tuned: Path) -> Path:
    """The fine-tune with training state, of which no file is a pickle that could be loaded."""
    for path, size in STATE.items():
        (tuned / path).parent.mkdir(exist_ok=True)
        (tuned / path).write_bytes(os.urandom(size))
    return tuned


def test_training_state_is_carried_and_restored_only_when_both_ask_for_it(
    base: Path, resumable: Path, tmp_path: Path
) -> None:
    without = pack(base, resumable, tmp_path / "without.ddct")
    assert set(without.skipped) == set(STATE)
    report = pack(base, resumable, tmp_path / "with.ddct", training_state=True)
    assert report.skipped == {}
    assert report.side_files == without.side_files + sum(STATE.values())
    assert report.target_id == without.target_id
    assert verify(tmp_path / "with.ddct", base).decoded

    plain = unpack(tmp_path / "with.ddct", base, tmp_path / "plain")
    assert plain.left_out == tuple(STATE)
    assert not any((tmp_path / "plain" / path).exists() for path in STATE)
    full = unpack(tmp_path / "with.ddct", base, tmp_path / "full", training_state=True)
    assert full.left_out == ()
    for path in STATE:
        assert (tmp_path / "full" / path).read_bytes() == (resumable / path).read_bytes()


def test_a_plain_archive_says_nothing_of_training_state(archive: Path, base: Path, tmp_path: Path) -> None:
    assert unpack(archive, base, tmp_path / "out", training_state=True).left_out == ()


def test_state_that_grows_while_it_is_read_is_refused(base: Path, resumable: Path, tmp_path: Path) -> None:
    with open_checkpoint(resumable, training_state=True) as model, ArchiveWriter(tmp_path / "out.ddct") as writer:
        model.side_files()

        def pieces() -> Iterator[bytes]:
            for piece in model.side_file_pieces("optimizer.pt"):
                with (resumable / "optimizer.pt").open("ab") as file:
                    file.write(b"x")
                yield piece

        with pytest.raises(CheckpointError, match="changed while it was being read"):
            writer.add_file_pieces("optimizer.pt", pieces())
    assert not (tmp_path / "out.ddct").exists()


def test_pieces_of_any_size_give_the_same_archive_in_bounded_memory(tmp_path: Path) -> None:
    size, content = 200 << 20, bytes(range(256)) * 4096

    def pieces(step: int) -> Iterator[bytes]:
        for start in range(0, len(content), step):
            yield content[start : start + step]

    records = []
    for step in (1000, 65536, 65537, len(content)):
        with ArchiveWriter(tmp_path / "out.ddct") as writer:
            records.append((writer.add_file_pieces("a", pieces(step)), writer.side_files_size))
    assert len(set(records)) == 1

    tracemalloc.start()
    try:
        with ArchiveWriter(tmp_path / "out.ddct") as writer:
            assert writer.add_file_pieces("a", (bytes(4 << 20) for _ in range(size >> 22))).size == size
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_side_files_are_read_chunk_by_chunk(base: Path, resumable: Path, tmp_path: Path) -> None:
    pack(base, resumable, tmp_path / "with.ddct", training_state=True)
    with open_archive(tmp_path / "with.ddct") as opened:
        pieces = list(opened.reader.file_pieces("optimizer.pt"))
        assert max(map(len, pieces)) <= opened.metadata.chunk_size
        assert b"".join(pieces) == opened.reader.file("optimizer.pt")

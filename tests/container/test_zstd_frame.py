"""Spec section 4: stored bytes."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ddct_format.container.zstd_frame import Effort, compress, decompress
from ddct_format.errors import ArchiveError, CorruptError, InvalidError

from . import forge

SKIPPABLE = bytes.fromhex("502A4D18 04000000") + b"skip"
TEXT = b"to be or not to be, that is the question. " * 40
SIZE = len(TEXT)


def refusal(stored: bytes, raw_size: int) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        decompress(stored, raw_size)
    return caught.value


def coefficients(count: int, alphabet: bytes = b"\x00\x01\x02\x03\xff", seed: int = 1) -> bytes:
    return bytes(random.Random(seed).choices(alphabet, k=count))


@settings(deadline=None)
@given(
    data=st.binary(max_size=3000) | st.integers(0, 70_000).map(lambda size: TEXT[: size % 99] * (size // 99)),
    boundaries=st.lists(st.integers(-5, 80_000), max_size=5),
    effort=st.sampled_from(["entropy", "default", "max"]),
)
def test_what_is_compressed_is_decompressed(data: bytes, boundaries: list[int], effort: Effort) -> None:
    stored = compress(data, boundaries, effort)
    assert len(stored) <= len(data)
    if data:
        assert decompress(stored, len(data)) == data


def test_bytes_that_do_not_shrink_are_stored_as_they_are() -> None:
    data = os.urandom(5000)
    assert compress(data) == data
    assert decompress(data, 5000) == data


def test_a_frame_states_its_size_and_has_no_checksum() -> None:
    for boundaries in ([], [10_000, 20_000]):
        header = zstandard.get_frame_parameters(compress(coefficients(65536), boundaries))
        assert (header.content_size, header.has_checksum, header.dict_id) == (65536, False, 0)


def test_bit_packed_coefficients_come_close_to_their_entropy() -> None:
    data = coefficients(65536)
    plain = min(len(zstandard.ZstdCompressor(level=level).compress(data)) for level in (1, 3))
    # log2(5) bits each; the match finder costs the plain levels a sixth.
    assert len(compress(data)) < 1.04 * 65536 * 2.3220 / 8 < 0.9 * plain


def test_ending_a_block_where_statistics_change_pays() -> None:
    sections = [coefficients(20_000, b"\x00\x01", 1), coefficients(20_000, bytes(range(64)), 2)]
    data = b"".join(sections)
    assert len(compress(data, [20_000])) < len(compress(data)) - 50


def test_a_boundary_that_does_not_pay_is_not_used() -> None:
    data = coefficients(4000)
    assert len(compress(data, list(range(100, 4000, 100)))) == len(compress(data))


def test_a_high_effort_is_never_larger() -> None:
    data = b"".join(f"layer {index * index % 1000} of {index}; ".encode() for index in range(3000))
    assert len(compress(data, effort="max")) < len(compress(data))


@pytest.mark.parametrize("effort", ["default", "max"])
def test_the_window_of_a_large_input_is_one_that_readers_accept(effort: Effort) -> None:
    data = TEXT * ((12 << 20) // SIZE)
    assert decompress(compress(data, effort=effort), len(data)) == data


def test_numpy_arrays_are_compressed_as_their_bytes() -> None:
    array = np.zeros((100, 100), dtype=np.float32)
    assert decompress(compress(array), array.nbytes) == array.tobytes()
    assert compress(np.empty((0, 3), dtype=np.float32)) == b""


def test_threads_do_not_share_a_context() -> None:
    inputs = [coefficients(30_000, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda data: decompress(compress(data), len(data)), inputs)) == inputs


def test_stored_bytes_of_no_size_or_above_the_raw_size_are_invalid() -> None:
    assert type(refusal(b"", 10)) is InvalidError
    assert type(refusal(b"", 0)) is InvalidError
    assert type(refusal(b"abc", 2)) is InvalidError


def test_hand_built_frames_are_read() -> None:
    """The forgeries below are refused for their breach alone."""
    assert decompress(forge.frame(forge.rle_block(7, SIZE), content_size=SIZE), SIZE) == b"\x07" * SIZE
    windowed = forge.frame(forge.rle_block(7, SIZE), content_size=SIZE, window_byte=13 << 3)
    assert decompress(windowed, SIZE) == b"\x07" * SIZE
    two = forge.frame(forge.block(b"ab", last=False), forge.rle_block(7, 98), content_size=100)
    assert decompress(two, 100) == b"ab" + b"\x07" * 98
    with_checksum = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    assert decompress(with_checksum, SIZE) == TEXT


def test_bytes_that_are_no_frame_are_invalid() -> None:
    assert type(refusal(b"\0" * 20, SIZE)) is InvalidError
    assert type(refusal(forge.ZSTD_MAGIC, SIZE)) is InvalidError


def test_a_frame_that_states_no_content_size_is_invalid() -> None:
    stored = forge.frame(forge.rle_block(7, SIZE), content_size=None, window_byte=0)
    assert "content size" in refusal(stored, SIZE).reason
    assert type(refusal(stored, SIZE)) is InvalidError


@pytest.mark.parametrize("stated", [0, SIZE - 1, SIZE + 1, 2**32 - 1])
def test_a_frame_that_states_another_content_size_is_invalid(stated: int) -> None:
    assert type(refusal(forge.frame(forge.rle_block(7, SIZE), content_size=stated), SIZE)) is InvalidError


def test_a_window_above_8_mib_is_invalid() -> None:
    for window_byte, allowed in ((13 << 3, True), (13 << 3 | 1, False), (14 << 3, False), (31 << 3, False)):
        stored = forge.frame(forge.rle_block(7, SIZE), content_size=SIZE, window_byte=window_byte)
        if allowed:
            assert decompress(stored, SIZE) == b"\x07" * SIZE
        else:
            assert type(refusal(stored, SIZE)) is InvalidError


def test_a_single_segment_above_8_mib_is_read() -> None:
    size = 16 << 20
    blocks = [forge.rle_block(7, 1 << 17, last=index == 127) for index in range(128)]
    assert decompress(forge.frame(*blocks, content_size=size), size) == b"\x07" * size


def test_a_dictionary_is_invalid() -> None:
    stored = forge.frame(forge.rle_block(7, SIZE), content_size=SIZE, dictionary=77)
    assert "dictionary" in refusal(stored, SIZE).reason
    assert type(refusal(stored, SIZE)) is InvalidError


def test_the_reserved_bit_of_the_header_is_invalid() -> None:
    stored = forge.frame(forge.rle_block(7, SIZE), content_size=SIZE, reserved_bit=True)
    assert type(refusal(stored, SIZE)) is InvalidError


def test_a_skippable_frame_is_invalid() -> None:
    valid = compress(TEXT)
    assert type(refusal(SKIPPABLE, SIZE)) is InvalidError
    assert type(refusal(SKIPPABLE + valid, SIZE)) is InvalidError
    assert type(refusal(valid + SKIPPABLE, SIZE)) is InvalidError


def test_a_second_frame_is_invalid() -> None:
    first = forge.frame(forge.rle_block(7, SIZE), content_size=SIZE)
    assert "follow" in refusal(first + first, SIZE).reason
    assert type(refusal(first + first, SIZE)) is InvalidError
    halves = forge.frame(forge.rle_block(7, SIZE // 2), content_size=SIZE // 2)
    assert type(refusal(halves + halves, SIZE)) is InvalidError


@pytest.mark.parametrize("tail", [b"\0", b"trailing"])
def test_trailing_bytes_are_invalid(tail: bytes) -> None:
    assert type(refusal(compress(TEXT) + tail, SIZE)) is InvalidError


def test_trailing_bytes_behind_a_checksum_are_invalid() -> None:
    with_checksum = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    assert type(refusal(with_checksum + b"\0", SIZE)) is InvalidError
    assert type(refusal(with_checksum[:-1], SIZE)) is CorruptError


def test_a_truncated_frame_is_corrupt_wherever_its_header_is_whole() -> None:
    stored = compress(TEXT)
    whole_header = zstandard.frame_header_size(stored)
    for size in range(1, len(stored)):
        expected = CorruptError if size >= whole_header else InvalidError
        assert type(refusal(stored[:size], SIZE)) is expected


def test_a_reserved_block_type_is_corrupt() -> None:
    reserved = (SIZE << 3 | 6 | 1).to_bytes(3, "little")
    assert type(refusal(forge.frame(reserved, content_size=SIZE), SIZE)) is CorruptError
    # Its length has no meaning, so that nothing can be said to follow it.
    short = (2 << 3 | 6 | 1).to_bytes(3, "little")
    assert type(refusal(forge.frame(short, bytes(30), content_size=SIZE), SIZE)) is CorruptError


@pytest.mark.parametrize("held", [SIZE - 1, SIZE + 1])
def test_a_frame_that_holds_another_size_than_it_states_is_corrupt(held: int) -> None:
    assert type(refusal(forge.frame(forge.rle_block(7, held), content_size=SIZE), SIZE)) is CorruptError


def test_a_decompression_bomb_is_refused_before_memory_is_allocated() -> None:
    """8 KiB of frame claim 256 MiB; the reader expects 64 KiB, in a process that may not allocate much."""
    blocks = [forge.rle_block(0, 1 << 17, last=index == 2047) for index in range(2048)]
    bomb = forge.frame(*blocks, content_size=256 << 20)
    program = f"""
import resource, sys
from ddct_format.container.zstd_frame import decompress
from ddct_format.errors import InvalidError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decompress(bytes.fromhex({bomb.hex()!r}), 65536)
except InvalidError:
    sys.exit(0 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10 else 3)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(1, 300))
def test_no_bytes_behind_the_magic_crash_the_reader(body: bytes, raw_size: int) -> None:
    stored = forge.ZSTD_MAGIC + body
    with contextlib.suppress(ArchiveError):
        assert len(decompress(stored, raw_size)) == raw_size

"""Spec section 3, and section 9, steps 1 to 4."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.container.preamble import Preamble, build_preamble, parse_preamble
from ddct_format.errors import ArchiveError, CorruptError, InvalidError, TruncatedError, UnsupportedError

from . import forge

VALID = forge.archive(forge.document())


def parse(data: bytes) -> Preamble:
    return parse_preamble(data[:64], len(data))


def refusal(data: bytes) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        parse(data)
    return caught.value


u32 = st.integers(0, 2**32 - 1)


@given(
    stored=st.integers(1, 64 << 20),
    more=st.integers(0, 1000),
    crcs=st.tuples(u32, u32),
    entries=st.integers(0, 1 << 25),
    chunk_bytes=st.integers(0, 2**50),
    minor=st.integers(0, 65535),
    compatible=st.integers(0, 2**64 - 1),
)
def test_what_is_built_is_read_back(
    stored: int, more: int, crcs: tuple[int, int], entries: int, chunk_bytes: int, minor: int, compatible: int
) -> None:
    file_size = 64 + stored + 8 * entries + chunk_bytes
    raw = min(stored + more, 64 << 20)
    preamble = Preamble(file_size, stored, raw, crcs[0], 8 * entries, crcs[1], minor, compatible)
    assert parse_preamble(build_preamble(preamble), file_size) == preamble


def test_the_layout_is_that_of_the_table() -> None:
    built = build_preamble(Preamble(0x0102030405060708, 1, 2, 3, 8, 5))
    assert built[:60].hex(" ", 4) == (
        "89444443 540d0a1a 01000000 40000000 00000000 00000000 00000000 00000000 "
        "08070605 04030201 01000000 02000000 03000000 08000000 05000000"
    )


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63])
def test_a_file_shorter_than_the_preamble_is_truncated(size: int) -> None:
    assert isinstance(refusal(VALID[:size]), TruncatedError)


def test_a_short_file_with_another_magic_is_invalid() -> None:
    assert type(refusal(b"PK\x03\x04")) is InvalidError


def test_a_bad_magic_is_invalid() -> None:
    error = refusal(forge.archive(forge.document(), magic=b"\x93NUMPY\x01\x00"))
    assert type(error) is InvalidError
    assert error.reason == "not a ddct file"


@pytest.mark.parametrize("change", [(b"\r\n", b"\n"), (b"\r\n", b"\r\r\n")])
def test_damage_by_a_transfer_in_text_mode_is_named(change: tuple[bytes, bytes]) -> None:
    error = refusal(VALID.replace(*change))
    assert type(error) is InvalidError
    assert "text mode" in error.reason


def test_damage_by_a_7_bit_transfer_is_named() -> None:
    error = refusal(bytes(byte & 0x7F for byte in VALID))
    assert type(error) is InvalidError
    assert "7-bit" in error.reason


def test_a_wrong_preamble_checksum_is_corrupt() -> None:
    assert type(refusal(forge.archive(forge.document(), preamble_crc32c=0))) is CorruptError


def test_another_major_is_unsupported() -> None:
    assert type(refusal(forge.archive(forge.document(), major=2))) is UnsupportedError


def test_an_unknown_incompatible_feature_is_unsupported_and_named() -> None:
    error = refusal(forge.archive(forge.document(), incompatible=1 << 3 | 1 << 63))
    assert type(error) is UnsupportedError
    assert "bit 3, 63" in error.reason


def test_compatible_features_and_minor_are_ignored() -> None:
    preamble = parse(forge.archive(forge.document(), compatible=5, minor=7))
    assert (preamble.compatible_features, preamble.minor) == (5, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"preamble_size": 63},
        {"preamble_size": 128},
        {"metadata_stored_size": 0},
        {"metadata_stored_size": (64 << 20) + 1, "metadata_raw_size": (64 << 20) + 1, "file_size": 1 << 40},
        {"metadata_raw_size": 0},
        {"metadata_raw_size": 1},
        {"metadata_raw_size": (64 << 20) + 1},
        {"table_size": 4},
        {"table_size": (1 << 28) + 8, "file_size": 1 << 40},
        {"table_size": 8},
        {"file_size": 64},
        {"file_size": 0},
    ],
)
def test_a_size_that_breaks_its_rule_is_invalid(change: dict[str, Any]) -> None:
    assert type(refusal(forge.archive(forge.document(), **change))) is InvalidError


def test_a_file_that_lacks_its_last_byte_is_truncated() -> None:
    assert type(refusal(VALID[:-1])) is TruncatedError


def test_a_byte_behind_the_end_is_invalid() -> None:
    assert type(refusal(VALID + b"\0")) is InvalidError


def test_a_zip_archive_behind_the_end_is_invalid() -> None:
    assert type(refusal(VALID + b"PK\x05\x06" + bytes(18))) is InvalidError


def test_checks_come_in_the_order_of_the_specification() -> None:
    """Each file has all the later breaches too, and is refused for the first."""
    later: dict[str, Any] = {"preamble_size": 1, "table_size": 3}
    everything: dict[str, Any] = {"incompatible": 1, "major": 9, "preamble_crc32c": 0, **later}
    tail: dict[str, Any] = {"tail": b"\0"}
    damaged = forge.archive(forge.document(), **everything, **tail)
    assert "not a ddct file" in refusal(b"?" + damaged[1:]).reason
    assert type(refusal(damaged)) is CorruptError
    del everything["preamble_crc32c"]
    assert "version 9" in refusal(forge.archive(forge.document(), **everything, **tail)).reason
    del everything["major"]
    assert "bit 0" in refusal(forge.archive(forge.document(), **everything, **tail)).reason
    assert "preamble_size" in refusal(forge.archive(forge.document(), **later, **tail)).reason
    assert "table_size" in refusal(forge.archive(forge.document(), table_size=3, **tail)).reason
    assert "follow" in refusal(forge.archive(forge.document(), **tail)).reason

"""The first 64 bytes of an archive (spec section 3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import google_crc32c

from ddct_format.errors import CorruptError, InvalidError, TruncatedError, UnsupportedError
from ddct_format.limits import MAX_CHUNKS, MAX_METADATA_SIZE

__all__ = ["MAGIC", "MAJOR", "MINOR", "PREAMBLE_SIZE", "Preamble", "build_preamble", "parse_preamble"]

MAGIC: Final = bytes.fromhex("89 44 44 43 54 0D 0A 1A")
MAJOR: Final = 1
MINOR: Final = 0
PREAMBLE_SIZE: Final = 64
KNOWN_INCOMPATIBLE_FEATURES: Final = 0

_FIELDS: Final = struct.Struct("<8sHHIQQQIIIIII")
_CHECKSUM: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Preamble:
    """What the preamble says; all sizes in bytes."""

    file_size: int
    metadata_stored_size: int
    metadata_raw_size: int
    metadata_crc32c: int
    table_size: int
    table_crc32c: int
    minor: int = MINOR
    compatible_features: int = 0

    @property
    def table_offset(self) -> int:
        return PREAMBLE_SIZE + self.metadata_stored_size

    @property
    def chunks_offset(self) -> int:
        return self.table_offset + self.table_size


def build_preamble(preamble: Preamble) -> bytes:
    """The 64 bytes that :func:`parse_preamble` reads back."""
    fields = _FIELDS.pack(
        MAGIC,
        MAJOR,
        preamble.minor,
        PREAMBLE_SIZE,
        KNOWN_INCOMPATIBLE_FEATURES,
        preamble.compatible_features,
        preamble.file_size,
        preamble.metadata_stored_size,
        preamble.metadata_raw_size,
        preamble.metadata_crc32c,
        preamble.table_size,
        preamble.table_crc32c,
        0,
    )[: PREAMBLE_SIZE - _CHECKSUM.size]
    return fields + _CHECKSUM.pack(google_crc32c.value(fields))


def parse_preamble(data: bytes, actual_size: int, *, allow_truncated: bool = False) -> Preamble:
    """Check the beginning of a file, in the order of spec section 9, steps 1 to 4.

    Args:
        data: the first 64 bytes of the file, or all of it if it is shorter.
        actual_size: bytes of the whole file.
        allow_truncated: accept that bytes are missing after the preamble.

    Raises:
        TruncatedError, CorruptError, UnsupportedError, InvalidError: as section 9 says.
    """
    data = data[:PREAMBLE_SIZE]
    if not data.startswith(MAGIC[: len(data)]):
        raise InvalidError(_explain_magic(data))
    if len(data) < PREAMBLE_SIZE:
        raise TruncatedError(f"only {len(data)} of the preamble's {PREAMBLE_SIZE} bytes exist")
    (
        _,
        major,
        minor,
        preamble_size,
        incompatible,
        compatible,
        file_size,
        metadata_stored_size,
        metadata_raw_size,
        metadata_crc32c,
        table_size,
        table_crc32c,
        preamble_crc32c,
    ) = _FIELDS.unpack(data)
    if google_crc32c.value(data[: -_CHECKSUM.size]) != preamble_crc32c:
        raise CorruptError("the preamble's checksum does not match")
    if major != MAJOR:
        raise UnsupportedError(f"format version {major} is not version {MAJOR}, the one that is known")
    unknown = incompatible & ~KNOWN_INCOMPATIBLE_FEATURES
    if unknown:
        bits = [str(bit) for bit in range(64) if unknown >> bit & 1]
        raise UnsupportedError(f"needs features that are not known: bit {', '.join(bits)}")
    if preamble_size != PREAMBLE_SIZE:
        raise InvalidError(f"preamble_size is {preamble_size}, not {PREAMBLE_SIZE}")
    if not 1 <= metadata_stored_size <= MAX_METADATA_SIZE:
        raise InvalidError(f"metadata_stored_size {metadata_stored_size} is not in 1 … {MAX_METADATA_SIZE}")
    if not metadata_stored_size <= metadata_raw_size <= MAX_METADATA_SIZE:
        raise InvalidError(
            f"metadata_raw_size {metadata_raw_size} is not in {metadata_stored_size} … {MAX_METADATA_SIZE}"
        )
    if table_size % 8 or table_size > 8 * MAX_CHUNKS:
        raise InvalidError(f"table_size {table_size} is not a multiple of 8 up to {8 * MAX_CHUNKS}")
    preamble = Preamble(
        file_size=file_size,
        metadata_stored_size=metadata_stored_size,
        metadata_raw_size=metadata_raw_size,
        metadata_crc32c=metadata_crc32c,
        table_size=table_size,
        table_crc32c=table_crc32c,
        minor=minor,
        compatible_features=compatible,
    )
    if preamble.chunks_offset > file_size:
        raise InvalidError(f"metadata and chunk table do not fit in a file of {file_size} bytes")
    if actual_size < file_size and not allow_truncated:
        raise TruncatedError(f"only {actual_size} of {file_size} bytes exist")
    if actual_size > file_size:
        raise InvalidError(f"{actual_size - file_size} bytes follow the archive's end")
    return preamble


def _explain_magic(data: bytes) -> str:
    """Say which transfer damaged the magic, where that can be recognised (spec section 3)."""
    seven_bit = bytes(byte & 0x7F for byte in MAGIC)
    if data.startswith(seven_bit[: len(data)]):
        return "not a ddct file any more: a 7-bit transfer cleared the high bit of its bytes"
    for damaged in (MAGIC.replace(b"\r\n", b"\n"), MAGIC.replace(b"\r\n", b"\r\r\n")):
        if data.startswith(damaged[: len(data)]):
            return "not a ddct file any more: a transfer in text mode changed its line ends"
    return "not a ddct file"

"""Fuzz inputs: an archive and the base that goes with it in one string of bytes, and checksums that match again.

Layout: ``u32`` length of the archive, the archive, the base's safetensors file (may be empty).

Usage: python tests/fuzz/seeds.py FOLDER [--raw]
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import google_crc32c
from safetensors import deserialize

from ddct_format import open_archive
from ddct_format.errors import DdctError

__all__ = ["join", "reseal", "split", "write_corpus"]

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"
_PREAMBLE = struct.Struct("<8sHHIQQQIIIIII")


def join(archive: bytes, base: bytes) -> bytes:
    return struct.pack("<I", len(archive)) + archive + base


def split(data: bytes) -> tuple[bytes, bytes]:
    """Archive and base; of a malformed input whatever there is."""
    if len(data) < 4:
        return data, b""
    length = min(struct.unpack_from("<I", data)[0], len(data) - 4)
    return data[4 : 4 + length], data[4 + length :]


def reseal(archive: bytes) -> bytes:
    """The archive with sizes and checksums that match what it holds, as far as its regions can be told apart."""
    if len(archive) < _PREAMBLE.size:
        return archive
    fields = list(_PREAMBLE.unpack_from(archive))
    metadata_size, table_size = fields[7], fields[10]
    rest = archive[_PREAMBLE.size :]
    metadata, table, chunks = (
        rest[:metadata_size],
        bytearray(rest[metadata_size : metadata_size + table_size]),
        rest[metadata_size + table_size :],
    )
    position = 0
    for entry in range(0, len(table) - len(table) % 8, 8):
        size = struct.unpack_from("<I", table, entry)[0]
        struct.pack_into("<I", table, entry + 4, google_crc32c.value(chunks[position : position + size]))
        position += size
    fields[6] = len(archive)
    fields[9] = google_crc32c.value(metadata)
    fields[11] = google_crc32c.value(bytes(table))
    head = _PREAMBLE.pack(*fields)[:-4]
    return head + struct.pack("<I", google_crc32c.value(head)) + metadata + bytes(table) + chunks


def _raw_bases(archive: bytes, base: bytes) -> bytes:
    """The bytes of the base tensors, in the order in which the archive needs them."""
    with open_archive(archive) as opened:
        tensors = {name: tensor["data"] for name, tensor in deserialize(base)} if base else {}
        of = (record.of or record.name for record in opened.tensors.values())
        return b"".join(bytes(tensors.get(name, b"")) for name in of)


def write_corpus(folder: Path, *, raw: bool) -> int:
    """Write every vector with its base as a fuzz input; returns how many there are.

    Args:
        raw: bases as the bytes of their tensors instead of safetensors files, for readers without a parser for these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((VECTORS / "manifest.json").read_text())
    count = 0
    for kind in ("good", "bad"):
        for name, entry in manifest[kind].items():
            archive = (VECTORS / kind / f"{name}.ddct").read_bytes()
            base = (VECTORS / kind / entry["base"]).read_bytes() if entry.get("base") else b""
            if raw:
                try:
                    base = _raw_bases(archive, base)
                except DdctError:
                    base = b""
            (folder / f"{kind}-{name.replace('/', '-')}").write_bytes(join(archive, base))
            count += 1
    return count


if __name__ == "__main__":
    print(f"{write_corpus(Path(sys.argv[1]), raw='--raw' in sys.argv)} inputs")

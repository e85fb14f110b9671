"""Runs the reader for conformance tests: bases from safetensors files in, one line of JSON out.

Usage: python conform.py ARCHIVE [BASE.safetensors] [--lossy]
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddct_reader import BITS, Archive, DdctError, Tensor, open_archive, tensor_digest

__all__ = ["decode_all", "main", "read_safetensors", "status_of"]


def read_safetensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file without gaps; ValueError if it is not one."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    tensors: dict[str, Tensor] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end or (stop - start) * 8 != math.prod(entry["shape"]) * BITS[entry["dtype"]]:
            raise ValueError(f"{name}: data_offsets")
        tensors[name] = (entry["dtype"], tuple(entry["shape"]), body[start:stop])
        end = stop
    if end != len(body):
        raise ValueError("bytes that belong to no tensor")
    return tensors


def decode_all(archive: Archive, base: Mapping[str, Tensor]) -> dict[str, str]:
    """Checks all bases first, then the side files, then decodes the tensors in order; the digest of each."""
    for name in archive.records:
        archive.check_base(name, base.get(name))
    for index in range(len(archive.metadata["files"])):
        archive.side_file(index)
    digests = {}
    for name, record in archive.records.items():
        before = base.get(record.get("of", name))
        digests[name] = tensor_digest(archive.decode(name, before[2] if before else None))
    return digests


def status_of(error: DdctError) -> str:
    """Its class as conformance tests write it: ``base-mismatch`` for BaseMismatch."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()


def main(arguments: list[str]) -> int:
    """Every conforming reader prints the same, but for the reasons."""
    lossy = "--lossy" in arguments
    files = [argument for argument in arguments if argument != "--lossy"]
    if len(files) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    base = read_safetensors(Path(files[1]).read_bytes()) if len(files) == 2 else {}
    try:
        with open_archive(files[0], lossy=lossy) as archive:
            report: dict[str, Any] = {"status": "ok", "tensors": decode_all(archive, base)}
    except DdctError as error:
        report = {"status": status_of(error), "tensor": error.tensor, "reason": str(error)}
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Section 9, "Lossy prefixes": all readers, asked for the lossy model alone, make the same of files that end early."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from spec.readers import SPEC, Reader, c_reader, ddct_reader, python_reader

VECTORS = SPEC / "vectors"
NAME = "ulp-layers"


@pytest.fixture(scope="module")
def lossy_readers(tmp_path_factory: pytest.TempPathFactory, c_build: tuple[Path | None, str]) -> dict[str, Reader]:
    found: dict[str, Reader] = {
        "reference": ddct_reader("reference", lossy=True),
        "python": functools.partial(python_reader, lossy=True),
    }
    program = c_build[0]
    if program is not None:
        found["c"] = c_reader(program, tmp_path_factory.mktemp("c-archives"), "--lossy")
        found["c, in memory"] = c_reader(program, tmp_path_factory.mktemp("c-archives"), "--lossy", "--memory")
    return found


def _archive() -> tuple[bytes, Path, dict[str, str], int]:
    """A file stored raw, its base, the digests of the lossy model, and where the first layers end."""
    data = (VECTORS / "good" / f"{NAME}.ddct").read_bytes()
    stored = int.from_bytes(data[40:44], "little")
    document: dict[str, Any] = json.loads(data[64 : 64 + stored])
    layers = [tensor["layers"] for tensor in document["tensors"] if "layers" in tensor]
    later = sum(layer["size"] for each in layers for layer in each[1:])
    digests = {
        tensor["name"]: tensor["layers"][0]["digest"] if "layers" in tensor else tensor["base"]
        for tensor in document["tensors"]
    }
    return data, VECTORS / "good" / f"{NAME}.base.safetensors", digests, len(data) - later


@pytest.mark.parametrize("cut", ["whole", "by a byte", "behind the first layers"])
def test_the_lossy_model_is_had_from_any_prefix_that_holds_it(lossy_readers: dict[str, Reader], cut: str) -> None:
    data, base, digests, end = _archive()
    prefix = data[: {"whole": len(data), "by a byte": -1, "behind the first layers": end}[cut]]
    for name, reader in lossy_readers.items():
        outcome = reader(prefix, base)
        assert (outcome["status"], outcome.get("tensors")) == ("ok", digests), (name, outcome)


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_prefix_without_all_first_layers_is_truncated(lossy_readers: dict[str, Reader], missing: int) -> None:
    data, base, _, end = _archive()
    assert {
        name: reader(data[: end - missing], base)["status"] for name, reader in lossy_readers.items()
    } == dict.fromkeys(lossy_readers, "truncated")


def test_a_prefix_without_metadata_or_table_is_truncated(lossy_readers: dict[str, Reader]) -> None:
    data, base, _, _ = _archive()
    stored, table = (int.from_bytes(data[at : at + 4], "little") for at in (40, 52))
    for length in (65, 64 + stored, 64 + stored + table - 1):
        for name, reader in lossy_readers.items():
            assert reader(data[:length], base)["status"] == "truncated", name


def test_without_being_asked_every_reader_refuses_prefixes(readers: dict[str, Reader]) -> None:
    data, base, _, end = _archive()
    assert {reader(data[:end], base)["status"] for reader in readers.values()} == {"truncated"}

"""What a pack compares before an archive gets its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from ddct_format import errors, open_archive, pack
from ddct_format.backends import get_backend
from ddct_format.encode.pair import TensorData
from ddct_format.encode.workspace import Workspace
from ddct_format.pipeline.self_check import check_decodes_to, check_written


def checksums_of(path: Path) -> dict[tuple[str, int], int]:
    with open_archive(path) as archive:
        return {
            (name, index): google_crc32c.value(archive.reader.payload(name, index))
            for name, record in archive.tensors.items()
            for index in range(len(record.layers))
        }


@pytest.fixture
def packed(base: Path, tuned: Path, tmp_path: Path) -> Path:
    pack(base, tuned, tmp_path / "packed.ddct", preset="paper", exact=True)
    return tmp_path / "packed.ddct"


def test_a_file_that_holds_what_was_decoded_passes(packed: Path) -> None:
    with open_archive(packed) as archive:
        check_written(packed, archive.metadata, checksums_of(packed), 2)


def test_another_payload_is_refused(packed: Path) -> None:
    checksums = checksums_of(packed)
    name, index = max(checksums)
    checksums[name, index] ^= 1
    with open_archive(packed) as archive, pytest.raises(errors.CorruptError, match=f"layer {index} that was written"):
        check_written(packed, archive.metadata, checksums, 2)


def test_other_metadata_are_refused(packed: Path) -> None:
    with open_archive(packed) as archive, pytest.raises(errors.CorruptError, match="metadata that were written"):
        check_written(packed, replace(archive.metadata, generator="another"), checksums_of(packed), 2)


def test_a_damaged_chunk_is_refused(packed: Path) -> None:
    checksums = checksums_of(packed)
    data = bytearray(packed.read_bytes())
    data[-3] ^= 1
    packed.write_bytes(data)
    with open_archive(packed) as archive, pytest.raises(errors.CorruptError, match="checksum"):
        check_written(packed, archive.metadata, checksums, 2)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_layer_that_restores_must_restore(packed: Path, base: Path, wrong: bool) -> None:
    from ddct_format import open_checkpoint

    with open_archive(packed) as archive, open_checkpoint(base) as opened:
        record = next(record for record in archive.tensors.values() if len(record.layers) == 2)
        before = np.frombuffer(archive.decode(record.name, opened, layers=1), dtype=np.uint8)
        after = np.array(archive.decode(record.name, opened))
        after[-1] ^= wrong
        payload = np.frombuffer(archive.reader.payload(record.name, 1), dtype=np.uint8)
        target = TensorData(record.dtype, record.shape, after)
        sections, cpu = [payload[:10], payload[10:]], get_backend("cpu")
        arguments = (record, 1, sections, before, lambda: None, target, cpu, Workspace())
        if not wrong:
            check_decodes_to(*arguments)
            return
        with pytest.raises(errors.CorruptError, match="encoded wrongly"):
            check_decodes_to(*arguments)

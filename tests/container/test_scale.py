"""Archives of many tensors; ``benchmarks/scale.py`` takes the time of 100,000."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ddct_format.container.reader import ArchiveReader
from ddct_format.container.records import Layer, Metadata, ShardRecord, TensorRecord, target_ids
from ddct_format.container.source import FileSource
from ddct_format.container.writer import ArchiveWriter

COUNT = 20_000


def test_an_archive_of_20_000_tensors(tmp_path: Path) -> None:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2 * COUNT)]
    params = {"patch": 16, "transform": "dct", "levels": "ff01", "scale": "3f800000"}
    tensors = tuple(
        TensorRecord(
            f"model.layers.{number:06}.self_attn.q_proj.weight",
            "BF16",
            (64, 64),
            0,
            "add",
            base=digests[2 * number],
            layers=(Layer("dctq.v1", params, 10, digests[2 * number + 1]),),
            error=0.25,
        )
        for number in range(COUNT)
    )
    ids = target_ids(tensors)
    shards = (ShardRecord("model.safetensors"),)
    path = tmp_path / "model.ddct"
    with ArchiveWriter(path) as writer:
        payload = writer.compress_payload([b"0123456789"])
        for _ in tensors:
            writer.append(0, payload)
        writer.seal(Metadata("test", 65536, ids[0], {}, ids, ids[0], shards, (), tensors))

    with ArchiveReader.open(FileSource(path)) as reader:
        assert len(reader.metadata.tensors) == COUNT
        assert reader.payload(tensors[-1].name, 0) == b"0123456789"

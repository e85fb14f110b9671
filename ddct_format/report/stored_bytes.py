"""What the bytes of an archive are spent on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from ..codec import dctq, raw, ulp
from ..codec.dctq import DctqParams, StoredPayload
from ..container.chunk_table import ENTRY_SIZE, chunk_count
from ..container.preamble import PREAMBLE_SIZE
from ..container.reader import ArchiveReader
from ..container.records import TensorRecord

__all__ = ["PARTS", "LayerBytes", "file_parts", "layer_part", "layer_parts"]

PARTS = {
    "metadata": "metadata",
    "table": "chunk table",
    "files": "side files",
    "scales": "scales",
    "keys": "row and column keys",
    "low rank": "low-rank part",
    "class maps": "class maps",
    "symbols": "symbols",
    "exact": "exact layer",
    "carried": "carried bytes",
    "other": "unknown layers",
}
"""Parts of a file, in the order in which they are shown, and their names in words."""

_PIECE = 4 << 20
_OF_SECTION = {
    "scales": "scales",
    "ranges": "scales",
    "multipliers": "low rank",
    "left": "low rank",
    "right": "low rank",
    "row_keys": "keys",
    "col_keys": "keys",
    "class_map": "class maps",
    "run_counts": "symbols",
}


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """A dctq.v1 layer's stored bytes, by part of ``PARTS``.

    Attributes:
        params, payload: what the layer says.
        class_bits: what a coefficient of each class takes, in bits.
    """

    parts: Mapping[str, float]
    params: DctqParams
    payload: StoredPayload
    class_bits: tuple[float, ...]


def file_parts(reader: ArchiveReader) -> dict[str, float]:
    """The parts of a file that belong to no tensor; side files with their entries in the chunk table."""
    head = PREAMBLE_SIZE + reader.preamble.metadata_stored_size
    chunks = sum(chunk_count(file.size, reader.metadata.chunk_size) for file in reader.metadata.files)
    table = reader.preamble.table_size - ENTRY_SIZE * chunks
    tensors = sum(reader.stored_size(name) for name in reader.tensors)
    return {"metadata": head, "table": table, "files": reader.file_size - head - table - tensors}


def layer_part(codec: str) -> str | None:
    """The part that a layer of this codec is as a whole; None for one that :func:`layer_parts` takes apart."""
    return {raw.NAME: "carried", ulp.NAME: "exact", dctq.NAME: None}.get(codec, "other")


def layer_parts(record: TensorRecord, index: int, payload: npt.NDArray[np.uint8], stored: int) -> LayerBytes:
    """Split the ``stored`` bytes of a dctq.v1 layer.

    Sections share zstd frames: what is stored is shared out by what each section compresses to by itself.

    Args:
        payload: the layer's raw bytes, as :func:`~ddct_format.codec.registry.apply_layer` accepts them.
    """
    params = DctqParams.parse(_defined(record.layers[index].params), record.elements)
    found = dctq.split_payload(params, payload)
    compressor = zstandard.ZstdCompressor(level=1)

    def cost(start: int, stop: int) -> float:
        pieces = (payload[place : min(place + _PIECE, stop)] for place in range(start, stop, _PIECE))
        return float(sum(len(compressor.compress(piece.data)) for piece in pieces))

    parts: dict[str, float] = {}
    for section, (start, stop) in found.sections.items():
        part = _OF_SECTION[section]
        parts[part] = parts.get(part, 0.0) + cost(start, stop)
    classes = [cost(*code.packed) + (cost(*code.runs) if code.runs else 0.0) for code in found.codes]
    parts["symbols"] += sum(classes)
    share = stored / max(sum(parts.values()), 1.0)
    return LayerBytes(
        {part: size * share for part, size in parts.items() if size},
        params,
        found,
        tuple(
            8 * share * size / code.symbols if code.symbols else 0.0
            for size, code in zip(classes, found.codes, strict=True)
        ),
    )


def _defined(params: Mapping[str, object]) -> dict[str, object]:
    """The parameters without private ones (spec section 5)."""
    return {name: value for name, value in params.items() if not name.startswith("x-")}

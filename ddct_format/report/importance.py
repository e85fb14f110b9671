"""Which patches of a matrix get how many bits, as a small picture."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..codec.dctq import DctqParams, StoredPayload

__all__ = ["encode_png", "importance_map"]

_STOPS = ((13, 22, 48), (28, 74, 138), (36, 138, 160), (116, 196, 138), (244, 232, 108))
"""Dark for patches without bits, bright for those with most; one scale that reads on dark and on light."""


def importance_map(
    params: DctqParams, stored: StoredPayload, class_bits: Sequence[float], largest_side: int
) -> npt.NDArray[np.float64]:
    """Bits per coefficient of the patch that each weight lies in, averaged to at most ``largest_side`` a side.

    Rows and columns stand in the order of the tensor's view, whatever keys have sorted them by.

    Returns:
        float64 [height, width].
    """
    grid = params.grid
    one_class = len(params.levels) == 1
    classes = np.zeros(grid.count, dtype=np.uint8) if one_class else stored.section("class_map")
    bits = np.array(class_bits, dtype=np.float64)[classes].reshape(grid.down, grid.across)
    shrunk = _shrink(bits, grid.rows, grid.patch, stored.section("row_keys"), largest_side)
    return _shrink(shrunk.T, grid.cols, grid.patch, stored.section("col_keys"), largest_side).T


def _shrink(
    bits: npt.NDArray[np.float64], length: int, patch: int, keys: npt.NDArray[np.uint8], largest: int
) -> npt.NDArray[np.float64]:
    """[patches, n] -> [pixels, n]: the average over the ``length`` rows of the view, each in its own place."""
    patches = len(bits)
    if not keys.size and patches <= largest:
        return bits  # a pixel for each patch says everything
    order = np.argsort(keys, kind="stable") if keys.size else np.arange(length)
    patch_of = np.empty(length, dtype=np.int64)
    patch_of[order] = np.arange(length) // patch
    pixels = min(largest, length)
    edges = np.arange(pixels + 1) * length // pixels
    result = np.empty((pixels, bits.shape[1]))
    for pixel in range(pixels):
        rows = patch_of[edges[pixel] : edges[pixel + 1]]
        result[pixel] = np.bincount(rows, minlength=patches) @ bits / rows.size
    return result


def encode_png(values: npt.NDArray[np.float64], largest: float) -> bytes:
    """A PNG with a palette of 256 colours, from 0 to ``largest``; [height, width] -> bytes."""
    height, width = values.shape
    levels = np.clip(np.rint(values * (255 / largest if largest > 0 else 0.0)), 0, 255).astype(np.uint8)
    lines = np.concatenate([np.zeros((height, 1), dtype=np.uint8), levels], axis=1)  # each line with filter type 0
    places = np.linspace(0, len(_STOPS) - 1, 256)
    palette = np.stack(
        [np.interp(places, range(len(_STOPS)), channel) for channel in zip(*_STOPS, strict=True)], axis=1
    )
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", np.rint(palette).astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )

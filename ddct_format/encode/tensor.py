"""One tensor: which operation, which codec, which view (the decisions of spec section 5.1 that an encoder makes)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Final

import numpy as np
import numpy.typing as npt

from ..backends.interface import Backend, Comparison
from ..codec import dctq, raw
from ..codec.dctq import DctqParams
from ..codec.floats import FLOAT_DTYPES
from ..container.digest import LEAF_SIZE, TensorHasher
from ..container.dtypes import DTYPE_BITS, tensor_nbytes
from ..container.zstd_frame import Effort
from ..native.digest import tensor_hasher
from .blocks import share_blocks
from .delta import DeltaAnalysis, EncodedDelta, analyse_delta, encode_delta, matrix_view, vector_view
from .pair import Pair, TensorData
from .paper import encode_paper
from .presets import Preset
from .sums import sum_delta
from .workspace import Workspace

__all__ = [
    "DCTQ_EFFORT",
    "EncodedLayer",
    "EncodedTensor",
    "analyse_tensor",
    "apply_delta",
    "carry",
    "decoded",
    "delta_pair",
    "encode_tensor",
    "float_pair",
]

DCTQ_EFFORT: Final = "entropy"
"""Packed symbols hold no matches that are worth looking for: all other parameters together save 0.03 % at most."""
_PIECE = 64 * LEAF_SIZE

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EncodedLayer:
    """A layer's payload, in sections, and what it gives.

    Attributes:
        digest: of the tensor after this layer; None in a draft.
        result: the tensor's bytes after this layer; None in a draft, and where they are the target's.
        effort: to compress the sections with; None for the usual one.
    """

    codec: str
    params: dict[str, object]
    sections: list[Bytes]
    digest: str | None
    result: Bytes | None = None
    effort: Effort | None = None


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """What to write for a tensor.

    Attributes:
        op: ``add`` or ``replace``.
        noise, energy: Σ(t−d)² and Σ(t−b)² of an ``add`` tensor, float64 (spec section 5.5).
    """

    op: str
    layers: tuple[EncodedLayer, ...]
    noise: float = 0.0
    energy: float = 0.0


def float_pair(base: TensorData | None, target: TensorData) -> bool:
    """Whether a delta can be taken: both sides are floating-point tensors of the same shape."""
    return base is not None and base.shape == target.shape and {base.dtype, target.dtype} <= set(FLOAT_DTYPES)


def delta_pair(base: TensorData, target: TensorData) -> Pair | None:
    """The tensors as matrices, or rows of 8; None if they are too small or do not divide."""
    view = matrix_view(target.shape) or vector_view(target.shape)
    return None if view is None else Pair(base, target, view)


def analyse_tensor(
    base: TensorData | None, target: TensorData, backend: Backend, workspace: Workspace
) -> DeltaAnalysis | None:
    """What a search for quantiser steps needs to know of a tensor; None if it is carried byte for byte."""
    if base is None or not float_pair(base, target):
        return None
    pair = delta_pair(base, target)
    if pair is None:
        return None
    return analyse_delta(pair, backend, workspace, is_matrix=matrix_view(target.shape) is not None)


def encode_tensor(
    base: TensorData | None,
    target: TensorData,
    target_digest: str,
    preset: Preset,
    backend: Backend,
    workspace: Workspace,
    *,
    analysis: DeltaAnalysis | None = None,
    step: float = 1.0,
    draft: bool = False,
) -> EncodedTensor:
    """Encode a tensor that is not the base's own.

    A delta is stored where both sides are finite floating-point tensors of the same shape; anything else is carried
    byte for byte, NaN and Inf included.

    Args:
        analysis, step: what :func:`analyse_tensor` found, and the step that was chosen, for a preset with a target.
        draft: only what the bytes depend on; neither digests nor errors.
    """
    encoded = None
    pair = delta_pair(base, target) if base is not None and float_pair(base, target) else None
    if pair is None:
        return carry(target, target_digest, workspace)
    if preset.searched:
        if analysis is None:
            return carry(target, target_digest, workspace)
        encoded = encode_delta(
            pair, analysis, step, backend, workspace, coarse=preset.coarse, quantiser=preset.quantiser
        )
        if draft:
            sections = share_blocks(encoded.sections)
            return EncodedTensor("add", (_dctq_layer(encoded, sections, None),))
    energy = 0.0 if analysis is None else analysis.deviation**2 * pair.elements
    if encoded is None:
        if not preset.shares or matrix_view(target.shape) is None:
            return carry(target, target_digest, workspace)
        quantised = encode_paper(pair, preset.shares, preset.quantiser, backend, workspace)
        if quantised is None:
            return carry(target, target_digest, workspace)
        encoded, energy = quantised
    applied = apply_delta(pair, encoded, backend, workspace)
    if applied is None:
        return carry(target, target_digest, workspace)
    layer, noise = applied
    return EncodedTensor("add", (layer,), noise=noise, energy=energy)


def apply_delta(
    pair: Pair, encoded: EncodedDelta, backend: Backend, workspace: Workspace, *, measured: bool = True
) -> tuple[EncodedLayer, float] | None:
    """Decode a layer: its result with the digest, and the squared error that is left.

    None where a scale or a sum is beyond its type's range.

    Args:
        measured: if not, the error is not asked for, and given as 0; the result may be beyond the range, too.
    """
    if not np.isfinite(encoded.sections[0].view("<f4")).all():
        return None
    base, target = pair.base, pair.target
    sections = share_blocks(encoded.sections)
    payload, position = workspace.join(sections), 0
    for number, section in enumerate(sections):
        sections[number] = payload[position : position + section.size]
        position += section.size
    encoded.sections.clear()  # they would be in memory twice
    result = workspace.allocate(tensor_nbytes(target.dtype, target.shape))
    params = DctqParams.parse(encoded.params.as_json(), pair.elements)  # what a reader will see
    with workspace.releasing():
        stored = dctq.split_payload(params, payload)
    released, large = 0, result.size > workspace.largest // 2
    brought_in = params.brought_in(payload, result.size) if large else int
    comparison = Comparison(target.data) if measured else None
    for done in backend.apply_bands(params, stored, base.data, base.dtype, target.dtype, result, comparison):
        if brought_in(done) - released >= 2 * workspace.largest or done == result.size:
            released = brought_in(done)
            base.release(0, base.data.size)
            if measured:
                target.release(0, target.data.size)
            workspace.release()
    energy = 0.0
    if comparison is not None and comparison.error is not None:
        energy = comparison.error
    elif measured:
        after = Pair(decoded(result, target, workspace), target, (pair.rows, pair.cols))
        remaining = sum_delta(after, backend, workspace)
        energy = remaining.energy if remaining.finite else inf
    if not isfinite(energy):
        return None

    def digest(start: int) -> TensorHasher:
        part = tensor_hasher()
        part.update(result[start : start + _PIECE])
        return part

    hasher = tensor_hasher()
    for part in workspace.spread(digest, range(0, result.size, _PIECE)):
        hasher.extend(part)
        workspace.release()
    layer = _dctq_layer(encoded, sections, hasher.hexdigest(), result)
    return layer, energy


def _dctq_layer(
    encoded: EncodedDelta, sections: list[Bytes], digest: str | None, result: Bytes | None = None
) -> EncodedLayer:
    return EncodedLayer(dctq.NAME, encoded.params.as_json(), sections, digest, result, DCTQ_EFFORT)


def decoded(result: Bytes, target: TensorData, workspace: Workspace) -> TensorData:
    """A result in memory of the workspace's, as a tensor."""
    return TensorData(target.dtype, target.shape, result, lambda start, stop: workspace.release())


def carry(target: TensorData, digest: str, workspace: Workspace) -> EncodedTensor:
    """The tensor's own bytes, in byte planes."""
    width = DTYPE_BITS[target.dtype] // 8
    planes = workspace.allocate(target.data.size)
    by_byte, elements = planes.reshape(width, -1), target.data.reshape(-1, width)
    for start in range(0, len(elements), _PIECE):
        by_byte[:, start : start + _PIECE] = elements[start : start + _PIECE].T
        target.release(start * width, (start + _PIECE) * width)
        workspace.release()
    layer = EncodedLayer(raw.NAME, {"planes": width}, [planes], digest)
    return EncodedTensor("replace", (layer,))

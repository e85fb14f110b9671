"""How close a decoded change comes to the true one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint, Region
from ..codec.floats import FLOAT_DTYPES, float32_from_bytes
from ..container.dtypes import DTYPE_BITS
from ..container.records import TensorRecord

__all__ = ["Changes", "Distortion", "change_blocks", "changes_of", "distortion_of"]

_BLOCK = 1 << 18
"""Elements at a time; their values as float64 take 2 MiB."""
_BLOCKS_IN_SIGHT = 8
"""After so many blocks, pages of the models are let go."""

Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
Changes = tuple[npt.NDArray[np.bool_], tuple[Values, ...]]
"""Of a block of weights: which are finite in all models, and what each model adds to the base there."""


@dataclass(frozen=True, slots=True)
class Distortion:
    """Sums over weights, to be added up over tensors; t is the true change of a weight, d the decoded one.

    Attributes:
        noise: Σ(t−d)².
        energy: Σt².
        decoded_energy: Σd².
        product: Σt·d.
    """

    noise: float = 0.0
    energy: float = 0.0
    decoded_energy: float = 0.0
    product: float = 0.0

    def __add__(self, other: Distortion) -> Distortion:
        return Distortion(
            self.noise + other.noise,
            self.energy + other.energy,
            self.decoded_energy + other.decoded_energy,
            self.product + other.product,
        )

    @property
    def error(self) -> float | None:
        """Relative squared error, as the archive's own (spec section 5.5); None where nothing changed."""
        return self.noise / self.energy if self.energy > 0 else None

    @property
    def cosine(self) -> float | None:
        """Of the angle between the two changes; None where one of them is nothing."""
        lengths = sqrt(self.energy) * sqrt(self.decoded_energy)
        return self.product / lengths if lengths > 0 else None


def changes_of(
    record: TensorRecord, decoded: Bytes, region: Region | None, base: Checkpoint, target: Checkpoint | None
) -> Iterator[Changes]:
    """What a decoded tensor adds to the base, and what it adds in the fine-tune, in blocks.

    Nothing for a tensor whose change has no meaning: of another shape in the base, or absent from it, or not of a
    floating-point type that archives store changes of.

    Args:
        decoded, region: as :data:`~ddct_format.pipeline.decoding.Inspect` has them.
    """
    before = base.tensors.get(record.name)
    if before is None or before.shape != record.shape or not {before.dtype, record.dtype} <= set(FLOAT_DTYPES):
        return
    models = [decoded]
    if target is not None:
        models.append(np.frombuffer(target.read(record.name), dtype=np.uint8))

    def let_go() -> None:
        base.release(record.name)
        if target is not None:
            target.release(record.name)
        if region is not None:
            region.release()

    yield from change_blocks(
        np.frombuffer(base.read(record.name), dtype=np.uint8), before.dtype, record.dtype, *models, let_go=let_go
    )


def change_blocks(
    base: Bytes, base_dtype: str, dtype: str, *models: Bytes, let_go: Callable[[], None] | None = None
) -> Iterator[Changes]:
    """Walk through a tensor of the base and of fine-tunes of it, all of one shape, in blocks.

    Args:
        base: its bytes, elements of type ``base_dtype``.
        models: bytes of the same tensor in other models, elements of type ``dtype``.
        let_go: called every few blocks, and at the end: what lies behind is not needed again.
    """
    base_width, width = DTYPE_BITS[base_dtype] // 8, DTYPE_BITS[dtype] // 8
    elements = base.size // base_width
    for number, start in enumerate(range(0, elements, _BLOCK), start=1):
        before = float32_from_bytes(base[start * base_width : (start + _BLOCK) * base_width], base_dtype)
        after = [float32_from_bytes(model[start * width : (start + _BLOCK) * width], dtype) for model in models]
        finite = np.isfinite(before)
        for values in after:
            finite &= np.isfinite(values)
        if not finite.all():
            before, after = before[finite], [values[finite] for values in after]
        exact = before.astype(np.float64)
        yield finite, tuple(values - exact for values in after)
        if let_go is not None and (number % _BLOCKS_IN_SIGHT == 0 or start + _BLOCK >= elements):
            let_go()


def distortion_of(decoded: Values, true: Values) -> Distortion:
    """The sums of one block."""
    difference = true - decoded
    return Distortion(
        noise=float(difference @ difference),
        energy=float(true @ true),
        decoded_energy=float(decoded @ decoded),
        product=float(true @ decoded),
    )

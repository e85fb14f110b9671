"""How close a decoded change comes to the true one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from ..codec.floats import float32_from_bytes
from ..container.dtypes import DTYPE_BITS

__all__ = ["Distortion", "block_distortion", "change_blocks", "measure_distortion"]

_BLOCK = 1 << 19
"""Elements at a time: sums are exact to 53 bits without a second copy of the tensor."""

Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]


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


def change_blocks(
    base: Bytes, base_dtype: str, dtype: str, *models: Bytes
) -> Iterator[tuple[npt.NDArray[np.bool_], tuple[Values, ...]]]:
    """Walk through a tensor of the base and of fine-tunes of it, all of one shape, in blocks.

    Args:
        base: its bytes, elements of type ``base_dtype``.
        models: bytes of the same tensor in other models, elements of type ``dtype``.

    Yields:
        Where all of them are finite, bool; and for each model what it adds to the base there, float64.
    """
    base_width, width = DTYPE_BITS[base_dtype] // 8, DTYPE_BITS[dtype] // 8
    for start in range(0, base.size // base_width, _BLOCK):
        before = float32_from_bytes(base[start * base_width : (start + _BLOCK) * base_width], base_dtype)
        after = [float32_from_bytes(model[start * width : (start + _BLOCK) * width], dtype) for model in models]
        finite = np.isfinite(before)
        for values in after:
            finite &= np.isfinite(values)
        if not finite.all():
            before, after = before[finite], [values[finite] for values in after]
        exact = before.astype(np.float64)
        yield finite, tuple(values - exact for values in after)


def measure_distortion(base: Bytes, base_dtype: str, true: Bytes, decoded: Bytes, dtype: str) -> Distortion:
    """Compare a tensor of the fine-tune with what was decoded; weights that are not finite do not count."""
    total = Distortion()
    for _, (t, d) in change_blocks(base, base_dtype, dtype, true, decoded):
        total += block_distortion(t, d)
    return total


def block_distortion(true: Values, decoded: Values) -> Distortion:
    """The sums of one block."""
    difference = true - decoded
    return Distortion(
        noise=float(difference @ difference),
        energy=float(true @ true),
        decoded_energy=float(decoded @ decoded),
        product=float(true @ decoded),
    )

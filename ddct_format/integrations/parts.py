"""Which part of a full tensor a given tensor holds: all of it, or the rows and columns of a tensor-parallel rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..container.records import TensorRecord
from ..errors import ConfigError

__all__ = ["Slices", "TensorPart", "find_part"]

Slices = Mapping[str, tuple[slice, ...]] | Callable[[str, tuple[int, ...]], tuple[slice, ...] | None]
"""By name, or a function of name and full shape; None, or a name that is missing, stands for the whole tensor."""


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Ranges of a full tensor, one for each axis: (start, stop)."""

    full_shape: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]

    @property
    def whole(self) -> bool:
        return all(bounds == (0, size) for bounds, size in zip(self.ranges, self.full_shape, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.ranges)

    @property
    def index(self) -> tuple[slice, ...]:
        """For indexing the full tensor."""
        return tuple(slice(start, stop) for start, stop in self.ranges)

    def matrix(self, cols: int) -> tuple[int, int, int, int] | None:
        """First row and the one after the last, then columns, of a view of ``cols`` columns; None if it is none."""
        if len(self.full_shape) != 2 or self.full_shape[1] != cols:
            return None
        return (*self.ranges[0], *self.ranges[1])


def find_part(record: TensorRecord, slices: Slices | None) -> TensorPart:
    """The part of ``record``'s tensor that the caller's tensor of that name holds.

    Raises:
        ConfigError: the slices do not fit the tensor, have a step, or are empty.
    """
    given = (
        None if slices is None else slices(record.name, record.shape) if callable(slices) else slices.get(record.name)
    )
    if given is None:
        return TensorPart(record.shape, tuple((0, size) for size in record.shape))
    if len(given) > len(record.shape):
        raise ConfigError(f"{len(given)} slices for a tensor of shape {list(record.shape)}", tensor=record.name)
    given = (*given, *(slice(None) for _ in record.shape[len(given) :]))
    ranges = []
    for part, size in zip(given, record.shape, strict=True):
        start, stop, step = part.indices(size)
        exact = (part.start or 0) >= 0 and (part.stop is None or 0 <= part.stop <= size)
        if step != 1 or start >= stop or not exact:
            raise ConfigError(f"{part} is no range of an axis of {size}", tensor=record.name)
        ranges.append((start, stop))
    return TensorPart(record.shape, tuple(ranges))

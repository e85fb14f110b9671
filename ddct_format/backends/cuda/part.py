"""Which rows and columns of a view a tensor holds: all of them, or the slice of a tensor-parallel rank."""

from __future__ import annotations

from dataclasses import dataclass

from ...codec.patches import PatchGrid

__all__ = ["Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``row_first`` up to ``row_stop`` and columns ``col_first`` up to ``col_stop`` of a view."""

    row_first: int
    row_stop: int
    col_first: int
    col_stop: int

    @classmethod
    def whole(cls, grid: PatchGrid) -> Part:
        return cls(0, grid.rows, 0, grid.cols)

    @property
    def rows(self) -> int:
        return self.row_stop - self.row_first

    @property
    def cols(self) -> int:
        return self.col_stop - self.col_first

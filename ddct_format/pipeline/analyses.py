"""What a search for steps keeps of each tensor: of a model of hundreds of large matrices, in a file."""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass, fields, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint.storage import storage_errors, write_at
from ..container.buffers import byte_view
from ..encode.delta import DeltaAnalysis
from ..encode.factors import Factors

__all__ = ["Analyses", "Outline"]


@dataclass(frozen=True, slots=True)
class Outline:
    """What is always in memory of an analysis; see :class:`DeltaAnalysis`."""

    deviation: float
    rows: int
    is_matrix: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """Of an array in the file."""

    start: int
    dtype: npt.DTypeLike
    shape: tuple[int, ...]


class Analyses:
    """Analyses by tensor. Factors beyond some bytes lie in a file without a name, which vanishes with the process.

    Reading may happen on any thread.

    Args:
        memory: bytes of factors that may stay in memory.
        scratch: directory of the file.
    """

    def __init__(self, memory: int, scratch: Path) -> None:
        self._left = memory
        self._scratch = scratch
        self._kept: dict[str, DeltaAnalysis | None] = {}
        self._places: dict[str, dict[str, _Place]] = {}
        self._file: FileIO | None = None
        self._end = 0

    def add(self, name: str, analysis: DeltaAnalysis | None) -> None:
        """Keep one; None for a tensor that is carried byte for byte.

        Raises:
            StorageError: the file cannot be written.
        """
        arrays = {} if analysis is None or analysis.factors is None else _arrays(analysis.factors)
        size = sum(array.nbytes for array in arrays.values())
        self._kept[name] = analysis
        if size <= self._left:
            self._left -= size
        elif analysis is not None:
            self._kept[name] = replace(analysis, factors=None)
            with storage_errors(self._scratch):
                self._places[name] = {field: self._write(array) for field, array in arrays.items()}

    def get(self, name: str) -> DeltaAnalysis | None:
        """All of it; None if there is none.

        Raises:
            StorageError: the file cannot be read.
        """
        analysis, places = self._kept.get(name), self._places.get(name)
        if analysis is None or places is None:
            return analysis
        with storage_errors(self._scratch):
            return replace(analysis, factors=Factors(**{field: self._read(place) for field, place in places.items()}))

    def outline(self, name: str) -> Outline | None:
        """What needs no reading; None for a tensor that is carried byte for byte."""
        analysis = self._kept[name]
        if analysis is None:
            return None
        return Outline(analysis.deviation, analysis.rows, analysis.factors is not None or name in self._places)

    def _write(self, array: npt.NDArray[Any]) -> _Place:
        if self._file is None:
            self._file = _temporary_file(self._scratch)
            weakref.finalize(self, self._file.close)
        place = _Place(self._end, array.dtype, array.shape)
        write_at(self._file.fileno(), byte_view(np.ascontiguousarray(array)), self._end)
        self._end += array.nbytes
        return place

    def _read(self, place: _Place) -> npt.NDArray[Any]:
        assert self._file is not None
        array = np.empty(place.shape, place.dtype)
        into, done = byte_view(array), 0
        while done < array.nbytes:
            found = os.preadv(self._file.fileno(), [into[done:]], place.start + done)
            if not found:
                raise OSError("a temporary file was truncated")
            done += found
        return array


def _temporary_file(directory: Path) -> FileIO:
    return tempfile.TemporaryFile(dir=directory, prefix=".ddct-", buffering=0)


def _arrays(factors: Factors) -> dict[str, npt.NDArray[Any]]:
    return {field.name: getattr(factors, field.name) for field in fields(factors)}

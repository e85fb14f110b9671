"""Packing the symbols of a large tensor a part at a time, so that they need not be in memory together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .. import native
from ..backends.encoder import Encoder
from ..codec.symbols import pack_sparse, pack_symbols, packed_size, symbols_per_byte
from .workspace import Workspace

__all__ = ["pack_class", "pack_runs", "pack_sparse_bytes"]

_PART = 32 << 20
_RUNS_PART = 4 << 20
"""Symbols; the latter where each takes several bytes on the way."""
_LONG_RUN = 255
_BLOCK = 1024
"""Symbols that the core takes at a time."""
_BYTES, _ALL_BYTES = 255, 256
"""Of so many symbols a value takes a byte of its own."""

Bytes = npt.NDArray[np.uint8]


def pack_class(
    encoder: Encoder,
    symbols: Bytes,
    class_map: Bytes,
    number: int,
    alphabet: int,
    values: int | None,
    workspace: Workspace,
    part: int = _PART,
) -> list[Bytes]:
    """What :meth:`Encoder.pack_class` gives.

    Args:
        symbols: uint8 [patches, p²], allocated by ``workspace``, which is told when a part is done with.
        values: of a sparse class, how many of its symbols are not 0; None for a dense one.
        part: symbols of a part, about.
    """
    if symbols.size <= part:
        return encoder.pack_class(symbols, class_map, number, alphabet, values is not None)
    step = part // symbols.shape[1]
    members = int(np.count_nonzero(class_map == number)) * symbols.shape[1]
    if values is None:
        packed = _Output(workspace, packed_size(members, alphabet))
        for begin, end in _parts(class_map, number, step, symbols_per_byte(alphabet)):
            packed.add(*encoder.pack_class(symbols[begin:end], class_map[begin:end], number, alphabet, False))
            workspace.release()
        return [packed.written]
    runs = _Runs(_Output(workspace, values + members // _LONG_RUN))
    others = _Values(_Output(workspace, packed_size(values, alphabet - 1)), alphabet - 1)
    for begin, end in _parts(class_map, number, step, 1):
        of_part = class_map[begin:end]
        found = encoder.pack_class(symbols[begin:end], of_part, number, _BYTES, True)
        runs.add(found[0], int(np.count_nonzero(of_part == number)) * symbols.shape[1])
        others.add(found[1])
        workspace.release()
    others.end()
    return [runs.output.written, others.output.written]


def pack_runs(symbols: Bytes, values: int, workspace: Workspace, part: int = _RUNS_PART) -> tuple[Bytes, Bytes]:
    """What ``pack_sparse`` gives for bytes as symbols, of which so many are not 0: runs, and a byte for each value."""
    runs = _Runs(_Output(workspace, values + symbols.size // _LONG_RUN))
    others = _Output(workspace, values)
    for start in range(0, symbols.size, part):
        piece = symbols[start : start + part]
        found = pack_sparse_bytes(piece)
        runs.add(found[0], piece.size)
        others.add(found[1])
        workspace.release()
    return runs.output.written, others.written


def pack_sparse_bytes(symbols: Bytes) -> tuple[Bytes, Bytes]:
    """What ``pack_sparse`` gives for an alphabet of 256."""
    if native.core is None:
        return pack_sparse(symbols, _ALL_BYTES)
    # Zeros after the last value are not stored: so there may be more of them.
    whole = np.append(symbols, np.zeros(-symbols.size % _BLOCK, dtype=np.uint8)) if symbols.size % _BLOCK else symbols
    found = native.core.pack_class(whole, np.zeros(whole.size // _BLOCK, dtype=np.uint8), 0, _BYTES, True)
    return np.frombuffer(found[0], dtype=np.uint8), np.frombuffer(found[1], dtype=np.uint8)


def _parts(class_map: Bytes, number: int, step: int, multiple: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) patch of parts; each but the last has a multiple of so many patches of the class."""
    begin = 0
    while begin < class_map.size:
        end, members = begin, np.empty(0, dtype=np.int64)
        while members.size < multiple and end < class_map.size:
            end += max(step, 1)
            members = np.flatnonzero(class_map[begin:end] == number)
        end = min(end, class_map.size)
        left = members.size % multiple
        if left and end < class_map.size:
            end = begin + int(members[-left])
        yield begin, end
        begin = end


class _Output:
    """Bytes one after the other, in memory of the workspace's."""

    def __init__(self, workspace: Workspace, most: int) -> None:
        self._memory = workspace.allocate(most)
        self._size = 0

    def add(self, data: Bytes) -> None:
        """The next ones."""
        self._memory[self._size : self._size + data.size] = data
        self._size += data.size

    @property
    def written(self) -> Bytes:
        return self._memory[: self._size]


class _Runs:
    """Run bytes of parts, as those of the whole: zeros at the end of a part belong to the first run of the next."""

    def __init__(self, output: _Output) -> None:
        self.output = output
        self._zeros = 0

    def add(self, runs: Bytes, symbols: int) -> None:
        """Run bytes of a part of so many symbols."""
        if not runs.size:
            self._zeros += symbols
            return
        first = int(np.argmax(runs != _LONG_RUN))
        long_runs, gap = divmod(self._zeros + _LONG_RUN * first + int(runs[first]), _LONG_RUN)
        self.output.add(np.full(long_runs, _LONG_RUN, dtype=np.uint8))
        self.output.add(np.array([gap], dtype=np.uint8))
        self.output.add(runs[first + 1 :])
        self._zeros = symbols - int(runs.sum(dtype=np.int64)) - int(np.count_nonzero(runs != _LONG_RUN))


class _Values:
    """Values of parts, packed as those of the whole."""

    def __init__(self, output: _Output, alphabet: int) -> None:
        self.output = output
        self._alphabet = alphabet
        self._left = np.empty(0, dtype=np.uint8)

    def add(self, values: Bytes) -> None:
        """The next ones, a byte each."""
        if self._alphabet == 1:
            return
        values = np.concatenate([self._left, values])
        whole = values.size - values.size % symbols_per_byte(self._alphabet)
        self.output.add(pack_symbols(values[:whole], self._alphabet))
        self._left = values[whole:]

    def end(self) -> None:
        self.output.add(pack_symbols(self._left, self._alphabet))

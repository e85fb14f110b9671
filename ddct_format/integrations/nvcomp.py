"""zstd frames decompressed on CUDA devices by NVIDIA's nvCOMP, where it is installed (``ddct[nvcomp]``).

nvCOMP trusts what it is given: a frame that zstd would refuse makes it read and write elsewhere on the device, or never
end (ADR 0403). So it gets only what :meth:`Archive.authenticate` vouches for, and every checksum, frame header and
frame length was checked by then. What comes out is checked on the host like any payload.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module

import numpy as np
import numpy.typing as npt
import torch

from ..container.reader import ArchiveReader
from ..errors import ConfigError
from ..native.inflate import read_stored
from ..pipeline.archive import Archive

__all__ = ["DeviceInflater", "read_chunks"]

_VERSION = "6."
_BATCH = 64 << 20
"""Raw bytes that are decompressed at a time: nvCOMP works in three times as much memory."""

Numbers = npt.NDArray[np.int64]


class DeviceInflater:
    """Payloads of an archive, read by the host and decompressed by a device.

    Raises:
        ConfigError: nvCOMP is not installed, or the archive's origin is not certain.
    """

    def __init__(self, archive: Archive) -> None:
        if not archive.is_authentic:
            raise ConfigError(
                "nvCOMP must not be given a file of uncertain origin: open the archive, call authenticate() with a "
                "SHA-256 that you trust, and pass the open archive",
                place=archive.place,
            )
        _library()
        self._reader = archive.reader

    def inflate(
        self, wanted: Sequence[tuple[str, int, int]], staged: torch.Tensor, result: torch.Tensor, threads: int
    ) -> bool:
        """Read payloads, decompress them on the device of ``result``, on the current stream, and wait for it.

        Args:
            wanted: tensor, layer, and where in ``result`` the payload begins.
            staged: uint8 memory of the host, pinned, with room for all chunks as they are stored.
            result: uint8 on the device.
            threads: that read and check.

        Returns:
            False if anything was not plainly right; ``result`` is undefined then.
        """
        chunks = read_chunks(self._reader, wanted, staged.numpy(), threads)
        if chunks is None:
            return False
        source = staged[: int(chunks[1].sum())].to(result.device, non_blocking=True)
        whole = chunks[1] == chunks[3]
        for first, last in _runs(chunks[:, whole]):
            begin, length = int(first[2]), int(last[2] + last[3] - first[2])
            result[begin : begin + length].copy_(source[int(first[0]) : int(first[0]) + length])
        return _decompress(chunks[:, ~whole], source, result)

    def stored_size(self, name: str, layer: int) -> int:
        """Bytes that :meth:`inflate` needs in ``staged`` for a payload."""
        return self._reader.stored_layer_size(name, layer)


def read_chunks(
    reader: ArchiveReader, wanted: Sequence[tuple[str, int, int]], staged: npt.NDArray[np.uint8], threads: int
) -> Numbers | None:
    """Put the chunks of payloads, as they are stored, one after another into ``staged``.

    Args:
        wanted: tensor, layer, and where the payload is to begin.

    Returns:
        int64 [4, n]: of each chunk place and size in ``staged``, and of its raw bytes. A chunk whose sizes are the same
        is stored as it is. None if one is not plainly right.
    """
    starts = np.cumsum([0, *(reader.stored_layer_size(name, layer) for name, layer, _ in wanted)], dtype=np.int64)
    stored = [(name, layer, int(start)) for (name, layer, _), start in zip(wanted, starts[:-1], strict=True)]
    chunk_size = reader.metadata.chunk_size
    chunks = []
    for (name, layer, into), start, own in zip(
        wanted, starts[:-1], reader.stored_into(stored, staged, read_stored, threads), strict=True
    ):
        if own is None:
            return None
        ends = np.frombuffer(own, dtype=np.uint64).astype(np.int64)
        raw = np.minimum(np.arange(len(ends)) * chunk_size, reader.tensors[name].layers[layer].size)
        chunks.append(np.stack([ends[:-1] - ends[0] + start, np.diff(ends), into + raw[:-1], np.diff(raw)]))
    return np.concatenate(chunks, axis=1)


def _runs(chunks: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """First and last chunk of each sequence that is one piece before and after."""
    columns = list(chunks.T)
    first = 0
    for number, chunk in enumerate(columns):
        after = columns[number + 1] if number + 1 < len(columns) else None
        if after is None or after[0] != chunk[0] + chunk[1] or after[2] != chunk[2] + chunk[3]:
            yield columns[first], chunk
            first = number + 1


def _decompress(frames: Numbers, source: torch.Tensor, result: torch.Tensor) -> bool:
    """Decompress frames, given as int64 [4, n] like chunks; whether all of them are as long as they should be."""
    batch = np.cumsum(frames[3]) // _BATCH
    good = torch.ones((), dtype=torch.bool, device=result.device)
    for number in np.unique(batch):
        own = frames[:, batch == number]
        addresses = own + np.array([[source.data_ptr()], [0], [result.data_ptr()], [0]], dtype=np.int64)
        table = torch.from_numpy(np.ascontiguousarray(addresses)).to(result.device)
        found = torch.full((own.shape[1],), -1, dtype=torch.int64, device=result.device)
        status = torch.full((own.shape[1],), -1, dtype=torch.int32, device=result.device)
        stream = ctypes.c_void_p(torch.cuda.current_stream(result.device).cuda_stream)
        size = ctypes.c_size_t()
        largest, total = int(own[3].max()), int(own[3].sum())
        library, options = _library(), _Options()
        _check(
            library.nvcompBatchedZstdDecompressGetTempSize(
                ctypes.c_size_t(own.shape[1]), ctypes.c_size_t(largest), options, ctypes.byref(size),
                ctypes.c_size_t(total), stream,
            )
        )  # fmt: skip
        space = torch.empty(max(size.value, 8), dtype=torch.uint8, device=result.device)
        compressed, compressed_sizes, raw, raw_sizes = (ctypes.c_void_p(row.data_ptr()) for row in table)
        _check(
            library.nvcompBatchedZstdDecompressAsync(
                compressed, compressed_sizes, raw_sizes, ctypes.c_void_p(found.data_ptr()),
                ctypes.c_size_t(own.shape[1]), ctypes.c_void_p(space.data_ptr()), size, raw, options,
                ctypes.c_void_p(status.data_ptr()), stream,
            )
        )  # fmt: skip
        good &= ((status == 0) & (found == table[3])).all()
    return bool(good)


class _Options(ctypes.Structure):
    """nvcompBatchedZstdDecompressOpts_t: all zero for the defaults."""

    _fields_ = (("backend", ctypes.c_int), ("reserved", ctypes.c_char * 60))


class _Alignments(ctypes.Structure):
    """nvcompAlignmentRequirements_t."""

    _fields_ = (("input", ctypes.c_size_t), ("output", ctypes.c_size_t), ("temp", ctypes.c_size_t))


@cache
def _library() -> ctypes.CDLL:
    try:
        module = import_module("nvidia.libnvcomp")
    except ImportError:
        raise ConfigError("decompressing on the GPU needs nvCOMP: install ddct[nvcomp]") from None
    if not module.__version__.startswith(_VERSION):
        raise ConfigError(f"nvCOMP {module.__version__} is installed, ddct knows version {_VERSION}x")
    library = module.load_library()
    if not isinstance(library, ctypes.CDLL):
        raise ConfigError("nvCOMP is installed, but its library cannot be loaded")
    needed = _Alignments()
    _check(library.nvcompBatchedZstdDecompressGetRequiredAlignments(_Options(), ctypes.byref(needed)))
    if needed.input > 1 or needed.output > 1:
        raise ConfigError("this build of nvCOMP wants frames to be aligned, which they are not")
    return library


def _check(status: int) -> None:
    if status:
        raise ConfigError(f"nvCOMP refuses to work: its error {status}")

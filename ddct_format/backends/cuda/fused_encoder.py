"""Encoding with patches of 16 × 16 and the DCT in CUDA C++, in one pass (see ``encode.cuh``)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...codec.patches import PatchGrid
from ...codec.transform import analysis_matrix, basis_matrix
from ..encoder import ACTIVITY_BINS, LARGEST_MAGNITUDE, AffineBand, QuantisedBand
from .nvrtc import Kernels, find_nvrtc, load_kernels

__all__ = ["MOST_AFFINE", "AffineRun", "LevelsRun", "Operands", "encode_affine", "encode_levels", "fits"]

_TYPES = {"BF16": 1, "F16": 2, "F32": 3}
_PATCH = 16
# As in encode.cuh and levels.cu.
_THREADS, _BLOCKS, _STRIP, _STAGES, _STAGE, _SHIFT, _TOTALS = 256, 2, 4, 2, 4096, 30, 8
_NORM = 256.0
"""Of a basis vector of the transform, about: the analysis matrix times this is nearly orthonormal."""
_FINEST = 62
"""Values in so many parts of a step still fit a byte up to the magnitude 3."""
_MOST_FIRST = 4096.0
"""What the first product of float16 numbers is multiplied with at most, so that its matrix stays within their range."""
MOST_AFFINE = 4
"""The largest alphabet whose symbols fit two bits."""
_ESCAPE_SHARE = 64
"""One symbol in so many may exceed four bits before the kernel's result is of no use."""


class _Encode(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "base", "target", "rows", "cols", "down", "across", "table", "symbols", "totals", "activity", "counts",
            "escapes", "escaped", "capacity", "alphabets", "minima", "steps",
        )),
        ("first", ctypes.c_float), ("second", ctypes.c_float),
        ("dead_zone", ctypes.c_uint32), ("fineness", ctypes.c_uint32),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operands:
    """What is encoded, on the device.

    Attributes:
        base, target: contiguous and of the same type, BF16 or F16. Or the residual, F32, as both.
        scale: what their difference is multiplied with.
    """

    base: torch.Tensor
    target: torch.Tensor
    dtype: str
    rows: int
    cols: int
    scale: float


@dataclass(frozen=True, slots=True)
class LevelsRun:
    """Results of :func:`encode_levels` on the device; a symbol of four bits that is 15 is an escape.

    Attributes:
        totals: float64; as ``levels.cu`` names them, then Σ |v| of each magnitude above 3.
        dead_zone, fineness: of the bytes in which values were summed.
    """

    symbols: torch.Tensor
    activity: torch.Tensor
    counts: torch.Tensor
    totals: torch.Tensor
    escapes: torch.Tensor
    escaped: torch.Tensor
    dead_zone: float
    fineness: float

    def collect(self) -> QuantisedBand | None:
        """The band's results on the host; None if too many symbols exceed four bits."""
        escaped = int(self.escaped)
        if escaped > self.escapes.numel():
            return None
        symbols = _fields(self.symbols, 4)
        places = self.escapes[:escaped].cpu().numpy()
        symbols[places >> 8] = (places & 0xFF).astype(np.uint8)
        counts: npt.NDArray[np.int64] = self.counts.cpu().numpy().astype(np.int64)
        sums, energy = self._sums(self.totals.cpu().numpy(), counts.sum(axis=0)[:4])
        return QuantisedBand(
            symbols=symbols.reshape(-1, _PATCH**2),
            activity=self.activity.cpu().numpy(),
            counts=counts,
            sums=sums,
            energy=energy,
        )

    def _sums(
        self, totals: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Σ |v| of each magnitude and Σ v², from sums of bytes b: |v| = (b − shift) / fineness + dead zone."""
        everything, odd, upper, three, squares, larger = totals[:6]
        offset = self.dead_zone - _SHIFT / self.fineness
        bytes_of = np.array([everything - odd - upper + three, odd - three, upper - three, three])
        sums = totals[_TOTALS:].copy()
        sums[:4] = np.maximum(bytes_of / self.fineness + counts * offset, 0)
        small = squares / self.fineness**2 + 2 * offset * everything / self.fineness + counts.sum() * offset**2
        return sums, float(max(small, 0) + larger)


@dataclass(frozen=True, slots=True)
class AffineRun:
    """Results of :func:`encode_affine` on the device, the symbols in two bits each."""

    symbols: torch.Tensor
    minima: torch.Tensor
    steps: torch.Tensor
    totals: torch.Tensor

    def collect(self) -> AffineBand:
        """The band's results on the host."""
        magnitude, energy, aligned = self.totals.tolist()
        return AffineBand(
            symbols=_fields(self.symbols, 2).reshape(-1, _PATCH**2),
            minima=self.minima.cpu().numpy(),
            steps=self.steps.cpu().numpy(),
            magnitude=magnitude * _NORM**2,
            energy=energy * _NORM**4,
            aligned=aligned * _NORM**4,
        )


def fits(patch: int, transform: str, device: torch.device) -> bool:
    """Whether these kernels encode such patches on this device."""
    return patch == _PATCH and transform == "dct" and find_nvrtc(device)


def encode_levels(operands: Operands, unit: float, dead_zone: float) -> LevelsRun:
    """Quantise in steps, as ``Encoder.quantise``, on the current stream; ``dead_zone`` is at most 0.5."""
    device, patches = operands.target.device, _grid(operands).count
    capacity = patches * _PATCH**2 // _ESCAPE_SHARE
    counts = ACTIVITY_BINS * (LARGEST_MAGNITUDE + 1) // 2
    zeros = torch.zeros(counts + _TOTALS + LARGEST_MAGNITUDE + 2, dtype=torch.int64, device=device)
    # A whole number of parts lies between zero and the dead zone, so that zeros are summed exactly.
    zone = np.float16(dead_zone)
    parts = int(_FINEST * zone) if zone > 1 / _FINEST else 0
    fineness = np.float16(parts / zone if parts else _FINEST)
    run = LevelsRun(
        symbols=torch.empty(patches * _PATCH**2 // 2, dtype=torch.uint8, device=device),
        activity=torch.empty(patches, dtype=torch.int32, device=device),
        counts=zeros[:counts].view(torch.int32).view(ACTIVITY_BINS, -1),
        totals=zeros[counts:-1].view(torch.float64),
        escapes=torch.empty(capacity, dtype=torch.int64, device=device),
        escaped=zeros[-1:],
        dead_zone=float(zone),
        fineness=float(fineness),
    )
    argument = _Encode(
        symbols=run.symbols.data_ptr(), activity=run.activity.data_ptr(), counts=run.counts.data_ptr(),
        totals=run.totals.data_ptr(), escapes=run.escapes.data_ptr(), escaped=run.escaped.data_ptr(), capacity=capacity,
        dead_zone=_pair(zone), fineness=_pair(fineness),
    )  # fmt: skip
    _launch(operands, argument, operands.scale * unit / _NORM**2, "levels.cu")
    return run


def encode_affine(operands: Operands, alphabets: torch.Tensor) -> AffineRun:
    """Quantise between each patch's extremes, as ``Encoder.quantise_affine``, on the current stream.

    Args:
        alphabets: uint8 [patches] on the device, at most 4.
    """
    device, patches = operands.target.device, _grid(operands).count
    run = AffineRun(
        symbols=torch.empty(patches * _PATCH**2 // 4, dtype=torch.uint8, device=device),
        minima=torch.empty(patches, dtype=torch.float16, device=device),
        steps=torch.empty(patches, dtype=torch.float16, device=device),
        totals=torch.zeros(3, dtype=torch.float64, device=device),
    )
    argument = _Encode(
        symbols=run.symbols.data_ptr(), minima=run.minima.data_ptr(), steps=run.steps.data_ptr(),
        totals=run.totals.data_ptr(), alphabets=alphabets.data_ptr(),
    )  # fmt: skip
    _launch(operands, argument, operands.scale / _NORM**2, "affine.cu")
    return run


def _grid(operands: Operands) -> PatchGrid:
    return PatchGrid(operands.rows, operands.cols, _PATCH)


def _pair(value: np.float16) -> int:
    return int(value.view(np.uint16)) * 0x10001


def _launch(operands: Operands, argument: _Encode, factor: float, quantiser: str) -> None:
    """Start the kernel; ``factor`` makes values to be quantised of orthonormal coefficients of the delta."""
    grid, device = _grid(operands), operands.target.device
    argument.base, argument.target = operands.base.data_ptr(), operands.target.data_ptr()
    argument.rows, argument.cols, argument.down, argument.across = grid.rows, grid.cols, grid.down, grid.across
    argument.first = factor if operands.dtype == "BF16" else min(factor, _MOST_FIRST)
    argument.second = factor / argument.first
    table = _table(device)
    argument.table = table.data_ptr()
    piece = 4 if operands.dtype == "F32" else 8
    aligned = operands.cols % piece == 0 and argument.base % 16 == 0 and argument.target % 16 == 0
    kernels = _load(device, _TYPES[operands.dtype], quantiser, aligned)
    warps = _THREADS // 32
    most = torch.cuda.get_device_properties(device).multi_processor_count * _BLOCKS
    blocks = min(most, -(-(grid.down * -(-grid.across // _STRIP)) // warps))
    with torch.cuda.device(device):
        kernels.launch("encode_strips", blocks, _THREADS, argument, _STAGES * warps * _STAGE)


@lru_cache(maxsize=64)
def _load(device: torch.device, kind: int, quantiser: str, vector: bool) -> Kernels:
    options = ("--std=c++17", f"-DTYPE={kind}", f"-DVECTOR={int(vector)}", f"-DSTAGES={_STAGES}", f"-DBLOCKS={_BLOCKS}")
    source = "\n".join(Path(__file__).with_name(name).read_text() for name in ("warp.cuh", "encode.cuh", quantiser))
    with torch.cuda.device(device):
        return load_kernels(source, options, device)


@lru_cache(maxsize=16)
def _table(device: torch.device) -> torch.Tensor:
    """float32 [28, 32]: what each lane holds of the matrices of all products, as ``encode.cuh`` takes them.

    16 numbers of the two forward matrices, then 12 pairs of float16: ``Inverse`` of ``affine.cu``.
    """
    analysis = analysis_matrix("dct", _PATCH) * _NORM
    basis = basis_matrix("dct", _PATCH).astype(np.float64) / _NORM
    norms = np.square(basis).sum(axis=1)
    lanes = []
    for lane in range(32):
        g, t = divmod(lane, 4)
        halves = [(n % 2, n // 2) for n in range(4)]  # of an operand's rows, and of its columns
        out = [4 * (g // 2) + g % 2 + 2 * tile for tile in range(2)]  # the column that row g of each half is
        forward = [analysis[out[tile], 2 * t + 8 * half + e] for tile, half in halves for e in range(2)]
        forward += [analysis[g + 8 * down, 2 * t + 8 * half + e] for down, half in halves for e in range(2)]
        pairs = [[basis[4 * t + 2 * half + e, g + 8 * down] for e in range(2)] for down, half in halves]
        pairs += [[basis[2 * t + 8 * half + e, 8 * tile + g] for e in range(2)] for half, tile in halves]
        pairs += [[norms[g + 8 * h] * norms[4 * t + 2 * n + e] for e in range(2)] for n in range(2) for h in range(2)]
        words = np.array(pairs, dtype=np.float16).view(np.uint32)[:, 0]
        lanes.append(np.concatenate([np.array(forward, dtype=np.float32).view(np.uint32), words]))
    table = np.ascontiguousarray(np.array(lanes).T)
    return torch.from_numpy(table.view(np.int32)).view(torch.float32).to(device)


def _fields(packed: torch.Tensor, width: int) -> npt.NDArray[np.uint8]:
    """Symbols of ``width`` bits, the lowest of a byte first, as a byte each on the host."""
    mask = (1 << width) - 1
    fields = torch.stack([packed >> shift & mask for shift in range(0, 8, width)], dim=1)
    symbols: npt.NDArray[np.uint8] = fields.cpu().numpy().reshape(-1)
    return symbols

"""Encoding with patches of 16 × 16 and the DCT in CUDA C++, in one pass (see ``encode.cu``)."""

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

_SOURCES = ("warp.cuh", "encode.cu")
_TYPES = {"none": 0, "BF16": 1, "F16": 2, "F32": 3}
_PATCH = 16
# As in encode.cu.
_THREADS, _BLOCKS, _STRIP, _STAGE = 256, 3, 4, 4096
_NORM = 1024.0
"""What the analysis matrix is multiplied with, so that its entries are about 1."""
_ENERGY = 65536.0
"""Of a basis vector of the patch: a delta times the scale and the unit, over this, is in steps."""
MOST_AFFINE = 4
"""The largest alphabet whose symbols fit two bits."""
_ESCAPE_SHARE = 64
"""One symbol in so many may exceed four bits before the kernel's result is of no use."""


class _Encode(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "base", "target", "rows", "cols", "down", "across", "table", "symbols", "activity", "counts", "totals",
            "escapes", "escaped", "capacity", "alphabets", "minima", "steps",
        )),
        *((name, ctypes.c_float) for name in ("up", "factor", "bias", "scale")),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operands:
    """What is encoded, on the device.

    Attributes:
        base, target: contiguous; BF16 or F16. Or a base of ``none`` and the residual as an F32 target.
        scale: what their difference is multiplied with.
    """

    base: torch.Tensor
    base_dtype: str
    target: torch.Tensor
    dtype: str
    rows: int
    cols: int
    scale: float


@dataclass(frozen=True, slots=True)
class LevelsRun:
    """Results of :func:`encode_levels` on the device; a symbol of four bits that is 15 is an escape."""

    symbols: torch.Tensor
    activity: torch.Tensor
    counts: torch.Tensor
    totals: torch.Tensor
    escapes: torch.Tensor
    escaped: torch.Tensor

    def collect(self) -> QuantisedBand | None:
        """The band's results on the host; None if too many symbols exceed four bits."""
        escaped = int(self.escaped)
        if escaped > self.escapes.numel():
            return None
        symbols = _fields(self.symbols, 4)
        places = self.escapes[:escaped].cpu().numpy()
        symbols[places >> 8] = (places & 0xFF).astype(np.uint8)
        totals: npt.NDArray[np.float64] = self.totals.cpu().numpy()
        sums = totals[: LARGEST_MAGNITUDE + 1].copy()
        sums[0] = max(0.0, sums[0] - sums[1:].sum())
        return QuantisedBand(
            symbols=symbols.reshape(-1, _PATCH**2),
            activity=self.activity.cpu().numpy(),
            counts=self.counts.cpu().numpy().astype(np.int64),
            sums=sums,
            energy=float(totals[-1]),
        )


@dataclass(frozen=True, slots=True)
class AffineRun:
    """Results of :func:`encode_affine` on the device, the symbols in two bits each."""

    symbols: torch.Tensor
    minima: torch.Tensor
    steps: torch.Tensor
    totals: torch.Tensor

    def collect(self) -> AffineBand:
        """The band's results on the host."""
        magnitude, energy, aligned, _ = self.totals.tolist()
        return AffineBand(
            symbols=_fields(self.symbols, 2).reshape(-1, _PATCH**2),
            minima=self.minima.cpu().numpy(),
            steps=self.steps.cpu().numpy(),
            magnitude=magnitude,
            energy=energy,
            aligned=aligned,
        )


def fits(patch: int, transform: str, device: torch.device) -> bool:
    """Whether these kernels encode such patches on this device."""
    return patch == _PATCH and transform == "dct" and find_nvrtc(device)


def encode_levels(operands: Operands, unit: float, dead_zone: float) -> LevelsRun:
    """Quantise in steps, as ``Encoder.quantise``, on the current stream; ``dead_zone`` is at most 0.5."""
    device, patches = operands.target.device, _grid(operands).count
    capacity = patches * _PATCH**2 // _ESCAPE_SHARE
    counts = ACTIVITY_BINS * (LARGEST_MAGNITUDE + 1) // 2
    zeros = torch.zeros(counts + LARGEST_MAGNITUDE + 3, dtype=torch.int64, device=device)
    run = LevelsRun(
        symbols=torch.empty(patches * _PATCH**2 // 2, dtype=torch.uint8, device=device),
        activity=torch.empty(patches, dtype=torch.int32, device=device),
        counts=zeros[:counts].view(torch.int32).view(ACTIVITY_BINS, -1),
        totals=zeros[counts:-1].view(torch.float64),
        escapes=torch.empty(capacity, dtype=torch.int64, device=device),
        escaped=zeros[-1:],
    )
    argument = _Encode(
        symbols=run.symbols.data_ptr(), activity=run.activity.data_ptr(), counts=run.counts.data_ptr(),
        totals=run.totals.data_ptr(), escapes=run.escapes.data_ptr(), escaped=run.escaped.data_ptr(), capacity=capacity,
        up=operands.scale * unit / _ENERGY,
        factor=_ENERGY / _NORM**2, bias=0.5 - dead_zone,
    )  # fmt: skip
    _launch(operands, argument, affine=False)
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
        totals=torch.zeros(4, dtype=torch.float64, device=device),
    )
    argument = _Encode(
        symbols=run.symbols.data_ptr(), minima=run.minima.data_ptr(), steps=run.steps.data_ptr(),
        totals=run.totals.data_ptr(), alphabets=alphabets.data_ptr(), factor=operands.scale / _NORM**2,
        scale=operands.scale,
    )  # fmt: skip
    _launch(operands, argument, affine=True)
    return run


def _grid(operands: Operands) -> PatchGrid:
    return PatchGrid(operands.rows, operands.cols, _PATCH)


def _launch(operands: Operands, argument: _Encode, *, affine: bool) -> None:
    grid, device = _grid(operands), operands.target.device
    argument.base, argument.target = operands.base.data_ptr(), operands.target.data_ptr()
    argument.rows, argument.cols, argument.down, argument.across = grid.rows, grid.cols, grid.down, grid.across
    table = _table(device)
    argument.table = table.data_ptr()
    aligned = operands.cols % 8 == 0 and argument.base % 16 == 0 and argument.target % 16 == 0
    kernels = _load(device, _TYPES[operands.base_dtype], _TYPES[operands.dtype], affine, aligned)
    warps = _THREADS // 32
    most = torch.cuda.get_device_properties(device).multi_processor_count * _BLOCKS
    blocks = min(most, -(-(grid.down * -(-grid.across // _STRIP)) // warps))
    with torch.cuda.device(device):
        kernels.launch("encode_strips", blocks, _THREADS, argument, 2 * warps * _STAGE)


@lru_cache(maxsize=64)
def _load(device: torch.device, base: int, target: int, affine: bool, vector: bool) -> Kernels:
    options = ("--std=c++17", f"-DBASE={base}", f"-DTARGET={target}", f"-DAFFINE={int(affine)}",
               f"-DVECTOR={int(vector)}")  # fmt: skip
    source = "\n".join(Path(__file__).with_name(name).read_text() for name in _SOURCES)
    with torch.cuda.device(device):
        return load_kernels(source, options, device)


@lru_cache(maxsize=16)
def _table(device: torch.device) -> torch.Tensor:
    """int32 [32, 32]: the operands of all products, as ``encode.cu`` takes them.

    24 words for each lane, as ``Tables`` names them, word by word; then 8 of low parts, lane by lane.
    """
    exact = analysis_matrix("dct", _PATCH) * _NORM
    analysis = exact.astype(np.float16).astype(np.float64)
    low = exact - analysis
    basis = basis_matrix("dct", _PATCH).astype(np.float64)
    column = basis.sum(axis=0)
    words, lows = [], []
    for lane in range(32):
        g, t = divmod(lane, 4)
        places = [(g + 8 * (i % 2), 2 * t + 8 * (i // 2)) for i in range(4)]  # row and first column of an operand
        out = [4 * (g // 2) + 2 * tile + g % 2 for tile in range(2)]
        halves = [[analysis[m, k + e] for e in range(2)] for m, k in places]
        halves += [[analysis[out[n // 2], 2 * t + 8 * (n % 2) + e] for e in range(2)] for n in range(4)]
        halves += [[basis[k + e, m] / 64 for e in range(2)] for m, k in places]
        halves += [[basis[4 * t + 2 * (n % 2) + e, g + 8 * (n // 2)] for e in range(2)] for n in range(4)]
        sums = column[[g, g + 8, 2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9, 0, 0]]
        rest = [[low[m, k + e] for e in range(2)] for m, k in places]
        rest += [[low[out[n // 2], 2 * t + 8 * (n % 2) + e] for e in range(2)] for n in range(4)]
        lows.append(np.array(rest, dtype=np.float16).view(np.uint32)[:, 0])
        words.append(
            [np.array(halves, dtype=np.float16).view(np.uint32)[:, 0], sums.astype(np.float32).view(np.uint32)]
        )
    by_word = np.array([np.concatenate(lane) for lane in words]).T
    table = np.concatenate([by_word, np.array(lows).reshape(-1, 32)])
    return torch.from_numpy(table.view(np.int32)).to(device)


def _fields(packed: torch.Tensor, width: int) -> npt.NDArray[np.uint8]:
    """Symbols of ``width`` bits, the lowest of a byte first, as a byte each on the host."""
    mask = (1 << width) - 1
    fields = torch.stack([packed >> shift & mask for shift in range(0, 8, width)], dim=1)
    symbols: npt.NDArray[np.uint8] = fields.cpu().numpy().reshape(-1)
    return symbols

"""An encoder's primitives on the device, through torch and, for the usual patches, ``encode.cuh``; the host packs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...codec.floats import FLOAT_WIDTHS
from ...codec.transform import analysis_matrix, basis_matrix
from ...codec.ulp import UlpParams
from ..encoder import (
    ACTIVITY_BINS,
    BAND_WEIGHTS,
    BIN_EDGES,
    LARGEST_MAGNITUDE,
    AffineBand,
    Band,
    DeltaSums,
    PowerStep,
    QuantisedBand,
    ResidualPlan,
    UlpCoding,
    UlpStreams,
)
from ..native_encoder import NativeEncoder
from ..numpy_encoder import LARGEST_SIZE
from .device import is_out_of_memory, usable_memory
from .fused_encoder import MOST_AFFINE, Operands, encode_affine, encode_levels, fits
from .layer import BITS
from .ulp_elements import Grouping, predict
from .ulp_encode import copy_bits, count_symbols, scatter_symbols

__all__ = ["DTYPES", "DeviceEncoder"]

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_NARROW = ("BF16", "F16")
_SYMBOLS = LARGEST_MAGNITUDE + 1
_MOST_WEIGHTS = 1 << 23
"""Of a band: starting work on the device takes the interpreter as long as the work itself takes on a few million."""
_BYTES_PER_WEIGHT = 64
"""That a band takes on the device at most."""
_BANDS = 16
"""That are there at a time, one for each thread, for which there should be memory."""

Result = TypeVar("Result")


class DeviceEncoder(NativeEncoder):
    """Bands are uploaded through pinned memory, on a stream of the calling thread's own.

    Where the device has no memory left, the host computes the band.

    Args:
        devices: CUDA devices, which share what there is to do by thread; tests may pass the CPU.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._turns = cycle(devices)
        self._local = threading.local()
        self.band_weights = max(BAND_WEIGHTS, min(_MOST_WEIGHTS, *map(_weights_that_fit, devices)))

    @property
    def picks_rows(self) -> bool:
        return False

    @property
    def device(self) -> torch.device:
        """The calling thread's: each takes the next one when it first asks."""
        device: torch.device | None = getattr(self._local, "device", None)
        if device is None:
            device = self._local.device = next(self._turns)
        return device

    def difference(self, band: Band) -> npt.NDArray[np.float32]:
        return self._or_host(lambda: _host(self._delta(band)), lambda: super(DeviceEncoder, self).difference(band))

    def delta_sums(self, band: Band) -> DeltaSums:
        def compute() -> DeltaSums:
            absolute = self._delta(band).abs()
            largest = float(absolute.max()) if absolute.numel() else 0.0
            if not np.isfinite(largest):
                return DeltaSums(0.0, 0.0, largest, False)
            wide = absolute.double()
            return DeltaSums(float((wide * wide).sum()), float(wide.sum()), largest, True)

        return self._or_host(compute, lambda: super(DeviceEncoder, self).delta_sums(band))

    def power_step(self, band: Band, scale: float, vectors: npt.NDArray[np.float32]) -> PowerStep:
        def compute() -> PowerStep:
            matrix = self._delta(band) * scale
            projected = matrix @ self.upload(vectors)
            squares = (matrix * matrix).double()
            return PowerStep(
                _host(projected), _host(matrix.T @ projected), _host(squares.sum(dim=1)), _host(squares.sum(dim=0))
            )

        return self._or_host(compute, lambda: super(DeviceEncoder, self).power_step(band, scale, vectors))

    def quantise(
        self,
        band: Band,
        plan: ResidualPlan,
        left: npt.NDArray[np.float32],
        out: npt.NDArray[np.uint8] | None = None,
    ) -> QuantisedBand:
        def compute() -> QuantisedBand:
            residual = None
            if fits(plan.patch, plan.transform, self.device) and 0 <= plan.dead_zone <= 0.5:
                plain = not left.shape[1] and plan.col_order is None and _alike(band)
                if plain:
                    operands = self._operands(band, plan.scale)
                else:
                    residual = self._residual(band, plan, left)
                    operands = Operands(residual, residual, "F32", left.shape[0], band.cols, 1.0)
                found = encode_levels(operands, plan.unit, plan.dead_zone).collect()
                if found is not None:
                    return found
            residual = self._residual(band, plan, left) if residual is None else residual
            values = self._coefficients(residual, plan.patch, plan.transform) * plan.unit
            absolute = values.abs()
            magnitudes = (absolute + (0.5 - plan.dead_zone)).clamp_max(LARGEST_MAGNITUDE).to(torch.uint8)
            symbols = 2 * magnitudes - ((values > 0) & (magnitudes > 0)).to(torch.uint8)
            activity = magnitudes.sum(dim=1, dtype=torch.int32)
            bins = torch.bucketize(activity, torch.from_numpy(BIN_EDGES).to(self.device), right=True, out_int32=True)
            joint = torch.where(activity == 0, 0, bins)[:, None] * _SYMBOLS + magnitudes
            counts = torch.bincount(joint.reshape(-1), minlength=ACTIVITY_BINS * _SYMBOLS)
            sums = torch.bincount(magnitudes.reshape(-1), absolute.reshape(-1).double(), minlength=_SYMBOLS)
            return QuantisedBand(
                symbols=_host(symbols),
                activity=_host(activity),
                counts=_host(counts).reshape(ACTIVITY_BINS, -1),
                sums=_host(sums),
                energy=float((absolute * absolute).sum(dtype=torch.float64)),
            )

        return self._or_host(compute, lambda: super(DeviceEncoder, self).quantise(band, plan, left))

    def patch_energies(self, band: Band, patch: int) -> npt.NDArray[np.float64]:
        def compute() -> npt.NDArray[np.float64]:
            patches = _cut(self._delta(band), patch).double()
            return _host((patches * patches).sum(dim=(1, 2)))

        return self._or_host(compute, lambda: super(DeviceEncoder, self).patch_energies(band, patch))

    def quantise_affine(
        self, band: Band, patch: int, transform: str, scale: float, alphabets: npt.NDArray[np.uint8]
    ) -> AffineBand:
        def compute() -> AffineBand:
            narrow = _alike(band) and int(alphabets.max(initial=0)) <= MOST_AFFINE
            if narrow and fits(patch, transform, self.device):
                return encode_affine(self._operands(band, scale), self.upload(alphabets)).collect()
            delta = self._delta(band) * scale
            values = self._coefficients(delta, patch, transform)
            sizes = self.upload(alphabets).float()[:, None]
            coded, lowest, highest = sizes > 1, values.amin(1, keepdim=True), values.amax(1, keepdim=True)
            low = torch.where(coded, lowest, 0).half()
            step = torch.where(coded, (highest - lowest) / (sizes - 1).clamp_min(1), 0).half()
            minimum, width = low.float(), step.float()
            ratio = torch.where(width > 0, (values - minimum) / torch.where(width > 0, width, 1), 0)
            symbols = ratio.round().clamp_min(0).minimum(sizes - 1)
            levels = torch.where(coded, symbols * width + minimum, 0).view(-1, patch, patch)
            if transform != "none":
                basis = torch.from_numpy(basis_matrix(transform, patch).astype(np.float32)).to(self.device)
                levels = basis.T @ levels @ basis
            decoded = _join(levels, *delta.shape).double()
            return AffineBand(
                symbols=_host(symbols.to(torch.uint8)),
                minima=_host(low).reshape(-1),
                steps=_host(step).reshape(-1),
                magnitude=float(decoded.abs().sum()),
                energy=float((decoded * decoded).sum()),
                aligned=float((decoded * delta).sum()),
            )

        return self._or_host(
            compute, lambda: super(DeviceEncoder, self).quantise_affine(band, patch, transform, scale, alphabets)
        )

    def ulp_row_sizes(self, band: Band, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        def compute() -> npt.NDArray[np.float32]:
            predicted = self.upload(band.base).view(DTYPES[band.base_dtype]).to(DTYPES[band.dtype]).float()
            sizes = (self.upload(band.target).view(DTYPES[band.dtype]).float() - predicted).abs()
            sizes = torch.where(sizes.isfinite(), sizes.clamp_max(LARGEST_SIZE), 0)
            return _host(sizes.view(-1, band.cols) @ self.upload(weights))

        return self._or_host(compute, lambda: super(DeviceEncoder, self).ulp_row_sizes(band, weights))

    def count_ulp(self, band: Band, coding: UlpCoding, counts: npt.NDArray[np.int64]) -> None:
        def compute() -> None:
            found = _host(count_symbols(*self._ulp_elements(band, coding, None)))
            np.add(counts, found, out=counts)

        self._or_host(compute, lambda: super(DeviceEncoder, self).count_ulp(band, coding, counts))

    def measure_ulp(self, band: Band, coding: UlpCoding, group_of: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        counts = np.zeros((group_of.size, 256), dtype=np.int64)
        self.count_ulp(band, coding, counts)
        lengths = UlpParams(band.dtype, 1, band.cols, shift=coding.shift).extra_bits()
        weights = counts.sum(axis=1), counts @ lengths
        return np.stack([np.bincount(group_of, weight, 256) for weight in weights]).astype(np.int64)

    def scatter_ulp(self, band: Band, coding: UlpCoding, streams: UlpStreams) -> None:
        def compute() -> None:
            scattered = scatter_symbols(*self._ulp_elements(band, coding, streams.group_of))
            extra = _host(scattered.extra).view(np.uint8)
            bit_starts, starts = scattered.bit_starts.tolist(), scattered.starts.tolist()
            symbols = self.download(scattered.symbols)
            for group, ((first, last), (bit, bit_end)) in enumerate(
                zip(pairwise(starts), pairwise(bit_starts), strict=True)
            ):
                place, position = int(streams.places[group]), int(streams.positions[group])
                streams.symbols[place : place + last - first] = symbols[first:last]
                copy_bits(extra, bit, bit_end - bit, streams.extra, position)
                streams.places[group] += last - first
                streams.positions[group] += bit_end - bit

        self._or_host(compute, lambda: super(DeviceEncoder, self).scatter_ulp(band, coding, streams))

    def _ulp_elements(
        self, band: Band, coding: UlpCoding, group_of: npt.NDArray[np.uint8] | None
    ) -> tuple[Grouping, torch.Tensor, int, int]:
        """What ``ulp_encode`` takes of a band."""
        target = self.upload(band.target)
        grouping = Grouping(
            predicted=predict(self.upload(band.base).view(BITS[band.base_dtype]), band.base_dtype, band.dtype),
            dtype=band.dtype,
            cols=band.cols,
            row_keys=self.upload(coding.row_keys) if coding.row_keys.size else None,
            col_keys=self.upload(coding.col_keys) if coding.col_keys.size else None,
            group_of=target if group_of is None else self.upload(group_of),
            groups=1 if group_of is None else int(group_of.max()) + 1,
        )
        mantissa = UlpParams(band.dtype, 1, band.cols, shift=coding.shift).mantissa
        return grouping, target.view(BITS[band.dtype]), coding.shift, mantissa

    def upload(self, data: npt.NDArray[Any]) -> torch.Tensor:
        """An array on the device; ordered before what follows on the thread's stream."""
        source = np.ascontiguousarray(data)
        staged = torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        staged.numpy()[:] = source.reshape(-1).view(np.uint8)
        placed = staged.to(self.device, non_blocking=True)
        return placed.view(torch.from_numpy(np.empty(0, dtype=source.dtype)).dtype).view(source.shape)

    def download(self, data: torch.Tensor, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """The bytes of a contiguous tensor, in ``out`` if it is given."""
        data = data.view(-1).view(torch.uint8)
        if self.device.type == "cuda":
            staged = torch.empty(data.numel(), dtype=torch.uint8, pin_memory=True)
            staged.copy_(data, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            data = staged
        if out is None:
            return data.numpy()
        out[:] = data.numpy()
        return out

    @contextmanager
    def stream_entered(self) -> Iterator[None]:
        """Work on the calling thread's stream."""
        if self.device.type != "cuda":
            yield
            return
        stream = getattr(self._local, "stream", None)
        if stream is None:
            stream = self._local.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            yield

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Work on the calling thread's stream; what was started on it is done in the end."""
        with self.stream_entered():
            yield
            if self.device.type == "cuda":
                torch.cuda.current_stream().synchronize()

    def _or_host(self, compute: Callable[[], Result], on_host: Callable[[], Result]) -> Result:
        try:
            with self.on_stream():
                return compute()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            return on_host()

    def _delta(self, band: Band) -> torch.Tensor:
        target = self.upload(band.target).view(DTYPES[band.dtype]).float()
        return (target - self.upload(band.base).view(DTYPES[band.base_dtype]).float()).view(-1, band.cols)

    def _operands(self, band: Band, scale: float) -> Operands:
        base, target = (self.upload(data) for data in (band.base, band.target))
        rows = band.target.size // (band.cols * FLOAT_WIDTHS[band.dtype])
        return Operands(base, target, band.dtype, rows, band.cols, scale)

    def _residual(self, band: Band, plan: ResidualPlan, left: npt.NDArray[np.float32]) -> torch.Tensor:
        residual = self._delta(band) * plan.scale
        if left.shape[1]:
            residual = residual - self.upload(left) @ self.upload(plan.right)
        if plan.col_order is not None:
            residual = residual[:, self.upload(plan.col_order)]
        return residual.contiguous()

    def _coefficients(self, view: torch.Tensor, patch: int, transform: str) -> torch.Tensor:
        patches = _cut(view, patch)
        if transform != "none":
            analysis = torch.from_numpy(analysis_matrix(transform, patch).astype(np.float32)).to(self.device)
            patches = analysis @ patches @ analysis.T
        return patches.reshape(len(patches), -1)


def _weights_that_fit(device: torch.device) -> int:
    if device.type != "cuda":
        return _MOST_WEIGHTS
    return usable_memory(device) // (_BANDS * _BYTES_PER_WEIGHT)


def _alike(band: Band) -> bool:
    """Whether a kernel may subtract the base from the target."""
    return band.base_dtype == band.dtype and band.dtype in _NARROW


def _cut(view: torch.Tensor, patch: int) -> torch.Tensor:
    down, across = -(-view.shape[0] // patch), -(-view.shape[1] // patch)
    padded = torch.nn.functional.pad(view, (0, across * patch - view.shape[1], 0, down * patch - view.shape[0]))
    return padded.view(down, patch, across, patch).transpose(1, 2).reshape(-1, patch, patch)


def _join(patches: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    patch = patches.shape[1]
    across = -(-cols // patch)
    return patches.view(-1, across, patch, patch).transpose(1, 2).reshape(-1, across * patch)[:rows, :cols]


def _host(tensor: torch.Tensor) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = tensor.cpu().numpy()
    return result

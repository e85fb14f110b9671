"""The backend ``cuda``: bytes come from host memory and go back there; the arithmetic is on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from ... import native
from ...codec.dctq import DctqParams, DctqPayload, StoredPayload, build_sections, split_payload
from ...codec.floats import FLOAT_WIDTHS
from ...codec.patches import PatchGrid
from ...codec.ulp import UlpParams
from ..encoder import Band
from ..interface import Comparison, Decoder
from ..native_cpu import NativeCpuBackend
from ..torch_cpu import TorchCpuBackend
from .device import is_out_of_memory
from .encoder import DeviceEncoder
from .fused import FusedLayer, FusedPlan
from .layer import BITS, DeviceLayer, LayerPlan, plan_layer
from .part import Part
from .ulp_decode import decode_ulp

__all__ = ["CudaBackend"]

_TILES = (32 << 20, 2 << 20)
"""Bytes of the base that are on the device at a time; the second when there is not enough memory for the first."""
_SLOTS = 2


class CudaBackend(DeviceEncoder):
    """Decodes and transforms on CUDA devices, for any number of threads, each with a stream of its own.

    Args:
        devices: where, each thread on one of them; tests may pass the CPU, on which Triton's interpreter runs the same
            kernels.
    """

    name = "cuda"

    def delta(
        self, base: npt.NDArray[np.uint8], base_dtype: str, target: npt.NDArray[np.uint8], dtype: str
    ) -> npt.NDArray[np.float32]:
        elements = target.size // FLOAT_WIDTHS[dtype]
        return self.difference(Band(base, base_dtype, target, dtype, max(1, elements))).reshape(-1)

    def coefficients(self, view: npt.NDArray[np.float32], grid: PatchGrid, transform: str) -> npt.NDArray[np.float32]:
        with self.on_stream():
            values = self._coefficients(self.upload(view), grid.patch, transform)
            result: npt.NDArray[np.float32] = values.view(-1, grid.patch, grid.patch).cpu().numpy()
        return result

    def decode_delta(self, params: DctqParams, payload: DctqPayload) -> npt.NDArray[np.float32]:
        with self.on_stream():
            result: npt.NDArray[np.float32] = self._layer(params, _stored(params, payload)).delta().cpu().numpy()
        return result

    def apply(
        self,
        params: DctqParams,
        payload: DctqPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        return self.apply_stored(params, _stored(params, payload), base, base_dtype, dtype)

    def apply_stored(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        out = np.empty(base.size // FLOAT_WIDTHS[base_dtype] * FLOAT_WIDTHS[dtype], dtype=np.uint8)
        for _ in self.apply_bands(params, stored, base, base_dtype, dtype, out):
            pass
        return out

    def apply_bands(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
        out: npt.NDArray[np.uint8],
        comparison: Comparison | None = None,
    ) -> Iterator[int]:
        for tile in _TILES:
            try:
                steps = self._tiles(params, stored, base, base_dtype, dtype, out, tile)
                while True:
                    with self.stream_entered():  # not while the caller has its turn
                        done = next(steps, None)
                    if done is None:
                        return
                    yield done
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # Other processes may hold the device's memory: less of it gives the same bits, only later.
                torch.cuda.empty_cache()
        yield from _cpu().apply_bands(params, stored, base, base_dtype, dtype, out, comparison)

    def apply_ulp_bands(
        self,
        params: UlpParams,
        payload: npt.NDArray[np.uint8],
        before: npt.NDArray[np.uint8],
        before_dtype: str,
        out: npt.NDArray[np.uint8],
    ) -> Iterator[int]:
        def compute() -> bool:
            source = self.upload(before)
            target = source if before_dtype == params.dtype else self._empty(out.size)
            decode_ulp(params, payload, self.upload(payload), source, before_dtype, target)
            self.download(target, out)
            return True

        if self._or_host(compute, lambda: False):
            yield out.size
        else:
            yield from _cpu().apply_ulp_bands(params, payload, before, before_dtype, out)

    def _tiles(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
        out: npt.NDArray[np.uint8],
        tile: int,
    ) -> Iterator[int]:
        """Rows in tiles: while one is copied by the host, the next one is on its way."""
        plan = plan_layer(params, stored, self.device)
        grid = params.grid
        before, after = grid.cols * FLOAT_WIDTHS[base_dtype], grid.cols * FLOAT_WIDTHS[dtype]
        rows = max(grid.patch, tile // before // grid.patch * grid.patch)
        if isinstance(plan, LayerPlan) or params.row_keys or rows >= grid.rows:
            source = self.upload(base).view(BITS[base_dtype])
            target = source if base_dtype == dtype else self._empty(grid.rows * after).view(BITS[dtype])
            self._build(plan).apply(source, base_dtype, target, dtype)
            self.download(target, out)
            yield out.size
            return
        layer = self._build(plan)
        assert isinstance(layer, FusedLayer)
        slots = [_Slot(rows * before, rows * after, self.device) for _ in range(min(_SLOTS, -(-grid.rows // rows)))]
        under_way: list[tuple[_Slot, int, int]] = []
        for number, first in enumerate(range(0, grid.rows, rows)):
            slot, stop = slots[number % len(slots)], min(first + rows, grid.rows)
            if len(under_way) == len(slots):
                yield _collect(*under_way.pop(0), after, out)
            slot.run(layer, base[first * before : stop * before], base_dtype, dtype, Part(first, stop, 0, grid.cols))
            under_way.append((slot, first, stop))
        for item in under_way:
            yield _collect(*item, after, out)

    def _layer(self, params: DctqParams, stored: StoredPayload) -> DeviceLayer | FusedLayer:
        return self._build(plan_layer(params, stored, self.device))

    def _build(self, plan: LayerPlan | FusedPlan) -> DeviceLayer | FusedLayer:
        staged = torch.empty(plan.upload_size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        plan.write(staged.numpy())
        buffer = self._empty(plan.size)
        buffer[: plan.upload_size].copy_(staged, non_blocking=True)
        return plan.build(buffer)

    def _empty(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)


class _Slot:
    """Memory for one tile, on the device and pinned on the host."""

    def __init__(self, before: int, after: int, device: torch.device) -> None:
        self._source = torch.empty(before, dtype=torch.uint8, device=device)
        self._target = torch.empty(after, dtype=torch.uint8, device=device)
        self._sent = torch.empty(before, dtype=torch.uint8, pin_memory=True)
        self.received = torch.empty(after, dtype=torch.uint8, pin_memory=True)
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def run(self, layer: FusedLayer, base: npt.NDArray[np.uint8], base_dtype: str, dtype: str, part: Part) -> None:
        self._sent.numpy()[: base.size] = base
        size = part.rows * part.cols * FLOAT_WIDTHS[dtype]
        self._source[: base.size].copy_(self._sent[: base.size], non_blocking=True)
        layer.apply(self._source, base_dtype, self._target, dtype, part)
        self.received[:size].copy_(self._target[:size], non_blocking=True)
        self.done.record()


def _collect(slot: _Slot, first: int, stop: int, width: int, out: npt.NDArray[np.uint8]) -> int:
    slot.done.synchronize()
    out[first * width : stop * width] = slot.received.numpy()[: (stop - first) * width]
    return stop * width


def _cpu() -> Decoder:
    return TorchCpuBackend() if native.core is None else NativeCpuBackend(native.core)


def _stored(params: DctqParams, payload: DctqPayload) -> StoredPayload:
    return split_payload(params, np.concatenate(build_sections(params, payload)))

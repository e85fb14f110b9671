"""Layers decoded on CUDA devices by several host threads, each with a stream and a pinned buffer of its own.

While one tensor's kernels run, other threads read, decompress and check the next ones. Pinned memory is bounded by the
number of threads times the largest payload, and a payload above ``LARGEST_PINNED`` is not pinned.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import torch

from ..backends.cuda.fused import FusedPlan
from ..backends.cuda.layer import LayerPlan, plan_layer
from ..backends.cuda.part import Part
from ..codec import dctq
from ..container.records import TensorRecord
from ..native.inflate import inflate
from ..pipeline.archive import Archive
from .parts import TensorPart

__all__ = ["LARGEST_PINNED", "DeviceDecoder"]

LARGEST_PINNED = 256 << 20
_HEAD = 192 << 10
"""More than the tables of 255 classes take."""


class _Lane:
    """What one thread uses on one device: kept for the next archive, for streams own what is allocated on them."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.uploaded = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._staged = torch.empty(0, dtype=torch.uint8)

    def staged(self, size: int) -> torch.Tensor:
        """Memory of the host whose last contents have arrived on the device."""
        self.uploaded.synchronize()
        if self._staged.numel() < size:
            self._staged = torch.empty(size, dtype=torch.uint8, pin_memory=size <= LARGEST_PINNED)
        return self._staged


_idle: dict[torch.device, list[_Lane]] = {}


class DeviceDecoder:
    """Decodes first layers of ``dctq.v1``; threads may call it at once. :meth:`join` before results are used.

    Args:
        devices: on which there are tensors; what their current streams hold by now comes first.
    """

    def __init__(self, archive: Archive, devices: set[torch.device]) -> None:
        self._archive = archive
        self._lanes: dict[tuple[int, torch.device], _Lane] = {}
        self._portable = threading.Lock()  # Triton compiles when it first launches a kernel
        self._started = {device: torch.cuda.current_stream(device).record_event() for device in devices}

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """The calling thread's stream."""
        return self._lane(device).stream

    def decode(self, record: TensorRecord, base: torch.Tensor, result: torch.Tensor, part: TensorPart) -> None:
        """Add a tensor's first layer, on the calling thread's stream.

        Args:
            base, result: contiguous, on one device; they may be the same if the element types are equal.
            part: of the full tensor, what they hold.
        """
        lane = self._lane(base.device)
        params = dctq.DctqParams.parse(record.layers[0].params, record.elements)
        staged, payload = self._read(record, lane)
        plan = plan_layer(params, dctq.split_payload(params, payload), base.device)
        plan.write(staged.numpy())
        with torch.cuda.device(base.device), torch.cuda.stream(lane.stream):
            buffer = torch.empty(plan.size, dtype=torch.uint8, device=base.device)
            buffer[: plan.upload_size].copy_(staged[: plan.upload_size], non_blocking=True)
            lane.uploaded.record(lane.stream)
            types = (record.base_dtype or record.dtype, record.dtype)
            rectangle = part.matrix(params.grid.cols)
            if isinstance(plan, FusedPlan) and (part.whole or rectangle):
                layer = plan.build(buffer)
                layer.apply(base, types[0], result, types[1], None if part.whole or not rectangle else Part(*rectangle))
                return
            full_base, full_result = base, result
            if not part.whole:  # a layer is added element by element: what lies around the part does not matter
                full_base = torch.zeros(part.full_shape, dtype=base.dtype, device=base.device)
                full_base[part.index] = base
                full_result = torch.empty(part.full_shape, dtype=result.dtype, device=base.device)
            self._apply_whole(plan, buffer, full_base, types[0], full_result, types[1])
            if not part.whole:
                result.copy_(full_result[part.index])

    def join(self) -> None:
        """Make the devices' current streams wait for everything that was decoded; no thread may decode any more."""
        for (_, device), lane in self._lanes.items():
            torch.cuda.current_stream(device).wait_stream(lane.stream)
            _idle.setdefault(device, []).append(lane)
        self._lanes = {}

    def _apply_whole(
        self,
        plan: LayerPlan | FusedPlan,
        buffer: torch.Tensor,
        base: torch.Tensor,
        base_dtype: str,
        result: torch.Tensor,
        dtype: str,
    ) -> None:
        if isinstance(plan, FusedPlan):
            plan.build(buffer).apply(base, base_dtype, result, dtype)
            return
        with self._portable:
            plan.build(buffer).apply(base, base_dtype, result, dtype)

    def _read(self, record: TensorRecord, lane: _Lane) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
        """The payload at the beginning of memory that can be uploaded, and the payload alone."""
        size = record.layers[0].size
        staged = lane.staged(size + _HEAD)
        memory = staged.numpy()
        if size:
            self._archive.reader.payload_into(record.name, 0, memory[:size], inflate)
        return staged, memory[:size]

    def _lane(self, device: torch.device) -> _Lane:
        key = (threading.get_ident(), device)
        lane = self._lanes.get(key)
        if lane is None:
            with torch.cuda.device(device):
                try:
                    lane = _idle[device].pop()
                except (KeyError, IndexError):
                    lane = _Lane(device)
            lane.stream.wait_event(self._started[device])
            self._lanes[key] = lane
        return lane

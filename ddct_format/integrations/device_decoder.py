"""Layers decoded on CUDA devices: one thread starts all kernels, while others read what comes next.

Payloads are read, checked and decompressed in groups, by threads of the native core that never wait for the
interpreter's lock, into pinned memory. Three groups are read at a time, so that there is work for the processor's cores
while the interpreter hands out the next. There is pinned memory for a few groups, kept for the next archive; a payload
that is larger than a group has memory of its own for as long, above ``LARGEST_PINNED`` not pinned.

With nvCOMP, chunks are read and checked by these threads but decompressed on the device, and come back to the host,
where the payloads are looked into as always.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from ..backends.cuda.device import is_out_of_memory
from ..backends.cuda.fused import FusedPlan
from ..backends.cuda.layer import plan_layer
from ..backends.cuda.part import Part
from ..backends.cuda.ulp_decode import decode_ulp
from ..codec.dctq import DctqParams, PayloadSplits, StoredPayload
from ..codec.registry import layer_params, usable_layers
from ..codec.ulp import UlpParams
from ..container.records import TensorRecord
from ..errors import InvalidError
from ..native import core
from ..native.inflate import inflate_payloads
from ..pipeline.archive import Archive
from .nvcomp import DeviceInflater
from .parts import TensorPart

__all__ = ["LARGEST_PINNED", "DeviceDecoder", "Payload"]

LARGEST_PINNED = 256 << 20
_GROUP = 48 << 20
_SLOTS = 5
_READERS = 3
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Placed:
    """A payload's parameters, and where it is put: start and stop, and room for the tables that describe it."""

    device: torch.device
    record: TensorRecord
    index: int
    params: DctqParams | UlpParams
    place: tuple[int, int]
    room: int


class _Staging:
    """Memory of the host, pinned unless it is very large, that is kept from use to use."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def sized(self, size: int) -> torch.Tensor:
        if self._memory.numel() < size or self._memory.numel() > max(size, _GROUP):
            self._memory = torch.empty(0, dtype=torch.uint8)
            self._memory = _host_memory(max(size, _GROUP))
        return self._memory


def _host_memory(size: int) -> torch.Tensor:
    if size <= LARGEST_PINNED and torch.cuda.is_available():
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    return torch.empty(size, dtype=torch.uint8)


class _Slot:
    """Memory for a group of payloads, and the streams on which they are decoded."""

    def __init__(self) -> None:
        self._memory = _Staging()
        self._stored = _Staging()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._uploaded: dict[torch.device, torch.cuda.Event] = {}

    def memory(self, size: int) -> torch.Tensor:
        """Memory of the host whose last contents have arrived on the devices."""
        for event in self._uploaded.values():
            event.synchronize()
        return self._memory.sized(size)

    def stored(self, size: int) -> torch.Tensor:
        """Memory of the host for chunks as they are stored; call :meth:`memory` first."""
        return self._stored.sized(size)

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._uploaded[device] = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return self._streams[device]

    @contextmanager
    def stream_entered(self, device: torch.device) -> Iterator[None]:
        """Work on the slot's stream of a device."""
        if device.type != "cuda":
            yield
            return
        with torch.cuda.device(device), torch.cuda.stream(self.stream(device)):
            yield

    def record(self) -> None:
        """What was put on the streams by now uploads all that the memory holds."""
        for device, event in self._uploaded.items():
            event.record(self._streams[device])


_idle: list[_Slot] = []
_lock = threading.Lock()


class DeviceDecoder:
    """Decodes layers of ``dctq.v1`` and ``ulp.v1``; a context manager, which begins to read at once.

    Args:
        wanted: records all of whose usable layers :meth:`payloads` will give, in this order, and the device of each;
            tests may pass the CPU, on which Triton's interpreter runs the same kernels. What the devices' current
            streams hold by now comes first, and what follows on them after the block waits for all that was decoded.
        threads: that read and decompress; each group has half of them.
        inflater: who decompresses on the device, if it is to be done there.
    """

    def __init__(
        self,
        archive: Archive,
        wanted: Sequence[tuple[TensorRecord, torch.device]],
        threads: int,
        inflater: DeviceInflater | None = None,
    ) -> None:
        self._archive = archive
        self._inflater = inflater
        self._devices = {device for _, device in wanted if device.type == "cuda"}
        self._threads = -(-threads // 2)
        with _lock:
            self._slots = [_idle.pop() if _idle else _Slot() for _ in range(_SLOTS)]
        for device in self._devices:
            started = torch.cuda.current_stream(device).record_event()
            for slot in self._slots:
                slot.stream(device).wait_event(started)
        self._groups = _grouped(wanted, by_device=inflater is not None)
        self._reading: deque[tuple[_Slot, Future[list[Payload]]]] = deque()
        self._pool = ThreadPoolExecutor(_READERS)
        for slot in self._slots:
            self._read_next(slot)

    def __enter__(self) -> DeviceDecoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for device in self._devices:
            for slot in self._slots:
                torch.cuda.current_stream(device).wait_stream(slot.stream(device))
        for slot in self._slots:
            slot.record()
        with _lock:
            _idle.extend(self._slots)

    def payloads(self) -> Iterator[Payload]:
        """What was read, one after another; each must be applied before the next is asked for.

        Raises:
            ArchiveError: the archive is damaged or breaks the specification.
        """
        while self._reading:
            slot, group = self._reading.popleft()
            yield from group.result()
            slot.record()
            self._read_next(slot)

    def _read_next(self, slot: _Slot) -> None:
        group = next(self._groups, None)
        if group is not None:
            self._reading.append((slot, self._pool.submit(self._read, group, slot)))

    def _read(self, group: Sequence[_Placed], slot: _Slot) -> list[Payload]:
        """Runs in a thread of its own."""
        memory = slot.memory(group[-1].place[1] + group[-1].room)
        bytes_of = memory.numpy()
        wanted = [(item.record.name, item.index, item.place[0]) for item in group]
        splits = PayloadSplits(
            [item.params if isinstance(item.params, DctqParams) else None for item in group],
            [item.place for item in group],
        )
        resident = None if self._inflater is None else self._inflate(self._inflater, group, wanted, slot, memory)
        if resident is None:
            inflate = partial(inflate_payloads, splits=splits.buffers)
            self._archive.reader.payloads_into(wanted, bytes_of, inflate, self._threads)
        elif core is not None:
            core.split_payloads(bytes_of, splits.buffers)
        payloads = []
        for item, stored in zip(group, splits.results(bytes_of), strict=True):
            if isinstance(stored, InvalidError):
                raise stored.at(place=self._archive.place, tensor=item.record.name)
            staged = memory[item.place[0] : item.place[1] + item.room]
            own = None if resident is None else resident[slice(*item.place)]
            payloads.append(Payload(item.record, item.index, item.params, stored, staged, slot, own))
        return payloads

    def _inflate(
        self,
        inflater: DeviceInflater,
        group: Sequence[_Placed],
        wanted: Sequence[tuple[str, int, int]],
        slot: _Slot,
        memory: torch.Tensor,
    ) -> torch.Tensor | None:
        """The group's payloads on its device, and in ``memory``, too; None if that was not possible."""
        device, size = group[0].device, group[-1].place[1]
        staged = slot.stored(sum(inflater.stored_size(name, layer) for name, layer, _ in wanted))
        with slot.stream_entered(device):
            try:
                resident = torch.empty(size, dtype=torch.uint8, device=device)
                if not inflater.inflate(wanted, staged, resident, self._threads):
                    return None
                memory[:size].copy_(resident, non_blocking=True)
                torch.cuda.current_stream().synchronize()
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                return None
        return resident


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload that is ready to be uploaded.

    Attributes:
        index: of the layer among those of ``record``.
        stored: what was found out about a payload of ``dctq.v1``.
        staged: memory of the host that begins with it and has room for what describes it.
        resident: the payload on the device, if it is there already.
    """

    record: TensorRecord
    index: int
    params: DctqParams | UlpParams
    stored: StoredPayload | None
    staged: torch.Tensor
    slot: _Slot
    resident: torch.Tensor | None = None

    def stream_entered(self, device: torch.device) -> AbstractContextManager[None]:
        """Work on the stream on which it is to be applied to a tensor of ``device``."""
        return self.slot.stream_entered(device)

    def apply(self, before: torch.Tensor, result: torch.Tensor, part: TensorPart) -> None:
        """Apply the layer, on the current stream, which is that of :meth:`stream_entered`.

        Args:
            before, result: contiguous, on one device; they may be the same if the element types are equal.
            part: of the full tensor, what they hold; all of it for ``ulp.v1``.

        Raises:
            InvalidError: a payload of ``ulp.v1`` breaks the specification. ``result`` is undefined then.
            RuntimeError: among others, the device has no memory left. ``result`` is undefined then.
        """
        record = self.record
        types = (record.dtype if self.index else record.base_dtype or record.dtype, record.dtype)
        if isinstance(self.params, UlpParams):
            self._apply_ulp(self.params, before, types[0], result)
        else:
            assert self.stored is not None
            self._apply_dctq(self.params, self.stored, before, result, types, part)

    def _apply_ulp(self, params: UlpParams, before: torch.Tensor, before_dtype: str, result: torch.Tensor) -> None:
        staged = self.staged[: self.record.layers[self.index].size]
        uploaded = staged.to(before.device, non_blocking=True) if self.resident is None else self.resident
        decode_ulp(params, staged.numpy(), uploaded, before, before_dtype, result)

    def _apply_dctq(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: torch.Tensor,
        result: torch.Tensor,
        types: tuple[str, str],
        part: TensorPart,
    ) -> None:
        plan = plan_layer(params, stored, base.device)
        staged = self.staged
        if plan.upload_size > staged.numel():  # a plan that needs more than it is given room for
            staged = torch.empty(plan.upload_size, dtype=torch.uint8)
        plan.write(staged.numpy())
        buffer = torch.empty(plan.size, dtype=torch.uint8, device=base.device)
        there = 0
        if self.resident is not None:
            there = self.resident.numel()
            buffer[:there].copy_(self.resident)
        buffer[there : plan.upload_size].copy_(staged[there : plan.upload_size], non_blocking=True)
        rectangle = part.matrix(params.grid.cols)
        if isinstance(plan, FusedPlan) and (part.whole or rectangle):
            piece = None if part.whole or not rectangle else Part(*rectangle)
            plan.build(buffer).apply(base, types[0], result, types[1], piece)
            return
        full_base, full_result = base, result
        if not part.whole:  # a layer is added element by element: what lies around the part does not matter
            full_base = torch.zeros(part.full_shape, dtype=base.dtype, device=base.device)
            full_base[part.index] = base
            full_result = torch.empty(part.full_shape, dtype=result.dtype, device=base.device)
        plan.build(buffer).apply(full_base, types[0], full_result, types[1])
        if not part.whole:
            result.copy_(full_result[part.index])


def _grouped(wanted: Sequence[tuple[TensorRecord, torch.device]], *, by_device: bool) -> Iterator[list[_Placed]]:
    """All layers of a tensor are in one group, whose stream puts them in order."""
    group: list[_Placed] = []
    position = 0
    for record, device in wanted:
        params = [layer_params(record, index) for index in range(usable_layers(record))]
        sizes = [layer.size for layer in record.layers[: len(params)]]
        rooms = [_room(own) for own in params]
        taken = [-(-(size + room) // _ALIGNMENT) * _ALIGNMENT for size, room in zip(sizes, rooms, strict=True)]
        if group and (position + sum(taken) > _GROUP or (by_device and device != group[0].device)):
            yield group
            group, position = [], 0
        for index, own in enumerate(params):
            place = (position, position + sizes[index])
            group.append(_Placed(device, record, index, own, place, rooms[index]))
            position += taken[index]
    if group:
        yield group


def _room(params: DctqParams | UlpParams) -> int:
    """Bytes after a payload that are enough for the tables of a plan, whichever it is."""
    if isinstance(params, UlpParams):
        return 0
    return 1024 + sum(192 + len(levels) for levels in params.levels)

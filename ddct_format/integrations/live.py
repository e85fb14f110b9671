"""A fine-tune applied to base weights that are already in memory, on a GPU or not, and taken back again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..backends import get_backend
from ..codec import dctq, raw, ulp
from ..codec.registry import apply_layer, usable_layers
from ..container.records import TensorRecord
from ..errors import BaseMismatchError, ConfigError, CorruptError, InvalidError, UnsupportedError
from ..native.digest import digest as tensor_digest
from ..pipeline.archive import Archive, open_archive
from ..pipeline.parallel import default_threads, map_ordered
from .parts import Slices, TensorPart, find_part

if TYPE_CHECKING:
    from .device_decoder import Payload
    from .nvcomp import DeviceInflater

__all__ = ["AppliedArchive", "Check", "apply"]

Check = bool | Literal["whole"]
"""Whether digests are compared; ``whole``: those of tensors that are given whole, while others are slices."""

_THREADS = 16
"""By default at most: they read and decompress, and do not wait for the interpreter's lock."""
_SMALL = 1 << 15
"""Elements up to which a tensor on a GPU is decoded by the CPU: sooner than a kernel has been started."""

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


class AppliedArchive:
    """What :func:`apply` did, and how to undo it.

    Attributes:
        content_id: the archive's.
        changed: names of the tensors that were changed in place, in the archive's order.
        tensors: the fine-tune by name: the model's own tensors, or those of the second buffer.
    """

    def __init__(self, content_id: str) -> None:
        self.content_id = content_id
        self.changed: list[str] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    def revert(self) -> None:
        """Restore the base, bit for bit, from the copies that were kept; afterwards they are released.

        After ``apply(..., into=...)`` there is nothing to restore: the base was never changed.
        """
        with torch.no_grad():
            while self._saved:
                tensor, before = self._saved.pop()
                tensor.copy_(before)
                if before.is_cuda:
                    before.record_stream(torch.cuda.current_stream(before.device))
        self.changed = []
        self.tensors = {}


def apply(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    archive: str | os.PathLike[str] | bytes | Archive,
    *,
    into: Mapping[str, torch.Tensor] | Literal[True] | None = None,
    slices: Slices | None = None,
    check_base: Check = True,
    verify: Check = True,
    keep_base: str | None = None,
    threads: int | None = None,
    decompress: Literal["host", "gpu"] = "host",
) -> AppliedArchive:
    """Turn the base weights of ``model`` into the fine-tune, in place or into a second buffer.

    Tensors on a CUDA device are decoded there, but for small ones: only packed payloads cross the bus, while the next
    ones are read and decompressed. Others are decoded by the backend ``cpu``. If anything is refused the base is
    restored first.

    Args:
        model: a module, or tensors by name, under the names that the archive uses. Tied weights may share memory.
        into: where the fine-tune goes instead, by name, or True for new tensors: ``model`` stays as it is.
        slices: which rows and columns of the full tensors ``model`` holds, for tensor-parallel ranks: by name, or a
            function of name and full shape. The digests of a full tensor say nothing about a slice: ``check_base`` and
            ``verify`` must be False, or "whole" to check the tensors that are given whole.
        check_base: compare every base tensor with the digest that the archive was made for, before anything changes.
        verify: compare every result with its digest.
        keep_base: device on which the copies for :meth:`AppliedArchive.revert` are kept; each tensor's own by default,
            and the CPU if that has no memory left.
        threads: workers that read and decompress.
        decompress: "gpu" lets nvCOMP (``ddct[nvcomp]``) decompress for tensors on CUDA devices, which pays where there
            are few cores for each GPU. nvCOMP does not survive a malicious file: ``archive`` must be an open one whose
            file was compared with a digest from somebody trusted (:meth:`Archive.authenticate`).

    Raises:
        BaseMismatchError: a tensor is missing, has another type, shape or (with ``check_base``) other contents.
        ConfigError: slices do not fit, or are to be checked by digests; or ``into`` does not fit; or the GPU cannot, or
            must not, decompress.
        UnsupportedError: the fine-tune has tensors of another type than the base's, and they cannot be changed in
            place; or a slice is asked of a tensor with a lossless layer, which needs all of it.
        ArchiveError: the archive is damaged or breaks the specification.
    """
    if decompress not in ("host", "gpu"):
        raise ConfigError(f"decompress is {decompress!r}, not host or gpu")
    opened = archive if isinstance(archive, Archive) else open_archive(archive)
    applied = AppliedArchive(opened.content_id)
    try:
        inflater = _device_inflater(opened) if decompress == "gpu" else None
        with torch.no_grad():
            jobs = _find_jobs(model, opened, into, slices)
            sliced = [job.record.name for job in jobs.values() if not job.part.whole]
            if sliced and True in (check_base, verify):
                raise ConfigError(
                    "the digest of a full tensor cannot be compared with a slice of it: pass check_base and verify as "
                    'False, or "whole" to check the tensors that are given whole',
                    place=opened.place,
                    tensor=sliced[0],
                )
            if check_base:
                _check_contents(opened, jobs)
            try:
                _apply_all(opened, jobs, applied, keep_base, threads or default_threads(_THREADS), inflater)
                if verify:
                    _check_results(opened, jobs)
            except BaseException:
                applied.revert()
                raise
    finally:
        if opened is not archive:
            opened.close()
    return applied


@dataclass(frozen=True, slots=True)
class _Job:
    """One tensor: what the model holds of it, and where its result goes, which may be the same tensor."""

    record: TensorRecord
    part: TensorPart
    base: torch.Tensor
    result: torch.Tensor

    @property
    def in_place(self) -> bool:
        return self.result is self.base

    @property
    def on_device(self) -> bool:
        usable = self.record.layers[: usable_layers(self.record)]
        decoded_there = bool(usable) and all(layer.codec in (dctq.NAME, ulp.NAME) for layer in usable)
        return self.base.is_cuda and not self.is_small and decoded_there

    @property
    def is_small(self) -> bool:
        return self.base.is_cuda and self.record.elements <= _SMALL


def _find_jobs(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    archive: Archive,
    into: Mapping[str, torch.Tensor] | Literal[True] | None,
    slices: Slices | None,
) -> dict[str, _Job]:
    named = model.state_dict(keep_vars=True) if isinstance(model, torch.nn.Module) else model
    jobs: dict[str, _Job] = {}
    for name, record in archive.tensors.items():
        tensor = named.get(name)
        if tensor is None:
            raise BaseMismatchError("the model lacks this tensor", place=archive.place, tensor=name)
        tensor, part = tensor.detach(), find_part(record, slices)
        base_dtype = record.base_dtype or record.dtype
        if tensor.dtype != _DTYPES.get(base_dtype) or tuple(tensor.shape) != part.shape:
            raise BaseMismatchError(
                f"the model's tensor is {tensor.dtype} {list(tensor.shape)}, the archive was made for "
                f"{base_dtype} {list(part.shape)}",
                place=archive.place,
                tensor=name,
            )
        if into is None and record.base_dtype is not None:
            raise UnsupportedError(
                f"the fine-tune is {record.dtype}, the base {record.base_dtype}: it cannot be applied in place",
                place=archive.place,
                tensor=name,
            )
        if not part.whole and any(layer.codec == ulp.NAME for layer in record.layers[: usable_layers(record)]):
            raise UnsupportedError(
                "a lossless layer is decoded from the whole tensor, not from a slice", place=archive.place, tensor=name
            )
        jobs[name] = _Job(record, part, tensor, _result(record, tensor, into, archive.place))
    return jobs


def _result(
    record: TensorRecord, base: torch.Tensor, into: Mapping[str, torch.Tensor] | Literal[True] | None, place: str
) -> torch.Tensor:
    if into is None:
        return base
    if into is True:
        return torch.empty(base.shape, dtype=_DTYPES[record.dtype], device=base.device)
    given = into.get(record.name)
    if given is None or given.dtype != _DTYPES[record.dtype] or given.shape != base.shape:
        raise ConfigError(
            f"the second buffer has no tensor of {record.dtype} {list(base.shape)}", place=place, tensor=record.name
        )
    return given.detach()


def _check_contents(archive: Archive, jobs: Mapping[str, _Job]) -> None:
    wanted = {name: job for name, job in jobs.items() if job.record.base is not None and job.part.whole}
    for name, digest in _digests({name: job.base for name, job in wanted.items()}):
        if digest != wanted[name].record.base:
            raise BaseMismatchError(
                "the model's tensor has other contents than the base that the archive was made for",
                place=archive.place,
                tensor=name,
            )


def _check_results(archive: Archive, jobs: Mapping[str, _Job]) -> None:
    changed = {name: job for name, job in jobs.items() if job.record.layers and job.part.whole}
    for name, digest in _digests({name: job.result for name, job in changed.items()}):
        record = changed[name].record
        if digest != record.layers[usable_layers(record) - 1].digest:
            raise CorruptError("it decodes to other bytes than its digest says", place=archive.place, tensor=name)


def _apply_all(
    archive: Archive,
    jobs: Mapping[str, _Job],
    applied: AppliedArchive,
    keep_base: str | None,
    threads: int,
    inflater: DeviceInflater | None,
) -> None:
    where = None if keep_base is None else torch.device(keep_base)
    layered = [job for job in jobs.values() if job.record.layers]
    resident = {job.record.name: job for job in layered if job.on_device}
    on_host = [job for job in layered if not job.on_device]
    with _device_decoder(archive, list(resident.values()), threads, inflater) as payloads:
        for job in on_host:
            if job.is_small:  # while the first payloads are read
                _replace(job, _decode_on_host(archive, job), where, applied)
        for payload in payloads:
            try:
                _apply_on_device(payload, resident[payload.record.name], where, applied)
            except InvalidError as error:
                raise error.at(place=archive.place, tensor=payload.record.name) from None
    large = [job for job in on_host if not job.is_small]
    decoded = map_ordered(lambda job: _decode_on_host(archive, job), large, threads)
    for job, result in zip(large, decoded, strict=True):
        _replace(job, result, where, applied)
    for job in jobs.values():
        source = job.base
        if job.record.op == "alias":
            assert job.record.of is not None
            source = jobs[job.record.of].result
        if not job.record.layers and job.result.data_ptr() != source.data_ptr():
            if job.in_place:
                _keep(job, where, applied)
            job.result.copy_(source)
        applied.tensors[job.record.name] = job.result
    changed = {id(base) for base, _ in applied._saved}
    applied.changed = [name for name, job in jobs.items() if job.in_place and id(job.base) in changed]


def _device_inflater(archive: Archive) -> DeviceInflater:
    from .nvcomp import DeviceInflater

    return DeviceInflater(archive)


@contextmanager
def _device_decoder(
    archive: Archive, jobs: Sequence[_Job], threads: int, inflater: DeviceInflater | None
) -> Iterator[Iterator[Payload]]:
    """What was read for tensors on devices; they have their results after the block."""
    if not jobs:
        yield iter(())
        return
    from .device_decoder import DeviceDecoder

    wanted = [(job.record, job.base.device) for job in jobs]
    with DeviceDecoder(archive, wanted, threads, inflater) as decoder:
        yield decoder.payloads()


def _apply_on_device(payload: Payload, job: _Job, where: torch.device | None, applied: AppliedArchive) -> None:
    # On the caller's stream, so that the copy's memory serves again once it is released.
    device, first = job.base.device, payload.index == 0
    space = _empty_like(job.base, where) if job.in_place and first else None
    with torch.cuda.device(device), torch.cuda.stream(payload.stream(device)):
        if space is not None:
            applied._saved.append((job.base, space.copy_(job.base)))
        before = (job.base if first else job.result).to(device).contiguous()
        result = job.result if first and not job.in_place else before
        if result.device != device or not result.is_contiguous():
            result = torch.empty(before.shape, dtype=job.result.dtype, device=device)
        payload.apply(before, result, job.part)
        if result.data_ptr() != job.result.data_ptr():
            job.result.copy_(result)


def _replace(job: _Job, decoded: torch.Tensor, where: torch.device | None, applied: AppliedArchive) -> None:
    if job.in_place:
        _keep(job, where, applied)
    job.result.copy_(decoded)


def _keep(job: _Job, where: torch.device | None, applied: AppliedArchive) -> None:
    applied._saved.append((job.base, _empty_like(job.base, where).copy_(job.base)))


def _empty_like(tensor: torch.Tensor, where: torch.device | None) -> torch.Tensor:
    try:
        return torch.empty_like(tensor, device=where or tensor.device, memory_format=torch.contiguous_format)
    except torch.cuda.OutOfMemoryError:
        return torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)


def _decode_on_host(archive: Archive, job: _Job) -> torch.Tensor:
    record, part = job.record, job.part
    data = None
    if record.layers[0].codec != raw.NAME:
        whole = job.base
        if not part.whole:  # a layer is added element by element: what lies around the part does not matter
            whole = torch.zeros(part.full_shape, dtype=job.base.dtype)
            whole[part.index] = job.base.cpu()
        data = _host_bytes(whole)
    for index in range(usable_layers(record)):
        payload = np.frombuffer(archive.reader.payload(record.name, index), dtype=np.uint8)
        data = apply_layer(record, index, payload, data, get_backend("cpu"))
    assert data is not None
    if not data.size:
        return torch.empty(part.shape, dtype=job.result.dtype)
    return torch.frombuffer(bytearray(data), dtype=job.result.dtype).view(part.full_shape)[part.index]


def _digests(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Name and digest of every tensor; those on a CUDA device are hashed there."""
    resident = {name: tensor for name, tensor in tensors.items() if tensor.is_cuda}
    if resident:
        from ..backends.cuda.digest import tensor_digests

        yield from zip(resident, tensor_digests(list(resident.values())), strict=True)
    others = [name for name in tensors if name not in resident]

    def hash_one(name: str) -> str:
        return tensor_digest(_host_bytes(tensors[name]))

    yield from zip(others, map_ordered(hash_one, others, default_threads()), strict=True)


def _host_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).cpu().numpy() if flat.numel() else np.empty(0, dtype=np.uint8)

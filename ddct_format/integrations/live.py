"""A fine-tune applied to base weights that are already in memory, on a GPU or not, and taken back again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..backends import get_backend
from ..codec import dctq, raw, ulp
from ..codec.registry import apply_layer, usable_layers
from ..errors import ArchiveError, BaseMismatchError, BudgetError, ConfigError, CorruptError
from ..native.digest import digest as tensor_digest
from ..pipeline.archive import Archive, open_archive
from ..pipeline.parallel import default_threads, map_ordered
from .jobs import Into, Job, alias_source, find_jobs
from .parts import Slices

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

_SHORTAGES = ("out of memory", "allocate memory")
"""In what torch says when there is none left, of a device or of the host."""
_ON_HOST, _COPIES = 4 << 30, 3
"""Bytes that tensors which are decoded on the host may take at a time, each with its base and its payload."""
_PIECE = 16 << 20
"""Bytes of a strided tensor that are copied between devices at a time: torch makes a contiguous copy of them first."""


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
        self._saved: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def revert(self) -> None:
        """Restore the base, bit for bit, from the copies that were kept; each is released when it has been used.

        After ``apply(..., into=...)`` there is nothing to restore: the base was never changed. Should this fail, it can
        be called again.
        """
        with torch.no_grad():
            for name, (tensor, before) in list(self._saved.items()):
                _copy(tensor, before)
                if before.is_cuda:
                    before.record_stream(torch.cuda.current_stream(before.device))
                del self._saved[name]
        self.changed = []
        self.tensors = {}


def apply(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    archive: str | os.PathLike[str] | bytes | Archive,
    *,
    into: Into = None,
    slices: Slices | None = None,
    check_base: Check = True,
    verify: Check = True,
    keep_base: str | None = None,
    threads: int | None = None,
    decompress: Literal["host", "gpu"] = "host",
) -> AppliedArchive:
    """Turn the base weights of ``model`` into the fine-tune, in place or into a second buffer.

    Tensors on a CUDA device are decoded there, but for small ones: only packed payloads cross the bus, while the next
    ones are read and decompressed. Others are decoded by the backend ``cpu``, and so is what a device lacks memory for.
    If anything is refused the base is restored first, and a second buffer is left undefined.

    The variable DDCT_GPU_MEMORY, such as 2G, limits what the process takes of each device meanwhile, beyond what it
    holds already and ``into=True``; other threads of it are limited with it.

    Args:
        model: a module, or tensors by name, under the names that the archive uses; others are left alone. Tied weights
            may share memory if the fine-tune ties them, too.
        into: where the fine-tune goes instead, by name, or True for new tensors: ``model`` stays as it is.
        slices: which rows and columns of the full tensors ``model`` holds, for tensor-parallel ranks: by name, or a
            function of name and full shape. The digests of a full tensor say nothing about a slice: ``check_base`` and
            ``verify`` must be False, or "whole" to check the tensors that are given whole.
        check_base: compare every base tensor with the digest that the archive was made for, before anything changes.
        verify: compare every result with its digest, but what stays as the base that ``check_base`` looked at.
        keep_base: device on which the copies for :meth:`AppliedArchive.revert` are kept; each tensor's own by default,
            and the CPU if that has no memory left.
        threads: workers that read and decompress.
        decompress: "gpu" lets nvCOMP (``ddct[nvcomp]``) decompress for tensors on CUDA devices, which pays where there
            are few cores for each GPU. nvCOMP does not survive a malicious file: ``archive`` must be an open one whose
            file was compared with a digest from somebody trusted (:meth:`Archive.authenticate`).

    Raises:
        BaseMismatchError: a tensor is missing, has another type, shape or (with ``check_base``) other contents.
        BudgetError: the second buffer, or decoding on the host, needs more memory than there is.
        ConfigError: slices do not fit, or are to be checked by digests; or ``into`` does not fit; or a tensor is none
            that can be read and written; or the GPU cannot, or must not, decompress.
        UnsupportedError: the fine-tune has tensors of another type than the base's, or shares no memory where ``model``
            does, and cannot be applied in place; or a slice is asked of a tensor with a lossless layer, which needs all
            of it, or of an alias of another slice.
        ArchiveError: the archive is damaged or breaks the specification.
    """
    if decompress not in ("host", "gpu"):
        raise ConfigError(f"decompress is {decompress!r}, not host or gpu")
    where = None if keep_base is None else _device_for_copies(keep_base)
    opened = archive if isinstance(archive, Archive) else open_archive(archive)
    applied = AppliedArchive(opened.content_id)
    try:
        inflater = _device_inflater(opened) if decompress == "gpu" else None
        with torch.no_grad():
            jobs = find_jobs(model, opened, into, slices)
            sliced = [job.record.name for job in jobs.values() if not job.part.whole]
            if sliced and True in (check_base, verify):
                raise ConfigError(
                    "the digest of a full tensor cannot be compared with a slice of it: pass check_base and verify as "
                    'False, or "whole" to check the tensors that are given whole',
                    place=opened.place,
                    tensor=sliced[0],
                )
            with _limited_memory(jobs):
                if check_base:
                    _check_contents(opened, jobs)
                try:
                    _apply_all(opened, jobs, applied, where, threads or default_threads(_THREADS), inflater)
                    if verify:
                        _check_results(opened, jobs, base_is_checked=bool(check_base))
                except BaseException:
                    applied.revert()
                    raise
    finally:
        if opened is not archive:
            opened.close()
    return applied


def _device_for_copies(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"keep_base is {name!r}, which is no device") from None
    if device.type == "meta":
        raise ConfigError("keep_base is 'meta', which keeps nothing")
    return device


def _is_resident(tensor: torch.Tensor) -> bool:
    """Whether there are kernels for where the tensor lies."""
    return tensor.is_cuda and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _is_small(job: Job) -> bool:
    return job.base.is_cuda and job.record.elements <= _SMALL


def _is_decoded_there(job: Job) -> bool:
    usable = job.record.layers[: usable_layers(job.record)]
    known = bool(usable) and all(layer.codec in (dctq.NAME, ulp.NAME) for layer in usable)
    return known and _is_resident(job.base) and not _is_small(job)


@contextmanager
def _limited_memory(jobs: Mapping[str, Job]) -> Iterator[None]:
    devices = {job.base.device for job in jobs.values() if job.base.is_cuda and _is_resident(job.base)}
    if not devices:
        yield
        return
    from ..backends.cuda.device import limited_growth

    with limited_growth(devices):
        yield


def _check_contents(archive: Archive, jobs: Mapping[str, Job]) -> None:
    wanted = {name: job for name, job in jobs.items() if job.record.base is not None and job.part.whole}
    for name, digest in _digests(archive, {name: job.base for name, job in wanted.items()}):
        if digest != wanted[name].record.base:
            raise BaseMismatchError(
                "the model's tensor has other contents than the base that the archive was made for",
                place=archive.place,
                tensor=name,
            )


def _check_results(archive: Archive, jobs: Mapping[str, Job], *, base_is_checked: bool) -> None:
    checked = {
        name: job
        for name, job in jobs.items()
        if job.part.whole and (job.record.layers or (job.record.op == "keep" and not base_is_checked))
    }
    for name, digest in _digests(archive, {name: job.result for name, job in checked.items()}):
        record = checked[name].record
        if digest != record.digest_after(usable_layers(record) - 1 if record.layers else 0):
            what = "it decodes to" if record.layers else "it is kept, but has"
            raise CorruptError(f"{what} other bytes than its digest says", place=archive.place, tensor=name)


def _apply_all(
    archive: Archive,
    jobs: Mapping[str, Job],
    applied: AppliedArchive,
    where: torch.device | None,
    threads: int,
    inflater: DeviceInflater | None,
) -> None:
    layered = [job for job in jobs.values() if job.record.layers]
    resident = {job.record.name: job for job in layered if _is_decoded_there(job)}
    on_host = [job for job in layered if not _is_decoded_there(job)]
    too_large = set()
    with _device_decoder(archive, list(resident.values()), threads, inflater) as payloads:
        for job in on_host:
            if _is_small(job):  # while the first payloads are read
                _replace(archive, job, _decode_on_host(archive, job, job.base), where, applied)
        for payload in payloads:
            name = payload.record.name
            if name not in too_large and not _apply_on_device(archive, payload, resident[name], where, applied):
                too_large.add(name)
    on_host = [job for job in on_host if not _is_small(job)] + [
        resident[name] for name in resident if name in too_large
    ]
    for device in {job.base.device for job in on_host if job.base.is_cuda}:
        torch.cuda.synchronize(device)  # other threads have streams of their own
    # The device may have written some of what it then lacked memory to finish: what was saved is the base.
    bases = [applied._saved.get(job.record.name, (job.base, job.base))[1] for job in on_host]
    decoded = map_ordered(
        lambda item: _decode_on_host(archive, *item),
        zip(on_host, bases, strict=True),
        threads,
        cost=lambda item: _COPIES * item[0].record.nbytes,
        budget=_ON_HOST,
    )
    for job, result in zip(on_host, decoded, strict=True):
        _replace(archive, job, result, where, applied)
    for job in jobs.values():
        source = alias_source(job, jobs) if job.record.op == "alias" else job.base
        if not job.record.layers and job.result.data_ptr() != source.data_ptr():
            _replace(archive, job, source, where, applied)
        applied.tensors[job.record.name] = job.result
    changed = {name for name, job in jobs.items() if job.record.op not in ("keep", "alias")} | set(applied._saved)
    applied.changed = [
        name for name, job in jobs.items() if job.in_place and (name in changed or job.record.of in changed)
    ]


def _device_inflater(archive: Archive) -> DeviceInflater:
    from .nvcomp import DeviceInflater

    return DeviceInflater(archive)


@contextmanager
def _device_decoder(
    archive: Archive, jobs: Sequence[Job], threads: int, inflater: DeviceInflater | None
) -> Iterator[Iterator[Payload]]:
    """What was read for tensors on devices; they have their results after the block."""
    if not jobs:
        yield iter(())
        return
    from .device_decoder import DeviceDecoder

    wanted = [(job.record, job.base.device) for job in jobs]
    with DeviceDecoder(archive, wanted, threads, inflater) as decoder:
        yield decoder.payloads()


def _apply_on_device(
    archive: Archive, payload: Payload, job: Job, where: torch.device | None, applied: AppliedArchive
) -> bool:
    """Apply a layer; False if the device has no memory left for it, and the result is undefined."""
    from ..backends.cuda.device import is_out_of_memory

    device, first = job.base.device, payload.index == 0
    try:
        # On the caller's stream, so that the copy's memory serves again once it is released.
        space = _empty_like(job.base, where) if job.in_place and first else None
        with payload.stream_entered(device):
            if space is not None:
                applied._saved[job.record.name] = (job.base, space.copy_(job.base))
            before = (job.base if first else job.result).to(device).contiguous()
            result = job.result if first and not job.in_place else before
            if result.device != device or not result.is_contiguous():
                result = torch.empty(before.shape, dtype=job.result.dtype, device=device)
            payload.apply(before, result, job.part)
            if result.data_ptr() != job.result.data_ptr():
                job.result.copy_(result)
        return True
    except ArchiveError as error:
        raise error.at(place=archive.place, tensor=job.record.name) from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # not before the error is gone, whose traceback holds what there was memory for
    return False


def _replace(
    archive: Archive, job: Job, decoded: torch.Tensor, where: torch.device | None, applied: AppliedArchive
) -> None:
    with _refusing_for_lack_of_memory(archive, job.record.name):
        if job.in_place and job.record.name not in applied._saved:
            space = _empty_like(job.base, where)
            _copy(space, job.base)
            applied._saved[job.record.name] = (job.base, space)
        _copy(job.result, decoded)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """``target.copy_(source)``, in little memory of devices beside."""
    if target.device == source.device or not target.dim() or (target.is_contiguous() and source.is_contiguous()):
        target.copy_(source)
        return
    rows = max(1, _PIECE * target.shape[0] // max(1, target.nbytes))
    for first in range(0, target.shape[0], rows):
        target[first : first + rows].copy_(source[first : first + rows])


def _empty_like(tensor: torch.Tensor, where: torch.device | None) -> torch.Tensor:
    try:
        return torch.empty_like(tensor, device=where or tensor.device, memory_format=torch.contiguous_format)
    except torch.cuda.OutOfMemoryError:
        return torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)


def _decode_on_host(archive: Archive, job: Job, base: torch.Tensor) -> torch.Tensor:
    record, part = job.record, job.part
    data = None
    with _refusing_for_lack_of_memory(archive, record.name):
        if record.layers[0].codec != raw.NAME:
            whole = base
            if not part.whole:  # a layer is added element by element: what lies around the part does not matter
                whole = torch.zeros(part.full_shape, dtype=base.dtype)
                whole[part.index] = _on_host(base)
            data = _host_bytes(whole)
        for index in range(usable_layers(record)):
            payload = np.frombuffer(archive.reader.payload(record.name, index), dtype=np.uint8)
            data = apply_layer(record, index, payload, data, get_backend("cpu"))
        assert data is not None
        if not data.size:
            return torch.empty(part.shape, dtype=job.result.dtype)
        return torch.from_numpy(data).view(job.result.dtype).view(part.full_shape)[part.index]


@contextmanager
def _refusing_for_lack_of_memory(archive: Archive, name: str) -> Iterator[None]:
    try:
        yield
    except ArchiveError as error:
        raise error.at(place=archive.place, tensor=name) from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _SHORTAGES):
            raise
        raise BudgetError("there is no memory left for it", place=archive.place, tensor=name) from error


def _digests(archive: Archive, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Name and digest of every tensor; those on a CUDA device are hashed there, if it has memory for that."""
    resident = [name for name, tensor in tensors.items() if _is_resident(tensor)]
    contiguous = [name for name in resident if tensors[name].is_contiguous()]
    hashed: set[str] = set()
    for group in (contiguous, *([name] for name in resident if not tensors[name].is_contiguous())):
        digests = _device_digests([tensors[name] for name in group])
        if digests is not None:
            hashed.update(group)
            yield from zip(group, digests, strict=True)
    others = [name for name in tensors if name not in hashed]
    for device in {tensors[name].device for name in others if tensors[name].is_cuda}:
        torch.cuda.synchronize(device)  # other threads have streams of their own

    def hash_one(name: str) -> str:
        with _refusing_for_lack_of_memory(archive, name):
            return tensor_digest(_host_bytes(tensors[name]))

    yield from zip(others, map_ordered(hash_one, others, default_threads()), strict=True)


def _device_digests(tensors: Sequence[torch.Tensor]) -> list[str] | None:
    """Digests that the tensors' devices compute; None if one of them has no memory left."""
    if not tensors:
        return []
    from ..backends.cuda.device import is_out_of_memory
    from ..backends.cuda.digest import tensor_digests

    try:
        return tensor_digests(tensors)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    return None


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    _copy(copy, tensor)
    return copy


def _host_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    flat = _on_host(tensor.detach()).contiguous().view(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, dtype=np.uint8)

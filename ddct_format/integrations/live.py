"""A fine-tune applied to base weights that are already in memory, on a GPU or not, and taken back again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..backends import get_backend
from ..codec import dctq, raw
from ..codec.registry import apply_layer, usable_layers
from ..container.digest import tensor_digest
from ..container.records import TensorRecord
from ..errors import BaseMismatchError, CorruptError, UnsupportedError
from ..pipeline.archive import Archive, open_archive
from ..pipeline.parallel import default_threads, map_ordered

if TYPE_CHECKING:
    from ..backends.cuda.fused import FusedPlan
    from ..backends.cuda.layer import LayerPlan

__all__ = ["AppliedArchive", "apply"]

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
        changed: names of the tensors that were changed, in the archive's order.
    """

    def __init__(self, content_id: str) -> None:
        self.content_id = content_id
        self.changed: list[str] = []
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    def revert(self) -> None:
        """Restore the base, bit for bit, from the copies that were kept; afterwards they are released."""
        while self._saved:
            tensor, before = self._saved.pop()
            tensor.copy_(before)
        self.changed = []

    def _keep(self, name: str, tensor: torch.Tensor, where: torch.device | None) -> None:
        before = torch.empty_like(tensor, device=where or tensor.device, memory_format=torch.contiguous_format)
        self._saved.append((tensor, before.copy_(tensor)))
        self.changed.append(name)


def apply(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    archive: str | os.PathLike[str] | bytes | Archive,
    *,
    check_base: bool = True,
    verify: bool = True,
    keep_base: str | None = None,
    threads: int | None = None,
) -> AppliedArchive:
    """Turn the base weights of ``model`` into the fine-tune, in place.

    Tensors on a CUDA device are decoded there: only packed payloads cross the bus, while the next ones are read and
    decompressed. Others are decoded by the backend ``cpu``. If anything is refused the base is restored first.

    Args:
        model: a module, or tensors by name, under the names that the archive uses. Tied weights may share memory.
        check_base: compare every base tensor with the digest that the archive was made for, before anything changes.
        verify: compare every result with its digest.
        keep_base: device on which the copies for :meth:`AppliedArchive.revert` are kept; each tensor's own by default.
        threads: workers that read and decompress.

    Raises:
        BaseMismatchError: a tensor is missing, has another type, shape or (with ``check_base``) other contents.
        UnsupportedError: the fine-tune has tensors of another type than the base's: they cannot be changed in place.
        ArchiveError: the archive is damaged or breaks the specification.
    """
    opened = archive if isinstance(archive, Archive) else open_archive(archive)
    applied = AppliedArchive(opened.content_id)
    try:
        with torch.no_grad():
            tensors = _find_tensors(model, opened)
            if check_base:
                _check_contents(opened, tensors)
            try:
                _apply_all(opened, tensors, applied, keep_base, verify, threads or default_threads())
            except BaseException:
                applied.revert()
                raise
    finally:
        if opened is not archive:
            opened.close()
    return applied


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A tensor's result in host memory, or the plan of its only layer and the buffer to upload."""

    result: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = None
    plan: LayerPlan | FusedPlan | None = None
    staged: torch.Tensor | None = None


def _find_tensors(model: torch.nn.Module | Mapping[str, torch.Tensor], archive: Archive) -> dict[str, torch.Tensor]:
    named = model.state_dict(keep_vars=True) if isinstance(model, torch.nn.Module) else model
    found = {}
    for name, record in archive.tensors.items():
        tensor = named.get(name)
        if tensor is None:
            raise BaseMismatchError("the model lacks this tensor", place=archive.place, tensor=name)
        tensor = tensor.detach()
        base_dtype = record.base_dtype or record.dtype
        if tensor.dtype != _DTYPES.get(base_dtype) or tuple(tensor.shape) != record.shape:
            raise BaseMismatchError(
                f"the model's tensor is {tensor.dtype} {list(tensor.shape)}, the archive was made for "
                f"{base_dtype} {list(record.shape)}",
                place=archive.place,
                tensor=name,
            )
        if record.base_dtype is not None:
            raise UnsupportedError(
                f"the fine-tune is {record.dtype}, the base {record.base_dtype}: it cannot be applied in place",
                place=archive.place,
                tensor=name,
            )
        found[name] = tensor
    return found


def _check_contents(archive: Archive, tensors: Mapping[str, torch.Tensor]) -> None:
    wanted = {name: record.base for name, record in archive.tensors.items() if record.base is not None}
    for name, digest in _digests({name: tensors[name] for name in wanted}):
        if digest != wanted[name]:
            raise BaseMismatchError(
                "the model's tensor has other contents than the base that the archive was made for",
                place=archive.place,
                tensor=name,
            )


def _apply_all(
    archive: Archive,
    tensors: Mapping[str, torch.Tensor],
    applied: AppliedArchive,
    keep_base: str | None,
    verify: bool,
    threads: int,
) -> None:
    where = None if keep_base is None else torch.device(keep_base)
    records = [record for record in archive.tensors.values() if record.op in ("add", "replace")]
    touched: dict[str, torch.Tensor] = {}
    prepared = map_ordered(lambda record: _prepare(archive, record, tensors[record.name]), records, threads)
    for record, item in zip(records, prepared, strict=True):
        tensor = tensors[record.name]
        applied._keep(record.name, tensor, where)
        _write(tensor, item, record.dtype)
        touched[record.name] = tensor
    for record in archive.tensors.values():
        if record.op == "alias" and record.of in touched:
            tensor, source = tensors[record.name], touched[record.of]
            if tensor.data_ptr() != source.data_ptr():
                applied._keep(record.name, tensor, where)
                tensor.copy_(source)
    if verify:
        for name, digest in _digests(touched):
            if digest != archive.tensors[name].layers[usable_layers(archive.tensors[name]) - 1].digest:
                raise CorruptError("it decodes to other bytes than its digest says", place=archive.place, tensor=name)


def _prepare(archive: Archive, record: TensorRecord, tensor: torch.Tensor) -> _Prepared:
    """Everything that needs no device; runs in a worker thread."""
    first = record.layers[0]
    if tensor.is_cuda and first.codec == dctq.NAME and usable_layers(record) == 1:
        from ..backends.cuda.layer import plan_layer

        payload = np.frombuffer(archive.reader.payload(record.name, 0), dtype=np.uint8)
        params = dctq.DctqParams.parse(first.params, record.elements)
        plan = plan_layer(params, dctq.split_payload(params, payload), tensor.device)
        staged = torch.empty(plan.upload_size, dtype=torch.uint8, pin_memory=True)
        plan.write(staged.numpy())
        return _Prepared(plan=plan, staged=staged)
    data = None if first.codec == raw.NAME else _host_bytes(tensor)
    for index in range(usable_layers(record)):
        payload = np.frombuffer(archive.reader.payload(record.name, index), dtype=np.uint8)
        data = apply_layer(record, index, payload, data, get_backend("cpu"))
    return _Prepared(result=data)


def _write(tensor: torch.Tensor, item: _Prepared, dtype: str) -> None:
    if item.plan is None or item.staged is None:
        assert item.result is not None
        source = torch.frombuffer(bytearray(item.result), dtype=tensor.dtype) if item.result.size else tensor
        tensor.copy_(source.view(tensor.shape))
        return
    buffer = torch.empty(item.plan.size, dtype=torch.uint8, device=tensor.device)
    buffer[: item.plan.upload_size].copy_(item.staged, non_blocking=True)
    layer = item.plan.build(buffer)
    flat = tensor.contiguous()
    layer.apply(flat, dtype, flat, dtype)
    if flat.data_ptr() != tensor.data_ptr():
        tensor.copy_(flat)


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


def _host_bytes(tensor: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).cpu().numpy() if flat.numel() else np.empty(0, dtype=np.uint8)

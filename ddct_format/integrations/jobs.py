"""What is to be done with each tensor of a model, and whether it can be done at all, before anything changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch

from ..codec import ulp
from ..codec.registry import usable_layers
from ..container.records import TensorRecord
from ..errors import BaseMismatchError, BudgetError, ConfigError, DdctError, UnsupportedError
from ..pipeline.archive import Archive
from .parts import Slices, TensorPart, find_part

__all__ = ["Into", "Job", "alias_source", "find_jobs"]

Into = Mapping[str, torch.Tensor] | Literal[True] | None

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor: what the model holds of it, and where its result goes, which may be the same tensor."""

    record: TensorRecord
    part: TensorPart
    base: torch.Tensor
    result: torch.Tensor

    @property
    def in_place(self) -> bool:
        return self.result is self.base


def find_jobs(
    model: torch.nn.Module | Mapping[str, torch.Tensor], archive: Archive, into: Into, slices: Slices | None
) -> dict[str, Job]:
    """A job for each tensor of the archive, by name; tensors that it does not name have none.

    Raises:
        BaseMismatchError, BudgetError, ConfigError, UnsupportedError: see :func:`ddct_format.apply`.
    """
    named = model.state_dict(keep_vars=True) if isinstance(model, torch.nn.Module) else model
    own = _own_memory(model) if isinstance(model, torch.nn.Module) and into is None else None
    jobs: dict[str, Job] = {}
    for name, record in archive.tensors.items():
        try:
            tensor = named.get(name)
            if tensor is None:
                raise BaseMismatchError("the model lacks this tensor")
            tensor, part = tensor.detach(), find_part(record, slices)
            _check_tensor(record, part, tensor, into)
            if own is not None and tensor.numel() and tensor.untyped_storage().data_ptr() not in own:
                raise ConfigError("the module's state_dict() gives a copy of it: there is nothing to change in place")
            jobs[name] = Job(record, part, tensor, _result(record, tensor, into))
        except DdctError as error:
            raise error.at(place=archive.place, tensor=name) from None
    for job in jobs.values():
        if job.record.op == "alias":
            _check_alias(job, jobs, archive.place)
    _check_memory(jobs, archive.place)
    return jobs


def alias_source(job: Job, jobs: Mapping[str, Job]) -> torch.Tensor:
    """Of the result of the tensor that an alias names, what the alias holds."""
    assert job.record.of is not None
    source = jobs[job.record.of]
    starts = [start for start, _ in source.part.ranges]
    return source.result[
        tuple(slice(start - first, stop - first) for (start, stop), first in zip(job.part.ranges, starts, strict=True))
    ]


def _check_tensor(record: TensorRecord, part: TensorPart, tensor: torch.Tensor, into: Into) -> None:
    if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or tensor.is_meta:
        kind = "it is on the device meta" if tensor.is_meta else f"it is a {type(tensor).__name__} ({tensor.layout})"
        raise ConfigError(f"{kind}; only plain tensors can be used, of a distributed one its local part, with slices")
    base_dtype = record.base_dtype or record.dtype
    if tensor.dtype != _DTYPES.get(base_dtype) or tuple(tensor.shape) != part.shape:
        raise BaseMismatchError(
            f"the model's tensor is {tensor.dtype} {list(tensor.shape)}, the archive was made for "
            f"{base_dtype} {list(part.shape)}"
        )
    if into is None and record.base_dtype is not None:
        raise UnsupportedError(
            f"the fine-tune is {record.dtype}, the base {record.base_dtype}: it cannot be applied in place"
        )
    if not part.whole and any(layer.codec == ulp.NAME for layer in record.layers[: usable_layers(record)]):
        raise UnsupportedError("a lossless layer is decoded from the whole tensor, not from a slice")


def _result(record: TensorRecord, base: torch.Tensor, into: Into) -> torch.Tensor:
    if into is None:
        return base
    if into is True:
        try:
            return torch.empty(base.shape, dtype=_DTYPES[record.dtype], device=base.device)
        except torch.cuda.OutOfMemoryError:
            raise BudgetError(f"{base.device} has no memory left for the second buffer") from None
    given = into.get(record.name)
    if given is None or given.dtype != _DTYPES[record.dtype] or given.shape != base.shape:
        raise ConfigError(f"the second buffer has no tensor of {record.dtype} {list(base.shape)}")
    return given.detach()


def _check_alias(job: Job, jobs: Mapping[str, Job], place: str) -> None:
    """An alias has nothing of its own: what it holds must be there under the other name."""
    assert job.record.of is not None
    held = jobs[job.record.of].part.ranges
    if any(start < first or stop > last for (start, stop), (first, last) in zip(job.part.ranges, held, strict=True)):
        raise UnsupportedError(
            f"it is the same as {job.record.of!r}, of which the model holds another slice",
            place=place,
            tensor=job.record.name,
        )


def _own_memory(model: torch.nn.Module) -> set[int]:
    tensors = chain(model.parameters(), model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if type(tensor.detach()) is torch.Tensor}


@dataclass(frozen=True, slots=True)
class _Region:
    """Memory of a tensor, and what it will hold in the end: two of equal contents and views are one tensor."""

    tensor: torch.Tensor
    job: Job
    contents: tuple[str, str, TensorPart]
    written: bool

    @property
    def start(self) -> tuple[str, int]:
        return str(self.tensor.device), self.tensor.data_ptr()

    @property
    def stop(self) -> tuple[str, int]:
        steps = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        elements = 1 + sum((size - 1) * stride for size, stride in steps)
        return str(self.tensor.device), self.tensor.data_ptr() + elements * self.tensor.itemsize

    def is_one_with(self, other: _Region) -> bool:
        ours, theirs = self.tensor, other.tensor
        return self.contents == other.contents and ours.stride() == theirs.stride() and self.start == other.start


def _regions(job: Job) -> Iterator[_Region]:
    after = ("after", job.record.of or job.record.name, job.part)
    if not job.in_place:
        yield _Region(job.base, job, ("before", job.record.name, job.part), written=False)
    yield _Region(job.result, job, after, written=not job.in_place or job.record.op != "keep")


def _check_memory(jobs: Mapping[str, Job], place: str) -> None:
    """Refuse results that would lie over one another, or over a base that is to stay."""
    regions = [region for job in jobs.values() for region in _regions(job) if region.tensor.numel()]
    regions.sort(key=lambda region: region.start)
    open_ones: list[_Region] = []
    for region in regions:
        name, tensor = region.job.record.name, region.tensor
        if region.written and any(
            not stride and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        ):
            raise ConfigError("its elements share memory: it cannot be written", place=place, tensor=name)
        open_ones = [other for other in open_ones if other.stop > region.start]
        for other in open_ones:
            if (region.written or other.written) and not region.is_one_with(other) and _overlap(region, other):
                theirs = other.job.record.name
                if region.job.in_place:
                    raise UnsupportedError(
                        f"it shares memory with {theirs!r}, and the fine-tune has other contents for each: it cannot "
                        "be applied in place",
                        place=place,
                        tensor=name,
                    )
                raise ConfigError(
                    f"the second buffer shares memory with the base or itself: {theirs!r}", place=place, tensor=name
                )
        open_ones.append(region)


def _overlap(one: _Region, other: _Region) -> bool:
    """Whether two tensors share an element, of which one begins before the other ends."""
    if one.start == other.start or all(
        region.stop[1] - region.start[1] == region.tensor.nbytes for region in (one, other)
    ):
        return True
    first = min(one.start[1], other.start[1])
    touched = torch.zeros(max(one.stop[1], other.stop[1]) - first, dtype=torch.uint8)
    _seen_in(touched, one, first).fill_(1)
    return bool(_seen_in(touched, other, first).any())


def _seen_in(memory: torch.Tensor, region: _Region, first: int) -> torch.Tensor:
    """The bytes of a region's elements, in an image of the memory that begins at ``first``."""
    tensor = region.tensor
    strides = [stride * tensor.itemsize for stride in tensor.stride()]
    return memory.as_strided((*tensor.shape, tensor.itemsize), (*strides, 1), region.start[1] - first)

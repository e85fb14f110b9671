"""A model's tensors, each with its operation and settings, encoded on demand: in drafts for a search, then for good."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from math import ceil, prod
from typing import Final, TypeVar

import numpy as np

from ..backends.interface import Backend
from ..checkpoint import Checkpoint
from ..codec import dctq
from ..container.payload import StoredPayload
from ..container.records import Layer, TensorRecord
from ..container.writer import ArchiveWriter
from ..encode.blocks import share_blocks
from ..encode.delta import DeltaAnalysis, encode_delta
from ..encode.exact_tensor import encode_exactly
from ..encode.pair import TensorData
from ..encode.pair import keep as keep_pages
from ..encode.presets import Preset
from ..encode.sums import sum_delta
from ..encode.tensor import DCTQ_EFFORT, EncodedTensor, analyse_tensor, apply_delta, delta_pair, encode_tensor
from ..encode.workspace import Workspace
from ..errors import ConfigError
from .analyses import Analyses
from .drafts import Draft, Sample, SamplePlan, plan_samples, take_sample
from .freed_memory import return_freed_memory
from .parallel import DEFAULT_MEMORY, Crew
from .self_check import check_decodes_to
from .workspace import BudgetWorkspace

__all__ = ["MIN_PACK_MEMORY", "Encoded", "Encoding", "check_memory"]

MIN_PACK_MEMORY: Final = 256 << 20
"""Bytes; to pack in a smaller working set is refused."""

_RESERVE, _PLENTY = 192 << 20, 512 << 20
"""What packing takes whatever the tensors' shares are: samples, analyses, and pages of files, which come in by 2 MiB.
Where the working set is that plentiful, shares of all of it leave as much unused."""
_BYTES_PER_WEIGHT = 4
"""That encoding a tensor holds at most: symbols, the result, and the payload before and after compression."""
_CHUNK_ENTRY_BYTES = 8
_KEPT_SHARE = 16
"""Of each thread's working set: base and fine-tune of a tensor that stays mapped take an eighth of it all together."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor ready to be written.

    Attributes:
        payloads: layer by layer.
        noise, energy: Σ(t−d)² and Σ(t−b)², d being the lossy layer's result.
        stored: bytes that count for a target: the first layer's, with its entries in the chunk table.
    """

    record: TensorRecord
    payloads: tuple[StoredPayload, ...] = ()
    noise: float = 0.0
    energy: float = 0.0
    stored: int = 0


def check_memory(memory: int) -> None:
    """Refuse a working set in which packing would not stay.

    Raises:
        ConfigError: it is below :data:`MIN_PACK_MEMORY`.
    """
    if memory < MIN_PACK_MEMORY:
        raise ConfigError(f"a working set of {memory} bytes is too small: packing needs {MIN_PACK_MEMORY >> 20}M")


class Encoding:
    """What every tensor's encoding needs to know.

    Attributes:
        presets: the settings of each tensor, in the order of the archive.
        analyses: of the tensors whose preset has a target, once :meth:`analyse` has run.
        steps: their quantiser steps, as multiples of the delta's deviation.
        exact: whether a layer on top restores every tensor: then the errors of :meth:`encode_all` are 0.

    Args:
        memory: bytes of working set, at least :data:`MIN_PACK_MEMORY`. Tensors of which several fit are encoded at the
            same time; those that are larger one after another, by threads together, and what of them is too large goes
            through temporary files.
        exact: add a layer that restores the target bit for bit to every tensor that has a lossy one.
        verify: decode those layers, too, whose result the encoder knows.
    """

    def __init__(
        self,
        base: Checkpoint,
        target: Checkpoint,
        base_digests: Mapping[str, str],
        target_digests: Mapping[str, str],
        preset: Preset,
        keep: Sequence[tuple[str, Preset]],
        backend: Backend,
        writer: ArchiveWriter,
        threads: int,
        *,
        memory: int = DEFAULT_MEMORY,
        exact: bool = False,
        verify: bool = True,
    ) -> None:
        self.base = base
        self.target = target
        self.base_digests = base_digests
        self.target_digests = target_digests
        self.presets = {
            name: next((chosen for pattern, chosen in keep if fnmatchcase(name, pattern)), preset)
            for name in sorted(target.tensors, key=str.encode)
        }
        self._memory = memory if memory >= _PLENTY else memory - _RESERVE
        self._room, self._room_of_large = _rooms(memory)
        if memory < _PLENTY:
            return_freed_memory()
        self.analyses = Analyses(self._memory // 16, writer.path.parent)
        self.steps: dict[str, float] = {}
        self.writer = writer
        self._backend = backend
        self._threads = threads
        self.exact = exact
        self._verify = verify
        self._plan = SamplePlan(1.0, {})
        self._samples: dict[str, Sample] = {}
        self._first = _first_of_equals(target, target_digests)

    def is_stored(self, name: str) -> bool:
        """Whether a tensor has a payload of its own: it is neither the base's nor another one's."""
        return not self._is_kept(name) and self._first[name] == name

    def analyse(self, names: Sequence[str]) -> Iterator[str]:
        """Fill ``analyses``; yields each name when it is done, in any order."""
        infos = [self.target.tensors[name] for name in names]
        self._plan = plan_samples(infos, {name: self._elements(name) for name in names})
        for name, (analysis, sample) in self._each(self._analyse, names):
            self.analyses.add(name, analysis)
            if sample is not None:
                self._samples[name] = sample
            yield name

    @property
    def is_sampled(self) -> bool:
        """Whether drafts are about samples: then their sizes are estimates."""
        return self._plan.share < 1

    def encode_all(self, names: Sequence[str]) -> Iterator[Encoded]:
        """Encode tensors, in any order, for good: samples are not needed any more."""
        self._samples.clear()
        return (item for _, item in self._each(self._encode, names))

    def draft_all(self, names: Sequence[str], *, errors: bool = False) -> Iterator[Draft]:
        """Measure tensors as they would be encoded, in this order.

        Args:
            errors: of the lossy layers, too.
        """
        drafted = [name for name in names if self._plan.stands_for.get(name, name) == name]

        def draft(name: str, workspace: Workspace) -> Draft:
            sample = self._samples.get(name)
            if sample is not None:
                return self._draft_sample(name, sample, errors, workspace)
            item = self._encode(name, workspace, draft=not errors)
            return Draft(item.record, item.stored, item.noise, item.energy)

        found = dict(self._each(draft, drafted))
        for name in names:
            yield found[name] if name in found else self._like(name, found[self._plan.stands_for[name]])

    def _like(self, name: str, other: Draft) -> Draft:
        """What a tensor of the same shape says about this one."""
        analysis, stands_in = self.analyses.outline(name), self.analyses.outline(other.record.name)
        energies = [0.0 if a is None else a.deviation**2 for a in (analysis, stands_in)]
        share = energies[0] / energies[1] if energies[1] else 0.0
        record = TensorRecord(
            name,
            other.record.dtype,
            other.record.shape,
            self.target.tensors[name].shard,
            other.record.op,
            base=self.base_digests.get(name) if other.record.base else None,
            base_dtype=other.record.base_dtype,
            layers=tuple(
                Layer(layer.codec, layer.params, layer.size, _stand_in(self.target_digests[name]))
                for layer in other.record.layers
            ),
            error=other.record.error,
        )
        return Draft(record, other.stored, other.noise * share, other.energy * share)

    def _draft_sample(self, name: str, sample: Sample, errors: bool, workspace: Workspace) -> Draft:
        info, preset, analysis = self.target.tensors[name], self.presets[name], self.analyses.get(name)
        assert analysis is not None
        encoded = encode_delta(
            sample.pair,
            analysis.take(sample.rows),
            self.steps.get(name, 1.0),
            self._backend,
            workspace,
            coarse=preset.coarse,
            quantiser=preset.quantiser,
        )
        weight = analysis.rows / sample.pair.rows
        fixed = self.writer.compress_payload(share_blocks(encoded.fixed), effort=DCTQ_EFFORT)
        whole = self.writer.compress_payload(share_blocks(encoded.sections), effort=DCTQ_EFFORT)
        raw_size = round(fixed.raw_size + weight * (whole.raw_size - fixed.raw_size))
        stored = round(fixed.stored_size + weight * (whole.stored_size - fixed.stored_size))
        noise, energy = 0.0, analysis.deviation**2 * self._elements(name)
        if errors:
            own = sum_delta(sample.pair, self._backend, workspace).energy
            applied = apply_delta(sample.pair, encoded, self._backend, workspace)
            noise = applied[1] / own * energy if applied is not None and own else 0.0
        layer = Layer(dctq.NAME, encoded.params.as_json(), raw_size, _stand_in(self.target_digests[name]))
        record = TensorRecord(
            name,
            info.dtype,
            info.shape,
            info.shard,
            "add",
            base=self.base_digests[name],
            base_dtype=self._base_dtype(name),
            layers=(layer,),
            error=0.0,
        )
        return Draft(record, stored + _CHUNK_ENTRY_BYTES * ceil(raw_size / self.writer.chunk_size), noise, energy)

    def _analyse(self, name: str, workspace: Workspace) -> tuple[DeltaAnalysis | None, Sample | None]:
        base, target = self._base_data(name), self._data(self.target, name)
        analysis = analyse_tensor(base, target, self._backend, workspace)
        if analysis is None or not self.is_sampled or self._plan.stands_for[name] != name:
            return analysis, None
        assert base is not None
        pair = delta_pair(base, target)
        assert pair is not None
        return analysis, take_sample(pair, analysis, self._plan.share)

    def _each(self, work: Callable[[str, Workspace], Result], names: Sequence[str]) -> Iterator[tuple[str, Result]]:
        """The results for tensors, each as it is finished: the largest first, so that none is left over at the end.

        Small tensors fill what a large one leaves of the threads; there are never two of the latter at a time.
        """
        scratch = self.writer.path.parent
        small, largest = self._memory // (2 * self._threads), self._memory // 16

        def need(name: str) -> int:
            return self._elements(name) * _BYTES_PER_WEIGHT

        def is_large(name: str) -> bool:
            return need(name) > small

        def cost(name: str) -> int:
            # More than half of all: there are never two.
            return self._room_of_large or self._room if is_large(name) else need(name)

        with Crew(self._threads) as crew:

            def visit(name: str) -> tuple[str, Result]:
                if is_large(name):
                    workspace = BudgetWorkspace(largest, self._room_of_large, crew, scratch, urgent=True)
                else:
                    workspace = BudgetWorkspace(small, small, crew, scratch, urgent=False)
                try:
                    return name, work(name, workspace)
                finally:
                    for model in (self.base, self.target):
                        if name in model.tensors:
                            model.release(name)

            largest_first = sorted(names, key=lambda name: -self._elements(name))
            yield from crew.finished(visit, largest_first, cost=cost, budget=self._room)

    def _encode(self, name: str, workspace: Workspace, *, draft: bool = False) -> Encoded:
        info = self.target.tensors[name]
        digest = self.target_digests[name]
        if self._is_kept(name):
            return Encoded(TensorRecord(name, info.dtype, info.shape, info.shard, "keep", base=digest))
        first = self._first[name]
        if first != name:
            return Encoded(TensorRecord(name, info.dtype, info.shape, info.shard, "alias", of=first))
        base = self._base_data(name)
        result = self._encode_stored(name, base, self._data(self.target, name), draft, workspace)
        added = result.op == "add"
        payloads = tuple(
            self.writer.compress_payload(
                layer.sections, effort=layer.effort, spread=workspace.spread, release=workspace.release
            )
            for layer in result.layers
        )
        record = TensorRecord(
            name,
            info.dtype,
            info.shape,
            info.shard,
            result.op,
            base=self.base_digests[name] if added else None,
            base_dtype=self._base_dtype(name) if added else None,
            layers=tuple(
                Layer(layer.codec, layer.params, payload.raw_size, layer.digest or _stand_in(digest))
                for layer, payload in zip(result.layers, payloads, strict=True)
            ),
            error=_four_digits(result.noise / result.energy if result.energy else 0.0) if added else None,
        )
        if self._verify and not draft:
            self._check(record, result, base, workspace)
        # An exact preset's layers all count; one on top of a lossy layer does not.
        counted = payloads if self.presets[name].exact else payloads[:1]
        stored = sum(p.stored_size + _CHUNK_ENTRY_BYTES * len(p.sizes) for p in counted)
        return Encoded(record, payloads, result.noise, result.energy, stored)

    def _check(
        self, record: TensorRecord, result: EncodedTensor, base: TensorData | None, workspace: Workspace
    ) -> None:
        """Decode what was not decoded to be measured."""
        before = base.data if record.op == "add" and base is not None else None

        def release_base() -> None:
            if base is not None:
                base.release(0, base.data.size)

        for index, layer in enumerate(result.layers):
            if layer.result is None:
                target = self._data(self.target, record.name)
                # A layer's own result is of no more use: the next one changes it in place.
                check_decodes_to(
                    record,
                    index,
                    layer.sections,
                    before,
                    release_base,
                    target,
                    self._backend,
                    workspace,
                    before if index else None,
                )
            before = layer.result

    def _encode_stored(
        self, name: str, base: TensorData | None, target: TensorData, draft: bool, workspace: Workspace
    ) -> EncodedTensor:
        preset, digest = self.presets[name], self.target_digests[name]
        if preset.exact:
            return encode_exactly(base, target, digest, None, self._backend, workspace)
        lossy = encode_tensor(
            base,
            target,
            digest,
            preset,
            self._backend,
            workspace,
            analysis=self.analyses.get(name),
            step=self.steps.get(name, 1.0),
            draft=draft,
        )
        # Targets are the lossy layer's: drafts need no exact one.
        if not self.exact or draft:
            return lossy
        return encode_exactly(base, target, digest, lossy, self._backend, workspace)

    def _is_kept(self, name: str) -> bool:
        found, info = self.base.tensors.get(name), self.target.tensors[name]
        same_type = found is not None and (found.dtype, found.shape) == (info.dtype, info.shape)
        return same_type and self.base_digests[name] == self.target_digests[name]

    def _base_dtype(self, name: str) -> str | None:
        """The base tensor's element type, if it is another one."""
        dtype = self.base.tensors[name].dtype
        return None if dtype == self.target.tensors[name].dtype else dtype

    def _elements(self, name: str) -> int:
        return prod(self.target.tensors[name].shape)

    def _base_data(self, name: str) -> TensorData | None:
        return self._data(self.base, name) if name in self.base.tensors else None

    def _data(self, model: Checkpoint, name: str) -> TensorData:
        """Mapped; pages of a small tensor stay until it is done with, for mapping them again for each pass is dear."""
        info = model.tensors[name]
        data = np.frombuffer(model.read(name), dtype=np.uint8)
        small = data.size <= self._memory // (_KEPT_SHARE * self._threads)
        return TensorData(info.dtype, info.shape, data, keep_pages if small else partial(model.release, name))


def _rooms(memory: int) -> tuple[int, int]:
    """Of a working set, bytes for what encoding tensors allocates, and how much of it a large one may take.

    None, where there is little: it is then encoded by itself, and what is large of it lies in files.
    """
    if memory < _PLENTY:
        return (memory - _RESERVE) // 2, 0
    room = memory - _RESERVE - 2 * memory // _KEPT_SHARE
    return room, room * 4 // 5


def _first_of_equals(model: Checkpoint, digests: Mapping[str, str]) -> dict[str, str]:
    """For every tensor the first one, by name, with the same bytes, type and shape: tied weights are stored once."""
    first: dict[tuple[str, tuple[int, ...], str], str] = {}
    result = {}
    for name in sorted(model.tensors, key=str.encode):
        info = model.tensors[name]
        result[name] = first.setdefault((info.dtype, info.shape, digests[name]), name)
    return result


def _four_digits(value: float) -> float:
    """Nobody reads more of a tensor's error, and every digit is stored."""
    return float(f"{value:.4g}")


def _stand_in(digest: str) -> str:
    """For the digest of a result that was not computed: as long, and as hard to compress."""
    return hashlib.sha256(digest.encode()).hexdigest()

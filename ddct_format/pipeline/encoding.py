"""A model's tensors, each with its operation and settings, encoded on demand: in drafts for a search, then for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ..backends.interface import Backend
from ..checkpoint import Checkpoint
from ..container.digest import tensor_digest
from ..container.payload import StoredPayload
from ..container.records import Layer, TensorRecord
from ..container.writer import ArchiveWriter
from ..encode.delta import DeltaAnalysis
from ..encode.exact_tensor import encode_exactly
from ..encode.presets import Preset
from ..encode.tensor import EncodedTensor, TensorData, analyse_tensor, encode_tensor
from .parallel import map_ordered

__all__ = ["Encoded", "Encoding"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor ready to be written: its record, and its payloads layer by layer."""

    record: TensorRecord
    payloads: tuple[StoredPayload, ...] = ()
    noise: float = 0.0
    energy: float = 0.0


class Encoding:
    """What every tensor's encoding needs to know.

    Attributes:
        presets: the settings of each tensor, in the order of the archive.
        analyses: of the tensors whose preset has a target, once :meth:`analyse` has run; None: carried byte for byte.
        steps: their quantiser steps, as multiples of the delta's deviation.

    Args:
        exact: add a layer that restores the target bit for bit to every tensor that has a lossy one.
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
        exact: bool = False,
    ) -> None:
        self.base = base
        self.target = target
        self.base_digests = base_digests
        self.target_digests = target_digests
        self.presets = {
            name: next((chosen for pattern, chosen in keep if fnmatchcase(name, pattern)), preset)
            for name in sorted(target.tensors, key=str.encode)
        }
        self.analyses: dict[str, DeltaAnalysis | None] = {}
        self.steps: dict[str, float] = {}
        self.writer = writer
        self._backend = backend
        self._threads = threads
        self._exact = exact
        self._first = _first_of_equals(target, target_digests)

    def is_stored(self, name: str) -> bool:
        """Whether a tensor has a payload of its own: it is neither the base's nor another one's."""
        return not self._is_kept(name) and self._first[name] == name

    def analyse(self, names: Sequence[str]) -> Iterator[str]:
        """Fill ``analyses``; yields each name when it is done."""

        def analyse(name: str) -> DeltaAnalysis | None:
            return analyse_tensor(self._base_data(name), _tensor_data(self.target, name), self._backend)

        for name, analysis in zip(names, map_ordered(analyse, names, self._threads), strict=True):
            self.analyses[name] = analysis
            yield name

    def encode_all(self, names: Sequence[str], *, draft: bool = False) -> Iterator[Encoded]:
        """Encode tensors in this order.

        Args:
            draft: payloads and records are as large as they will be, but digests and errors are not the real ones.
        """
        return map_ordered(lambda name: self._encode(name, draft), names, self._threads)

    def _encode(self, name: str, draft: bool) -> Encoded:
        info = self.target.tensors[name]
        digest = self.target_digests[name]
        if self._is_kept(name):
            return Encoded(TensorRecord(name, info.dtype, info.shape, info.shard, "keep", base=digest))
        first = self._first[name]
        if first != name:
            return Encoded(TensorRecord(name, info.dtype, info.shape, info.shard, "alias", of=first))
        base = self._base_data(name)
        result = self._encode_stored(name, base, _tensor_data(self.target, name), draft)
        added = result.op == "add"
        assert not added or base is not None
        payloads = tuple(self.writer.compress_payload(layer.sections) for layer in result.layers)
        record = TensorRecord(
            name,
            info.dtype,
            info.shape,
            info.shard,
            result.op,
            base=self.base_digests[name] if added else None,
            base_dtype=base.dtype if added and base is not None and base.dtype != info.dtype else None,
            layers=tuple(
                Layer(
                    layer.codec,
                    layer.params,
                    payload.raw_size,
                    _stand_in(digest) if layer.result is None else tensor_digest(layer.result),
                )
                for layer, payload in zip(result.layers, payloads, strict=True)
            ),
            error=_four_digits(result.noise / result.energy if result.energy else 0.0) if added else None,
        )
        return Encoded(record, payloads, result.noise, result.energy)

    def _encode_stored(self, name: str, base: TensorData | None, target: TensorData, draft: bool) -> EncodedTensor:
        preset = self.presets[name]
        if preset.exact:
            return encode_exactly(base, target, None, self._backend)
        lossy = encode_tensor(
            base,
            target,
            preset,
            self._backend,
            analysis=self.analyses.get(name),
            step=self.steps.get(name, 1.0),
            draft=draft,
        )
        # Targets are the lossy layer's: drafts need no exact one.
        return encode_exactly(base, target, lossy, self._backend) if self._exact and not draft else lossy

    def _is_kept(self, name: str) -> bool:
        found, info = self.base.tensors.get(name), self.target.tensors[name]
        same_type = found is not None and (found.dtype, found.shape) == (info.dtype, info.shape)
        return same_type and self.base_digests[name] == self.target_digests[name]

    def _base_data(self, name: str) -> TensorData | None:
        return _tensor_data(self.base, name) if name in self.base.tensors else None


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


def _tensor_data(model: Checkpoint, name: str) -> TensorData:
    info = model.tensors[name]
    return TensorData(info.dtype, info.shape, np.frombuffer(model.read(name), dtype=np.uint8))

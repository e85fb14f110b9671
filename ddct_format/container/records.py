"""What an archive's metadata says, as records (spec section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddct_format.container.digest import model_id
from ddct_format.container.dtypes import element_count, tensor_nbytes
from ddct_format.errors import InvalidError

__all__ = [
    "FileRecord",
    "Layer",
    "Metadata",
    "Quality",
    "ShardRecord",
    "TensorRecord",
    "target_ids",
]


@dataclass(frozen=True, slots=True)
class Layer:
    """One step from the base to the target (section 5.2)."""

    codec: str
    params: Mapping[str, Any]
    size: int
    """Raw bytes of the payload."""
    digest: str
    """Digest of the tensor after this layer."""
    must_understand: bool = True


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor of the target, and how it comes about (section 5.1)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    op: str
    """``add``, ``replace``, ``keep`` or ``alias``."""
    base: str | None = None
    base_dtype: str | None = None
    of: str | None = None
    layers: tuple[Layer, ...] = ()
    error: float | None = None

    @property
    def elements(self) -> int:
        return element_count(self.shape)

    @property
    def nbytes(self) -> int:
        return tensor_nbytes(self.dtype, self.shape)

    def digest_after(self, layer: int) -> str:
        """Digest of the tensor decoded with at most its first ``layer + 1`` layers.

        Raises:
            ValueError: the tensor is an alias: ask the tensor that it names.
        """
        if self.layers:
            return self.layers[min(layer, len(self.layers) - 1)].digest
        if self.base is None:
            raise ValueError(f"{self.name!r} is an alias, whose digest is that of {self.of!r}")
        return self.base


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A safetensors file of the target, with its ``__metadata__``."""

    path: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A side file that is carried byte for byte; ``digest`` is ``sha256-64k`` of its bytes."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Quality:
    """What the encoder measured (section 5.5)."""

    preset: str
    error: float


@dataclass(frozen=True, slots=True)
class Metadata:
    """All that the metadata says; ``tensors`` and ``files`` are in the order of the file."""

    generator: str
    chunk_size: int
    base_id: str
    base_hint: Mapping[str, str]
    """Where the base may be found: ``repo``, ``revision``, ``name``, each optional."""
    target_ids: tuple[str, ...]
    exact_id: str
    shards: tuple[ShardRecord, ...]
    files: tuple[FileRecord, ...]
    tensors: tuple[TensorRecord, ...]
    quality: Quality | None = None

    @property
    def lossless(self) -> bool:
        """Whether decoding all layers yields the very model that was encoded."""
        return self.target_ids[-1] == self.exact_id


def target_ids(tensors: Sequence[TensorRecord]) -> tuple[str, ...]:
    """The model ids of section 5.3: element ``k`` for at most the first ``k + 1`` layers of each tensor.

    Raises:
        InvalidError: an alias names a tensor that is not there, or is an alias too.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    sources = [tensor if tensor.of is None else _alias_target(tensor, by_name) for tensor in tensors]
    depth = max((len(tensor.layers) for tensor in tensors), default=0)
    return tuple(
        model_id(
            (tensor.name, tensor.dtype, tensor.shape, source.digest_after(layer))
            for tensor, source in zip(tensors, sources, strict=True)
        )
        for layer in range(max(depth, 1))
    )


def _alias_target(tensor: TensorRecord, by_name: Mapping[str, TensorRecord]) -> TensorRecord:
    target = None if tensor.of is None else by_name.get(tensor.of)
    if target is None:
        raise InvalidError(f"alias of {tensor.of!r}, which is not in the archive", tensor=tensor.name)
    if target.of is not None:
        raise InvalidError(f"alias of {tensor.of!r}, which is an alias itself", tensor=tensor.name)
    if (target.dtype, target.shape) != (tensor.dtype, tensor.shape):
        raise InvalidError(f"alias of {tensor.of!r}, which has another type or shape", tensor=tensor.name)
    return target

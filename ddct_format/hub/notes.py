"""What people want to read about an archive, beside its identity."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ddct_format.container.records import Metadata

__all__ = ["Notes", "notes_of"]

_NAME = re.compile(r"[\w./-]{1,200}", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Notes:
    """Attributes:
    original_size: bytes of the model's tensors.
    bits_per_weight: of the whole archive.
    preset: how it was packed.
    error: squared error relative to the squared change; None if nothing is stored as a change.
    base_repo: repository of the base, ``owner/name``, if its packer said so; a hint, never an identity.
    base_name: what the packer calls the base; for a checkpoint that was packed against an earlier one, that one's name.
    """

    original_size: int
    bits_per_weight: float
    preset: str
    error: float | None = None
    base_repo: str | None = None
    base_name: str | None = None


def notes_of(metadata: Metadata, file_size: int) -> Notes:
    """The notes that an archive's metadata yields. What it says is not trusted further than numbers and names go."""
    parameters = sum(tensor.elements for tensor in metadata.tensors if tensor.of is None)
    quality, hint = metadata.quality, metadata.base_hint
    repo, name = hint.get("repo", ""), hint.get("name", "")
    return Notes(
        original_size=sum(tensor.nbytes for tensor in metadata.tensors if tensor.of is None),
        bits_per_weight=8 * file_size / max(1, parameters),
        preset="" if quality is None else re.sub(r"[^\w.+-]", "?", quality.preset),
        error=None if quality is None else quality.error,
        base_repo=repo if _REPOSITORY.fullmatch(repo) else None,
        base_name=name if _NAME.fullmatch(name) else None,
    )

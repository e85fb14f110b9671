"""ddct: fine-tuned models stored as small, exact changes to their base.

``pack`` writes an archive, ``unpack`` a model directory, ``verify`` checks, ``open_archive`` reads single tensors,
``apply`` changes weights that are in memory already.
Everything is imported on first use: importing ``ddct_format`` costs milliseconds, and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, open_checkpoint
    from .hub import Hub, open_hub, pull, push
    from .integrations.live import AppliedArchive, apply
    from .niceness import lower_priority
    from .pipeline.archive import Archive, open_archive
    from .pipeline.many import PackOutcome, pack_many
    from .pipeline.pack import PackReport, pack
    from .pipeline.unpack import UnpackReport, unpack
    from .pipeline.verify import VerifyReport, verify

__version__ = "0.1.0"

__all__ = [
    "AppliedArchive",
    "Archive",
    "Checkpoint",
    "Hub",
    "PackOutcome",
    "PackReport",
    "UnpackReport",
    "VerifyReport",
    "apply",
    "errors",
    "lower_priority",
    "open_archive",
    "open_checkpoint",
    "open_hub",
    "pack",
    "pack_many",
    "pull",
    "push",
    "unpack",
    "verify",
]

_HOME = {
    "AppliedArchive": "integrations.live",
    "Archive": "pipeline.archive",
    "Checkpoint": "checkpoint",
    "Hub": "hub",
    "PackOutcome": "pipeline.many",
    "PackReport": "pipeline.pack",
    "UnpackReport": "pipeline.unpack",
    "VerifyReport": "pipeline.verify",
    "apply": "integrations.live",
    "lower_priority": "niceness",
    "open_archive": "pipeline.archive",
    "open_checkpoint": "checkpoint",
    "open_hub": "hub",
    "pack": "pipeline.pack",
    "pack_many": "pipeline.many",
    "pull": "hub",
    "push": "hub",
    "unpack": "pipeline.unpack",
    "verify": "pipeline.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Everything that ddct refuses to do, as one tree.

Each leaf has its own exit status, so that a script can tell "download it again" from "wrong base"
without reading text::

    DdctError                      1   never raised itself
    ├── ArchiveError                   something is wrong with the .ddct file
    │   ├── CorruptError           3   bytes were damaged: fetch the file again
    │   │   └── TruncatedError     3   bytes are missing at the end
    │   ├── UnsupportedError       4   a newer or optional feature: upgrade ddct
    │   └── InvalidError           5   the file breaks the specification: its writer is at fault
    ├── BaseMismatchError          6   the base model is not the one that the archive was made for
    ├── CheckpointError            7   a model directory or its weights cannot be used
    ├── OutputExistsError          8   the output is already there and is never overwritten
    ├── BudgetError                9   more memory or disk would be needed than the caller allows
    ├── StorageError              10   the operating system refused: no space, no permission, ...
    ├── HubError                  11   a hub refused, failed or answered nonsense
    ├── ConfigError               12   a configuration file or option is wrong
    ├── QualityError              13   the archive would be worse than its maker allows
    └── NotDrainedError           14   the daemon did not publish everything in time

Exit status 2 is a usage error (click's), 130 an interrupt.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ArchiveError",
    "BaseMismatchError",
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "CorruptError",
    "DdctError",
    "HubError",
    "InvalidError",
    "NotDrainedError",
    "OutputExistsError",
    "QualityError",
    "StorageError",
    "TruncatedError",
    "UnsupportedError",
]


class DdctError(Exception):
    """Base of every refusal: a reason, and where it applies.

    Args:
        reason: what is wrong, in words that a user can act on; no trailing full stop.
        place: the file, directory or URL that it is about.
        tensor: the tensor that it is about, if it is about one.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, reason: str, *, place: object = None, tensor: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = None if place is None else str(place)
        self.tensor = tensor

    def __str__(self) -> str:
        parts = [self.place, None if self.tensor is None else f"tensor {self.tensor!r}", self.reason]
        return ": ".join(part for part in parts if part is not None)

    def at(self, *, place: object = None, tensor: str | None = None) -> DdctError:
        """Fill in what the raiser could not know; never overrides what it did know."""
        if self.place is None and place is not None:
            self.place = str(place)
        if self.tensor is None:
            self.tensor = tensor
        return self

    def as_dict(self) -> dict[str, object]:
        """For scripts: what kind of refusal, why, and where."""
        return {
            "code": self.code,
            "reason": self.reason,
            "place": self.place,
            "tensor": self.tensor,
            "exit_status": self.exit_status,
        }


class ArchiveError(DdctError):
    code = "archive"


class CorruptError(ArchiveError):
    code = "corrupt"
    exit_status = 3


class TruncatedError(CorruptError):
    code = "truncated"


class UnsupportedError(ArchiveError):
    code = "unsupported"
    exit_status = 4


class InvalidError(ArchiveError):
    code = "invalid"
    exit_status = 5


class BaseMismatchError(DdctError):
    code = "base-mismatch"
    exit_status = 6


class CheckpointError(DdctError):
    code = "checkpoint"
    exit_status = 7


class OutputExistsError(DdctError):
    code = "output-exists"
    exit_status = 8


class BudgetError(DdctError):
    code = "budget"
    exit_status = 9


class StorageError(DdctError):
    code = "storage"
    exit_status = 10


class HubError(DdctError):
    """Args:
    retry_after: seconds for which the hub asked not to be asked again, if it did.
    """

    code = "hub"
    exit_status = 11

    def __init__(
        self, reason: str, *, place: object = None, tensor: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(reason, place=place, tensor=tensor)
        self.retry_after = retry_after


class ConfigError(DdctError):
    code = "config"
    exit_status = 12


class QualityError(DdctError):
    code = "quality"
    exit_status = 13


class NotDrainedError(DdctError):
    code = "not-drained"
    exit_status = 14

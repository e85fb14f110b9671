"""Which local checkpoints may go, once their archives are on the hub. Off unless configured; pure, but for ``remove``.

What is removed is the original: an archive holds its weights as ddct decodes them and not its optimizer state. So
the hub's copy is read back and compared first, each removal is written to a log before it happens, and a dry run
is the default.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ddct_format.errors import HubError, StorageError
from ddct_format.hub import HubOptions, open_hub

from .listing import Kind, Listing, list_checkpoint
from .state import Entry, Stage

__all__ = ["RetentionPolicy", "base_checkpoints", "best_checkpoints", "removable", "remove_checkpoint", "verify_remote"]

_MAX_STATE_BYTES = 256 << 20
_MOVED, _REMOVING = ".tmp-moved-", ".tmp-removing-"
"""In hidden names of a checkpoint: until it was looked at again, and from then on, when it may be removed."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Attributes:
    keep_last: newest checkpoints of each run that stay, published or not; at least 1.
    keep_every: those whose step is a multiple stay; 0 for none.
    dry_run: only say what would be removed.
    """

    keep_last: int
    keep_every: int = 0
    dry_run: bool = True


def removable(
    entries: Mapping[str, Entry], listings: Iterable[Listing], needed: Collection[str], policy: RetentionPolicy
) -> list[str]:
    """Names of checkpoints that may go, oldest first.

    A checkpoint may go if it is a Trainer's, is published exactly as it is on disk now, and neither is among the last
    of its run, nor at a step to keep, nor needed.

    Args:
        needed: names of the best checkpoints, and of those that are bases, relative to the watched directory.
    """
    runs: dict[str, list[Listing]] = {}
    for listing in listings:
        if listing.kind is Kind.TRAINER:
            runs.setdefault(str(PurePosixPath(listing.name).parent), []).append(listing)
    found = []
    for checkpoints in runs.values():
        checkpoints.sort(key=lambda listing: listing.step or 0)
        for listing in checkpoints[: -max(1, policy.keep_last)]:
            entry, step = entries.get(listing.name), listing.step or 0
            kept = listing.name in needed or (policy.keep_every and step % policy.keep_every == 0)
            published = entry is not None and entry.stage is Stage.PUBLISHED
            if not kept and published and entry is not None and entry.fingerprint == listing.fingerprint:
                found.append(listing.name)
    return found


def best_checkpoints(listings: Iterable[Listing]) -> set[str]:
    """Names of the checkpoints that any trainer_state.json calls the best of its run."""
    best = set()
    for listing in listings:
        if listing.kind is not Kind.TRAINER:
            continue
        state = listing.path / "trainer_state.json"
        try:
            if not state.is_file():  # opening a named pipe would wait for a writer
                continue
            with state.open("rb") as file:
                named = json.loads(file.read(_MAX_STATE_BYTES)).get("best_model_checkpoint")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if isinstance(named, str):
            # As the Trainer saw it, perhaps from another directory or machine: only the last part is certain.
            best.add((PurePosixPath(listing.name).parent / PurePosixPath(named).name).as_posix())
    return best


def base_checkpoints(listings: Iterable[Listing], bases: Collection[Path]) -> set[str]:
    """Names of checkpoints that are, or hold, one of the bases: without it no archive can be decoded."""
    places = [Path(os.path.realpath(base)) for base in bases]
    return {
        listing.name
        for listing in listings
        if any(place.is_relative_to(os.path.realpath(listing.path)) for place in places)
    }


def verify_remote(location: str, options: HubOptions, name: str, sha256: str) -> None:
    """Read back all that the hub holds under ``name``; HubError if it is not the archive with that digest."""
    hub = open_hub(location, options)
    pointer = hub.get_pointer(name)
    if pointer is None or pointer.sha256 != sha256:
        raise HubError(f"{name!r} is not what was published", place=hub.location)
    hasher, size = hashlib.sha256(), 0
    for piece in hub.read_archive(name, pointer, 0):
        hasher.update(piece)
        size += len(piece)
    if (hasher.hexdigest(), size) != (sha256, pointer.size):
        raise HubError(f"the bytes of {name!r} are not those that were published", place=hub.location)


def remove_checkpoint(watch: Path, name: str, fingerprint: str, log: Path, why: str) -> bool:
    """Remove the directory if it is still as it was published; whether it was.

    It gets a hidden name first, in one step: nobody sees half a checkpoint under its own, and what somebody wrote until
    then is found and given back. A link is left alone. What a removal that was killed left is removed, too, or given
    back if it was not looked at again.

    Raises:
        StorageError: the log cannot be written (nothing is removed then), or the directory cannot be removed.
    """
    path = watch / name
    listing = list_checkpoint(watch, name)
    if listing is None or listing.fingerprint != fingerprint or path.is_symlink():
        return False
    try:
        _clear(path.parent)
        with log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} remove {path}: {why}\n")
            file.flush()
            os.fsync(file.fileno())
        token = secrets.token_hex(4)
        moved = path.rename(path.with_name(f".{path.name}{_MOVED}{token}"))
        if not listing.is_unchanged_at(moved):
            _give_back(moved, path)
            return False
        shutil.rmtree(moved.rename(path.with_name(f".{path.name}{_REMOVING}{token}")))
    except OSError as error:
        raise StorageError((error.strerror or str(error)).lower(), place=path) from error
    return True


def _clear(folder: Path) -> None:
    """Do away with what removals that were killed left here."""
    for leftover in folder.glob(f".*{_REMOVING}????????"):
        shutil.rmtree(leftover)
    for leftover in folder.glob(f".*{_MOVED}????????"):
        _give_back(leftover, folder / leftover.name[1 : leftover.name.rindex(_MOVED)])


def _give_back(moved: Path, path: Path) -> None:
    try:
        moved.rename(path)
    except OSError:  # somebody has made a new one
        moved.rename(path.with_name(f"{path.name}-kept-{secrets.token_hex(4)}"))

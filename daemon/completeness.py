"""Is this directory a finished checkpoint?

A stable size proves little (safetensors files have their full size from the first byte on), and a
valid weight file proves little (the rest of the checkpoint may not be there). What must hold:

1. the directory is of a known class (``listing``);
2. nothing in it or beside it says "unfinished";
3. the end marker of its class is there: ``trainer_state.json`` with ``global_step == N``;
4. its contents are whole: every weight file, every shard of the index;
5. two listings some time apart are identical (the planner's part);
6. it did not change while it was packed (the worker's part).

``gather_facts`` reads files, ``judge`` decides and is pure.
"""

from __future__ import annotations

import fnmatch
import json
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .listing import MAX_FILES, Kind, Listing

__all__ = ["Facts", "Verdict", "gather_facts", "inspect", "judge"]

_UNFINISHED = (
    ".tmp*",
    "*.tmp",
    "*.part",
    "*.incomplete",
    "checkpoint-is-incomplete.txt",
    ".metadata.tmp",
    "tmp-checkpoint-*",
)
_TRAINER_STATE = "trainer_state.json"
_SHARD_NAME = re.compile(r".*-\d{5,}-of-\d{5,}\.safetensors")
_RNG_STATE = re.compile(r"rng_state(_\d+)?\.pth")
_MAX_JSON_BYTES = 256 << 20
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit for a header."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files of a checkpoint say; a problem is a text, None means that there is none.

    Attributes:
        weights: of every ``*.safetensors`` file of the directory itself, its problem.
        archives: of every torch file (``.pt``, ``.pth``) of the directory itself, its problem.
        shards: per index file, the file names that it refers to, or its problem.
        global_step: from trainer_state.json.
        trainer_state_problem: why there is no global_step.
    """

    weights: Mapping[str, str | None] = field(default_factory=dict)
    archives: Mapping[str, str | None] = field(default_factory=dict)
    shards: Mapping[str, frozenset[str] | str] = field(default_factory=dict)
    global_step: int | None = None
    trainer_state_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``weights``: the model can be packed. ``resumable``: training could go on from here, too.

    ``reason`` says why not; it is empty if both hold.
    """

    weights: bool
    resumable: bool
    reason: str


def inspect(listing: Listing) -> Verdict:
    """``judge(listing, gather_facts(listing))``."""
    return judge(listing, gather_facts(listing))


def judge(listing: Listing, facts: Facts) -> Verdict:
    """Rules 2 to 4 of the module's docstring."""
    reason = _unfinished_sign(listing) or _missing_end_marker(listing, facts) or _incomplete_weights(listing, facts)
    if reason is not None:
        return Verdict(weights=False, resumable=False, reason=reason)
    reason = _not_resumable(listing, facts)
    return Verdict(weights=True, resumable=reason is None, reason=reason or "")


def _unfinished_sign(listing: Listing) -> str | None:
    if len(listing.files) >= MAX_FILES:
        return f"there are {MAX_FILES} files or more"
    if listing.marked_unfinished:
        return f"{listing.path.name}-unfinished stands beside it"
    for path in (*(file.path for file in listing.files), *listing.directories):
        if any(fnmatch.fnmatchcase(part, sign) for part in PurePosixPath(path).parts for sign in _UNFINISHED):
            return f"{path} is a sign of unfinished work"
    return None


def _missing_end_marker(listing: Listing, facts: Facts) -> str | None:
    if listing.kind is not Kind.TRAINER:
        return None
    if facts.trainer_state_problem is not None:
        return facts.trainer_state_problem
    if facts.global_step != listing.step:
        return f"{_TRAINER_STATE} is of step {facts.global_step}, not {listing.step}"
    return None


def _incomplete_weights(listing: Listing, facts: Facts) -> str | None:
    if not facts.weights:
        pickles = [name for name in _top_level(listing) if re.fullmatch(r"pytorch_model.*\.bin", name)]
        if pickles:
            return f"its weights are pickles ({pickles[0]}), which ddct does not read"
        return "there is no .safetensors file"
    indexed: set[str] = set()
    for index, shards in facts.shards.items():
        if isinstance(shards, str):
            return f"{index} {shards}"
        missing = sorted(shards - facts.weights.keys())
        if missing:
            return f"shard {missing[0]} of {index} is missing"
        indexed |= shards
    for name, problem in facts.weights.items():
        if problem is not None:
            return f"{name} {problem}"
        if _SHARD_NAME.fullmatch(name) and name not in indexed:
            return f"{name} is a shard, but no index lists it"
    return None


def _not_resumable(listing: Listing, facts: Facts) -> str | None:
    if listing.kind is not Kind.TRAINER:
        return "a plain model directory holds no training state"
    states = [name for name in facts.archives if _RNG_STATE.fullmatch(name)]
    for name in ("optimizer.pt", "scheduler.pt", *(states or ["rng_state.pth"])):
        if name not in facts.archives:
            return f"training state {name} is missing"
        problem = facts.archives[name]
        if problem is not None:
            return f"training state {name} {problem}"
    return None


def gather_facts(listing: Listing) -> Facts:
    """Read headers, indices and end markers; a file that cannot be read is a problem, not an error."""
    names = _top_level(listing)
    step, problem = None, None
    if listing.kind is Kind.TRAINER:
        step, problem = _global_step(listing.path / _TRAINER_STATE)
    return Facts(
        weights={name: _safetensors_problem(listing.path / name) for name in names if name.endswith(".safetensors")},
        archives={name: _zip_problem(listing.path / name) for name in names if name.endswith((".pt", ".pth"))},
        shards={name: _index_shards(listing.path / name) for name in names if name.endswith(".safetensors.index.json")},
        global_step=step,
        trainer_state_problem=problem,
    )


def _top_level(listing: Listing) -> list[str]:
    return [file.path for file in listing.files if "/" not in file.path]


def _safetensors_problem(path: Path) -> str | None:
    """Why the file is not whole: its size must be 8 + header + the end of the last tensor."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                return f"has only {size} bytes"
            (header_size,) = struct.unpack("<Q", prefix)
            if not 2 <= header_size <= min(_MAX_HEADER_BYTES, size - 8):
                return "has no complete header"
            header = json.loads(file.read(header_size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + header_size + max(ends, default=0)
    except OSError as error:
        return _unreadable(error)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "has no valid header"
    return None if size == expected else f"has {size} bytes where its header promises {expected}"


def _zip_problem(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return None if archive.namelist() else "is empty"
    except OSError as error:
        return _unreadable(error)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "is not a complete torch file"


def _index_shards(path: Path) -> frozenset[str] | str:
    try:
        shards = frozenset(_read_json(path)["weight_map"].values())
    except OSError as error:
        return _unreadable(error)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "is not a complete index"
    if not shards or not all(isinstance(shard, str) for shard in shards):
        return "lists no shards"
    return shards


def _global_step(path: Path) -> tuple[int | None, str | None]:
    try:
        step = _read_json(path)["global_step"]
    except FileNotFoundError:
        return None, f"{_TRAINER_STATE}, which is written last, is not there"
    except OSError as error:
        return None, f"{_TRAINER_STATE} {_unreadable(error)}"
    except (ValueError, TypeError, LookupError, RecursionError):
        return None, f"{_TRAINER_STATE} is not complete"
    if type(step) is not int:
        return None, f"{_TRAINER_STATE} has no whole number as global_step"
    return step, None


def _read_json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_MAX_JSON_BYTES + 1)
    if len(raw) > _MAX_JSON_BYTES:
        raise ValueError("too large")
    value = json.loads(raw)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {(error.strerror or str(error)).lower()}"

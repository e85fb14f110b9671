"""Is this directory a finished checkpoint?

A stable size proves little (safetensors files have their full size from the first byte on), and a
valid weight file proves little (the rest of the checkpoint may not be there). What must hold:

1. the directory is of a known class (``listing``);
2. nothing in it or beside it says "unfinished";
3. the end marker of its class is there: ``trainer_state.json`` with ``global_step == N``, ``.metadata`` of torch
   DCP, ``latest`` of DeepSpeed or the tracker of Megatron that has come as far; ``submit`` does without;
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
_TRACKERS = {
    Kind.TRAINER: "latest",
    Kind.DEEPSPEED: "latest",
    Kind.MEGATRON: "latest_checkpointed_iteration.txt",
}
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
        tracker: what the file says that a framework updates last: beside the checkpoint, or DeepSpeed's in it.
        adapter_problem: why adapter_config.json cannot be used, if there is one.
    """

    weights: Mapping[str, str | None] = field(default_factory=dict)
    archives: Mapping[str, str | None] = field(default_factory=dict)
    shards: Mapping[str, frozenset[str] | str] = field(default_factory=dict)
    global_step: int | None = None
    trainer_state_problem: str | None = None
    tracker: str = ""
    adapter_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``weights``: the model can be packed. ``resumable``: training could go on from here, too.

    ``reason`` says why not; it is empty if both hold. ``unsupported``: it is finished, as far as can be told, but
    of a format that ddct cannot pack.
    """

    weights: bool
    resumable: bool
    reason: str
    unsupported: bool = False


def inspect(listing: Listing, *, submitted: bool = False) -> Verdict:
    """``judge(listing, gather_facts(listing))``."""
    return judge(listing, gather_facts(listing), submitted=submitted)


def judge(listing: Listing, facts: Facts, *, submitted: bool = False) -> Verdict:
    """Rules 2 to 4 of the module's docstring.

    Args:
        submitted: somebody said that it is finished; its end marker is not asked for, its contents are.
    """
    reason = _unfinished_sign(listing) or (None if submitted else _missing_end_marker(listing, facts))
    if reason is not None:
        return Verdict(weights=False, resumable=False, reason=reason)
    reason = _unsupported(listing, facts)
    if reason is not None:
        return Verdict(weights=False, resumable=False, reason=reason, unsupported=True)
    reason = _incomplete_weights(listing, facts)
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
    match listing.kind:
        case Kind.DCP:
            whole = any(file.path == ".metadata" and file.size for file in listing.files)
            return None if whole else ".metadata, which is written last, is not there"
        case Kind.DEEPSPEED | Kind.MEGATRON:
            number = re.search(r"[0-9]{1,15}$", facts.tracker)
            if facts.tracker == "release" or (number and int(number[0]) >= (listing.step or 0)):
                return None
            return f"{_TRACKERS[listing.kind]} beside it, which is written last, has not come as far"
        case Kind.LIGHTNING:
            problems = (f"{name} {problem}" for name, problem in facts.archives.items() if problem is not None)
            return next(problems, None)
        case Kind.PLAIN:
            return f"adapter_config.json {facts.adapter_problem}" if facts.adapter_problem else None
    if facts.trainer_state_problem is not None:
        return facts.trainer_state_problem
    if facts.global_step != listing.step:
        return f"{_TRAINER_STATE} is of step {facts.global_step}, not {listing.step}"
    return None


def _unsupported(listing: Listing, facts: Facts) -> str | None:
    """What ddct cannot pack of a checkpoint that seems whole, in words that say what to do instead."""
    names = _top_level(listing)
    if "adapter_config.json" in names:
        return "a PEFT adapter is small already; ddct packs whole models, so merge it or publish it as it is"
    if facts.weights:
        return None
    if any(file.path.endswith(".distcp") for file in listing.files):
        return (
            "its weights are torch DCP shards; convert them to safetensors beside them or in a directory of their own"
        )
    if listing.kind is Kind.DEEPSPEED:
        return "its weights are DeepSpeed's pickles; convert them with zero_to_fp32.py --safe_serialization"
    if listing.kind is Kind.MEGATRON:
        return "its weights are Megatron's pickles; export them to a Hugging Face model directory"
    if listing.kind is Kind.LIGHTNING:
        return "Lightning's .ckpt files are pickles; save the model's weights as safetensors, too"
    pickles = [name for name in names if re.fullmatch(r"pytorch_model.*\.bin", name)]
    if pickles:
        return f"its weights are pickles ({pickles[0]}), which ddct does not read"
    return None


def _incomplete_weights(listing: Listing, facts: Facts) -> str | None:
    if not facts.weights:
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
        return "it holds no training state that ddct knows"
    states = [name for name in facts.archives if _RNG_STATE.fullmatch(name)] or ["rng_state.pth"]
    expected = ["optimizer.pt", "scheduler.pt", *states]
    if f"global_step{listing.step}" in listing.directories:
        # DeepSpeed keeps optimizer and scheduler, and names the step when all ranks have written.
        if facts.tracker != f"global_step{listing.step}":
            return "training state of DeepSpeed is not complete: latest does not name it"
        expected = states
    elif "optimizer_0" in listing.directories:
        if not any(file.path == "optimizer_0/.metadata" and file.size for file in listing.files):
            return "training state optimizer_0/.metadata is missing"
        expected = ["scheduler.pt", *states]
    for name in expected:
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
        archives={name: _zip_problem(listing.path / name) for name in names if name.endswith((".pt", ".pth", ".ckpt"))},
        shards={name: _index_shards(listing.path / name) for name in names if name.endswith(".safetensors.index.json")},
        global_step=step,
        trainer_state_problem=problem,
        tracker=_read_tracker(listing),
        adapter_problem=_json_problem(listing.path / "adapter_config.json") if "adapter_config.json" in names else None,
    )


def _read_tracker(listing: Listing) -> str:
    name = _TRACKERS.get(listing.kind)
    if name is None:
        return ""
    path = (listing.path if listing.kind is Kind.TRAINER else listing.path.parent) / name
    try:
        if not path.is_file():  # opening a named pipe would wait for a writer
            return ""
        with path.open("rb") as file:
            return file.read(100).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _json_problem(path: Path) -> str | None:
    try:
        _read_json(path)
    except OSError as error:
        return _unreadable(error)
    except (ValueError, RecursionError):
        return "is not complete"
    return None


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
    if path.exists() and not path.is_file():  # opening a named pipe would wait for a writer
        raise ValueError("no regular file")
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

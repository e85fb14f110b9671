"""The process that does one job: ``python -m ddct_daemon.worker``.

Reads one JSON object in one line from standard input and writes one to standard output. Jobs::

    {"job": "pack", "name", "watch", "fingerprint", "bases", "out", "preset", "device", "threads", "nice", "memory",
     "base_names", "training_state", "link", "decoded"}
      -> {"outcome": "packed", "report": {...}, "base", "left_out", "linked", "decoded"}
       | {"outcome": "changed", "reason"}     the checkpoint is not what the planner saw; pack discarded
       | {"outcome": "unusable", "reason"}    trying again will not help until the checkpoint changes
       | {"outcome": "failed", "reason"}
    {"job": "publish", "name", "hub", "hub_options", "published_name", "archive", "pointer", "replaces", "link",
     "watch", "fingerprint", "nice"}
      -> {"outcome": "published", "sha256"} | {"outcome": "failed", "reason", "retry_after"}
       | {"outcome": "unlinked", "reason"}    what it was packed against is gone from the hub; to be packed again
    {"job": "remove", "name", "watch", "fingerprint", "hub", "hub_options", "archives", "log", "why", "nice"}
      -> {"outcome": "removed"} | {"outcome": "failed", "reason"}     the hub's copies were read back and compared

When standard input ends, the daemon is dead, and so is the worker.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddct_format.errors import BaseMismatchError, CheckpointError, DdctError, StorageError

from .listing import Listing, list_checkpoint
from .priority import be_last_in_line, limit_memory

if TYPE_CHECKING:
    from ddct_format import Checkpoint, PackReport

__all__ = ["left_out_in_words", "main", "run_pack"]

_LEAST_WORKING_SET, _MOST_WORKING_SET = 256 << 20, 1 << 30
"""Bytes; the least is what packing asks for."""
_NAMED = 3
"""Names of files in a line of status; the rest are counted."""


def main() -> int:
    """Do the one job; 0 if there is an answer on standard output."""
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # The answer must be alone on standard output, whatever libraries print.
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)
        answer.write(json.dumps(_run(job)).encode() + b"\n")
    return 0


def _die_with_parent() -> None:
    # Not through sys.stdin: a thread that waits in its lock breaks the interpreter's shutdown.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _run(job: Mapping[str, Any]) -> dict[str, object]:
    be_last_in_line(job["nice"])
    try:
        if job["job"] == "pack":
            return run_pack(job)
        from .publish import run_publish, run_remove

        return run_remove(job) if job["job"] == "remove" else run_publish(job)
    except DdctError as error:
        return {"outcome": "failed", "reason": str(error)}
    except MemoryError:
        return {"outcome": "failed", "reason": "there is not enough memory"}
    except OSError as error:
        return {"outcome": "failed", "reason": str(StorageError(str(error.strerror), place=error.filename))}


def run_pack(job: Mapping[str, Any]) -> dict[str, Any]:
    """Pack one checkpoint, verify it by decoding, and discard it if the checkpoint changed meanwhile.

    The checkpoint's files are open all the time, so that rotation cannot take them away.
    """
    limit_memory(job["memory"])
    watch, name, out = Path(job["watch"]), job["name"], Path(job["out"])
    before = list_checkpoint(watch, name)
    if before is None or before.fingerprint != job["fingerprint"]:
        return {"outcome": "changed", "reason": "it changed before it was packed"}
    try:
        packed = _pack_unchanged(job, before, out)
        if before.same_or_removed(list_checkpoint(watch, name)):
            return {
                "outcome": "packed",
                "report": packed.report.as_dict(),
                "base": "" if packed.linked else str(packed.base),
                "left_out": left_out_in_words(packed.report.skipped),
                "linked": packed.linked,
                "decoded": job["decoded"] is not None and _keep_decoded(job, packed.base),
            }
    except DdctError as error:
        after = list_checkpoint(watch, name)
        if after is not None and after.fingerprint == before.fingerprint:
            about_base = error.place is not None and any(
                Path(error.place).is_relative_to(base) for base in job["bases"]
            )
            hopeless = isinstance(error, CheckpointError) and not about_base
            return {"outcome": "unusable" if hopeless else "failed", "reason": str(error)}
    out.unlink(missing_ok=True)
    return {"outcome": "changed", "reason": "it changed while it was packed; the pack was discarded"}


def left_out_in_words(skipped: Mapping[str, str]) -> str:
    """The files that an archive does not carry, for a line of status: the first ones by name."""
    names = sorted(skipped)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


@dataclass(frozen=True, slots=True)
class _Packed:
    report: PackReport
    base: Path
    linked: bool


def _pack_unchanged(job: Mapping[str, Any], listing: Listing, out: Path) -> _Packed:
    from .bases import choose_base

    link = job["link"]
    if link is not None:
        try:
            report = _pack_against(job, Path(link["model"]), {"name": link["name"]}, listing, out)
        except DdctError as error:
            # Whatever is wrong with the copy, there is the base; what is wrong with the checkpoint shows again.
            print(f"{listing.name}: not packed against {link['name']}: {error}", file=sys.stderr)
        else:
            if report.base_id == link["target_id"]:
                return _Packed(report, Path(link["model"]), linked=True)
            print(f"{listing.name}: the copy of {link['name']} is damaged", file=sys.stderr)
        out.unlink(missing_ok=True)
    # The first base's repository is the only one with a configured name.
    base = choose_base([Path(base) for base in job["bases"]], listing.path, job["base_names"])
    hint = {"repo": job["base_names"][str(base)]} if str(base) in job["base_names"] else {}
    return _Packed(_pack_against(job, base, hint, listing, out), base, linked=False)


def _pack_against(
    job: Mapping[str, Any], base_path: Path, hint: Mapping[str, str], listing: Listing, out: Path
) -> PackReport:
    from ddct_format import open_archive, open_checkpoint, pack

    training_state = job["training_state"]
    with open_checkpoint(base_path) as base, open_checkpoint(listing.path, training_state=training_state) as source:
        _check_relation(base, source)
        side_files = {file.path for file in source.side_files()}
        report = pack(
            base_path,
            listing.path,
            out,
            preset=job["preset"],
            device=job["device"],
            threads=job["threads"],
            memory=_working_set(job),
            drop_cache=True,
            training_state=training_state,
            base_hint=hint,
            verify=True,
        )
        source.check_unchanged()
    with open_archive(out) as archive:
        if {file.path for file in archive.metadata.files} != side_files:
            raise CheckpointError("its side files changed while it was packed", place=listing.path)
    return report


def _keep_decoded(job: Mapping[str, Any], base: Path) -> bool:
    """Decode the new archive for the next checkpoint of its chain; whether there was room for it."""
    from ddct_format import unpack

    try:
        unpack(
            job["out"],
            base,
            job["decoded"],
            device=job["device"],
            threads=job["threads"],
            memory=_working_set(job),
            drop_cache=True,
        )
    except StorageError as error:
        print(f"the next checkpoint will be packed against the base: {error}", file=sys.stderr)
        return False
    return True


def _working_set(job: Mapping[str, Any]) -> int:
    """Bytes for what is worked on at once: the rest of the limit is for the interpreter and its libraries."""
    return max(_LEAST_WORKING_SET, min(_MOST_WORKING_SET, job["memory"] // 2)) if job["memory"] else _MOST_WORKING_SET


def _check_relation(base: Checkpoint, source: Checkpoint) -> None:
    """Refuse a base that shares no tensor with the checkpoint: all would be stored, nothing gained."""
    for name, tensor in source.tensors.items():
        other = base.tensors.get(name)
        if other is not None and other.shape == tensor.shape:
            return
    raise BaseMismatchError(
        f"no tensor of {source.path} has the name and shape of one of the base; is it the right base?",
        place=base.path,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Publishing one packed checkpoint, in a worker of its own. The hub is the truth about what is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddct_format.errors import HubError
from ddct_format.hub import HubOptions, Pointer, annotate_archive, open_hub, publish

from .listing import list_checkpoint
from .retention import remove_checkpoint, verify_remote

__all__ = ["run_publish", "run_remove"]


def run_remove(job: Mapping[str, Any]) -> dict[str, object]:
    """Read the hub's copy back, and all that it was packed against; compare, and only then remove the original."""
    for name, sha256 in job["archives"].items():
        verify_remote(job["hub"], HubOptions(**job["hub_options"]), name, sha256)
    if remove_checkpoint(Path(job["watch"]), job["name"], job["fingerprint"], Path(job["log"]), job["why"]):
        return {"outcome": "removed"}
    return {"outcome": "failed", "reason": "it changed meanwhile; nothing was removed"}


def run_publish(job: Mapping[str, Any]) -> dict[str, object]:
    """Do it: after a crash, what is there already is not sent again."""
    try:
        hub = open_hub(job["hub"], HubOptions(**job["hub_options"]))
        hub.remove_leftovers()
        if job["link"] is not None:
            linked = hub.get_pointer(job["link"])
            if linked is None or linked.target_id != job["pointer"]["base_id"]:
                return _unlinked(job)
        pointer = publish(
            hub,
            job["published_name"],
            Pointer(**job["pointer"]),
            Path(job["archive"]),
            replaces=job["replaces"],
            notes=annotate_archive(Path(job["archive"])),
        )
    except HubError as error:
        return {"outcome": "failed", "reason": str(error), "retry_after": error.retry_after}
    return {"outcome": "published", "sha256": pointer.sha256}


def _unlinked(job: Mapping[str, Any]) -> dict[str, object]:
    """Nobody could decode the archive. It is packed again, if there still is something to pack."""
    reason = f"{job['link']}, which it was packed against, is not on the hub as it was"
    listing = list_checkpoint(Path(job["watch"]), job["name"])
    there = listing is not None and listing.fingerprint == job["fingerprint"]
    return {"outcome": "unlinked" if there else "failed", "reason": reason}

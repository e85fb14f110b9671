"""Publishing one packed checkpoint, in a worker of its own. The hub is the truth about what is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddct_format.errors import HubError
from ddct_format.hub import HubOptions, Pointer, annotate_archive, check_name, open_hub, publish

from .config import Config
from .retention import remove_checkpoint, verify_remote
from .state import Entry

__all__ = ["publish_job", "published_name", "remove_job", "run_publish", "run_remove"]


def published_name(config: Config, name: str) -> str:
    """The hub's name for a checkpoint; HubError if its directory has a name that no hub takes."""
    if name == ".":
        return check_name(config.hub_name or "model")
    return check_name(f"{config.hub_name}/{name}" if config.hub_name else name)


def publish_job(config: Config, entry: Entry, archive: Path) -> dict[str, object]:
    """The worker's job for a packed entry."""
    return {
        "job": "publish",
        "name": entry.name,
        "hub": config.hub,
        "hub_options": asdict(config.hub_options),
        "published_name": published_name(config, entry.name),
        "archive": str(archive),
        "pointer": {
            "sha256": entry.sha256,
            "size": entry.size,
            "content_id": entry.content_id,
            "base_id": entry.base_id,
            "target_id": entry.target_id,
        },
        "replaces": entry.published_sha256 or None,
    }


def remove_job(config: Config, entry: Entry) -> dict[str, object]:
    """The worker's job to remove the local original of a published entry."""
    return {
        "job": "remove",
        "name": entry.name,
        "watch": str(config.watch_path),
        "fingerprint": entry.fingerprint,
        "hub": config.hub,
        "hub_options": asdict(config.hub_options),
        "published_name": published_name(config, entry.name),
        "sha256": entry.published_sha256,
        "log": str(config.state_path / "retention.log"),
        "why": f"published as {published_name(config, entry.name)}, sha256 {entry.published_sha256}, read back now",
    }


def run_remove(job: Mapping[str, Any]) -> dict[str, object]:
    """Read the hub's copy back, compare it, and only then remove the original."""
    verify_remote(job["hub"], HubOptions(**job["hub_options"]), job["published_name"], job["sha256"])
    if remove_checkpoint(Path(job["watch"]), job["name"], job["fingerprint"], Path(job["log"]), job["why"]):
        return {"outcome": "removed"}
    return {"outcome": "failed", "reason": "it changed meanwhile; nothing was removed"}


def run_publish(job: Mapping[str, Any]) -> dict[str, object]:
    """Do it: after a crash, what is there already is not sent again."""
    try:
        hub = open_hub(job["hub"], HubOptions(**job["hub_options"]))
        hub.remove_leftovers()
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

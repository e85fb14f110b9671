"""What workers are told: each job complete, in values that are ready for JSON (see ``worker``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ddct_format.hub import check_name

from .config import Config
from .state import Entry

__all__ = ["pack_job", "publish_job", "published_name", "remove_job"]


def published_name(config: Config, name: str) -> str:
    """The hub's name for a checkpoint; HubError if its directory has a name that no hub takes."""
    if name == ".":
        return check_name(config.hub_name or "model")
    return check_name(f"{config.hub_name}/{name}" if config.hub_name else name)


def pack_job(
    config: Config, entry: Entry, out: Path, *, link: tuple[Entry, Path] | None, decoded: Path | None
) -> dict[str, object]:
    """Pack the checkpoint, as its entry's fingerprint describes it, into the new file ``out``.

    Args:
        link: the earlier checkpoint to pack it against, and the directory with its decoded copy.
        decoded: where to leave a decoded copy of what was packed, for the next one; None for nowhere.
    """
    return {
        "job": "pack",
        "name": entry.name,
        "watch": str(config.watch_path),
        "fingerprint": entry.fingerprint,
        "bases": [str(base) for base in (config.base_path, *config.other_bases)],
        "out": str(out),
        "preset": config.preset,
        "device": config.device,
        "threads": config.threads,
        "nice": config.nice,
        "memory": config.memory_bytes,
        "base_names": {str(config.base_path): config.base_repo} if config.base_repo else {},
        "training_state": config.training_state,
        "link": None
        if link is None
        else {
            "name": published_name(config, link[0].name),
            "model": str(link[1]),
            "target_id": link[0].target_id,
        },
        "decoded": None if decoded is None else str(decoded),
    }


def publish_job(config: Config, entry: Entry, archive: Path) -> dict[str, object]:
    """Publish the archive of a packed entry."""
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
        "link": published_name(config, entry.link) if entry.link else None,
        "nice": config.nice,
        "watch": str(config.watch_path),
        "fingerprint": entry.fingerprint,
    }


def remove_job(config: Config, entry: Entry, links: Sequence[Entry]) -> dict[str, object]:
    """Remove the local original of a published entry.

    Args:
        links: the entries whose archives are needed to decode that of ``entry``.
    """
    return {
        "job": "remove",
        "name": entry.name,
        "watch": str(config.watch_path),
        "fingerprint": entry.fingerprint,
        "hub": config.hub,
        "hub_options": asdict(config.hub_options),
        "archives": {published_name(config, each.name): each.published_sha256 for each in (entry, *links)},
        "log": str(config.state_path / "retention.log"),
        "nice": config.nice,
        "why": f"published as {published_name(config, entry.name)}, sha256 {entry.published_sha256}, read back now",
    }

"""Where a repository keeps its checkpoints.

Folders: all side by side on the main branch, as ``<name>/model.ddct`` and ``<name>/ddct.json``. Tags: one after the
other at the root of the main branch, as ``model.ddct`` and ``ddct.json``, each commit with a tag of the checkpoint's
name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ddct_format.errors import HubError
from ddct_format.hub.pointer import check_name

__all__ = ["Layout", "Place", "find_layout", "place_of", "tagged_name"]

Layout = Literal["folders", "tags"]

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Place:
    """The two files of a checkpoint: ``archive`` and ``pointer`` are paths, ``revision`` is where readers find them."""

    archive: str
    pointer: str
    revision: str


def place_of(layout: Layout, name: str) -> Place:
    """Where ``name`` is; HubError if it cannot be a name there."""
    if layout == "tags":
        return Place("model.ddct", "ddct.json", tagged_name(name))
    check_name(name)
    return Place(f"{name}/model.ddct", f"{name}/ddct.json", "main")


def tagged_name(name: str) -> str:
    """Return ``name`` if it can be published and be a tag that means nothing else; else raise HubError."""
    parts = check_name(name).split("/")
    if (
        ".." in name
        or any(part.endswith(".lock") for part in parts)
        or parts[0] in ("main", "HEAD", "refs")
        or _COMMIT.fullmatch(name)
    ):
        raise HubError(f"{name!r} cannot be a tag: git gives it another meaning")
    return name


def find_layout(files: Iterable[str]) -> Layout | None:
    """The layout that the files of the main branch show; None if there is no checkpoint among them."""
    found: Layout | None = None
    for path in files:
        if path == "ddct.json":
            return "tags"
        if path.endswith("/ddct.json"):
            found = "folders"
    return found

"""Where archives go: one small interface, one module per kind of hub."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ddct_format.errors import HubError
from ddct_format.hub.directory import DirectoryHub
from ddct_format.hub.interface import Hub
from ddct_format.hub.pointer import Pointer, check_name
from ddct_format.hub.transfer import PullReport, describe_archive, publish, pull, push

__all__ = [
    "DirectoryHub",
    "Hub",
    "Pointer",
    "PullReport",
    "check_name",
    "describe_archive",
    "open_hub",
    "publish",
    "pull",
    "push",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_hub(location: str) -> Hub:
    """The hub at ``location``: a path, or a ``file:///`` URL.

    HubError for other kinds of URL, and if the hub is not there.
    """
    if _URL.match(location) is None:
        return DirectoryHub(Path(location))
    url = urlsplit(location)
    if url.scheme.lower() != "file":
        raise HubError(f"hubs of the kind {url.scheme}:// are not supported yet", place=location)
    if url.netloc not in ("", "localhost") or url.query or url.fragment or not url.path.startswith("/"):
        raise HubError("a file URL has the form file:///path", place=location)
    return DirectoryHub(Path(unquote(url.path)))

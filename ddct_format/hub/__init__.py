"""Where archives go: one small interface, one module per kind of hub."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ddct_format.errors import HubError
from ddct_format.hub.check import CheckStep, check_hub
from ddct_format.hub.directory import DirectoryHub
from ddct_format.hub.interface import Hub
from ddct_format.hub.notes import Notes
from ddct_format.hub.options import HubOptions
from ddct_format.hub.pointer import Pointer, check_name
from ddct_format.hub.pulling import PullReport, pull
from ddct_format.hub.transfer import annotate_archive, describe_archive, publish, push

__all__ = [
    "CheckStep",
    "DirectoryHub",
    "Hub",
    "HubOptions",
    "Notes",
    "Pointer",
    "PullReport",
    "annotate_archive",
    "check_hub",
    "check_name",
    "describe_archive",
    "open_hub",
    "publish",
    "pull",
    "push",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_hub(location: str, options: HubOptions | None = None) -> Hub:
    """The hub at ``location``: a path, ``file:///path``, ``hf://owner/repository`` or ``s3://bucket/prefix``.

    Raises:
        HubError: the location is malformed, of an unknown kind, or a directory that is not there; or a
            library that this kind needs is not installed. Services are not contacted yet.
    """
    options = options or HubOptions()
    if _URL.match(location) is None:
        return DirectoryHub(Path(location))
    url = urlsplit(location)
    scheme = url.scheme.lower()
    if scheme not in ("file", "hf", "s3"):
        raise HubError(f"there are no hubs of the kind {scheme}://", place=location)
    if url.query or url.fragment:
        raise HubError("a hub's location has no ? and no #", place=location)
    if scheme == "hf":
        from ddct_format.hub.huggingface import HuggingFaceHub

        return HuggingFaceHub(url.netloc + url.path, options)
    if scheme == "s3":
        from ddct_format.hub.s3 import S3Hub

        return S3Hub(url.netloc, url.path.strip("/"), options)
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise HubError("a file URL has the form file:///path", place=location)
    return DirectoryHub(Path(unquote(url.path)))

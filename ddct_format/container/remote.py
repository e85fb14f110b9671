"""An archive behind a URL, read by ranges (RFC 9110, section 14).

The first request brings the start of the file, which for most models holds the preamble, the metadata and the chunk
table; each payload is one more. The huggingface_hub library does the talking: it retries what passes, follows redirects
to a storage host without taking the token along, and knows the address of a file in a repository. An object of an S3
store is read from an address that is signed here.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from ddct_format.container.s3_client import signed_s3_url
from ddct_format.errors import HubError, TruncatedError

__all__ = ["HttpSource", "hide_signatures", "hide_signatures_in_logs", "is_remote", "open_remote"]

FIRST_READ = 256 << 10
"""Bytes of the first request: metadata of some hundred tensors and their chunk table."""

_ATTEMPTS = 3
"""Answers to one request that may break off in the middle."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_HUB_FILE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[^/]+))?/(?P<path>.+)")
_S3_OBJECT = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>.+)")
_SIGNED_URL = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")
_REFUSALS = {
    401: "the server asks for a token, or refuses the one it got (401)",
    403: "the server refuses access (403)",
    404: "there is no such file, or the token may not see it (404)",
}


def is_remote(location: str) -> bool:
    """Whether :func:`open_remote` takes the location."""
    return location.startswith(("http://", "https://", "hf://", "s3://"))


def hide_signatures(text: str) -> str:
    """``text`` without the queries of its URLs, which may hold signatures."""
    return _SIGNED_URL.sub(r"\1?...", text)


def hide_signatures_in_logs() -> None:
    """Apply :func:`hide_signatures` to what huggingface_hub logs about requests that it repeats."""
    log = logging.getLogger("huggingface_hub.utils._http")
    if not any(isinstance(each, _HideSignatures) for each in log.filters):
        log.addFilter(_HideSignatures())


class _HideSignatures(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = hide_signatures(record.getMessage()), ()
        return True


def open_remote(location: str) -> HttpSource:
    """Open ``http(s)://…``, ``hf://owner/repository[@revision]/path`` or ``s3://bucket/key``.

    For hf:// the user's token is sent, to HF_ENDPOINT if that is set; a ``/`` in a revision is written ``%2F``. For s3://
    credentials, region and endpoint come from where AWS tools look.

    Raises:
        HubError: the address is malformed, or the server cannot be read by ranges.
    """
    if location.startswith("s3://"):
        found = _S3_OBJECT.fullmatch(location)
        if found is None:
            raise HubError("an object is written s3://bucket/key", place=location)
        return HttpSource(signed_s3_url(found["bucket"], found["key"], location), name=location)
    if not location.startswith("hf://"):
        return HttpSource(location, name=hide_signatures(location))
    match = _HUB_FILE.fullmatch(location)
    if match is None:
        raise HubError("a hub file is written hf://owner/repository[@revision]/path", place=location)
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(match["repo"], match["path"], revision=unquote(match["revision"] or "main"))
    return HttpSource(url, name=location, headers=build_hf_headers())


class HttpSource:
    """Random access over HTTP. The file must not change: its entity tag is compared at every read.

    Args:
        url: of the file.
        name: what messages call it; the URL when absent.
        headers: sent with every request to the URL's own host.

    Raises:
        HubError: the server refuses, fails, or does not support ranges.
    """

    read_size = 16 << 20
    """A request costs a fraction of a second, and what it brings is in memory, whole."""

    def __init__(self, url: str, *, name: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.name = name or url
        self._url = url
        self._headers = dict(headers or {})
        self._tag: str | None = None
        self.size = 0
        self._start = b""
        hide_signatures_in_logs()
        self._start = self._request(0, FIRST_READ)

    def read_at(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            found = max(0, self.size - offset)
            raise TruncatedError(f"only {found} of {length} bytes exist at offset {offset}", place=self.name)
        if offset + length <= len(self._start):
            return self._start[offset : offset + length]
        kept = self._start[offset:]
        return kept + self._request(offset + len(kept), length - len(kept))

    def close(self) -> None:
        """Nothing is held: connections belong to the library's session."""

    def _request(self, offset: int, length: int) -> bytes:
        """The bytes of a range; for the first request as many as there are."""
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(_BrokenError):
                return self._try_request(offset, length)
        return self._try_request(offset, length)

    def _try_request(self, offset: int, length: int) -> bytes:
        from huggingface_hub.utils import http_stream_backoff

        headers = {**self._headers, "Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        try:
            with http_stream_backoff("GET", self._url, headers=headers, max_retries=2) as response:
                return self._checked(response, offset, length)
        except HubError:
            raise
        except Exception as error:  # the library's and its HTTP client's errors share no base
            raise HubError(f"cannot be read: {hide_signatures(str(error))}", place=self.name) from error

    def _checked(self, response: Any, offset: int, length: int) -> bytes:
        first = not self._start
        if response.status_code == 416 and first:
            return b""
        if response.status_code in _REFUSALS:
            advice = ": hf auth login, or set HF_TOKEN" if self.name.startswith("hf://") else ""
            raise HubError(_REFUSALS[response.status_code] + advice, place=self.name)
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or match is None:
            raise HubError(
                f"answered {response.status_code}; ddct reads by ranges, which this server or address does not support",
                place=self.name,
            )
        begin, last, size = (int(group) for group in match.groups())
        if begin != offset or last >= size or last - begin >= length or (not first and last - begin != length - 1):
            raise HubError("the server sent another range than it was asked for", place=self.name)
        tag = response.headers.get("ETag")
        if first:
            self.size, self._tag = size, tag
        elif (size, tag) != (self.size, self._tag):
            raise HubError("the file changed while it was read", place=self.name)
        body = bytearray()
        pieces = response.iter_bytes()
        while piece := self._next(pieces):
            body += piece
            if len(body) > length:
                raise HubError("the server sent more than it was asked for", place=self.name)
        if len(body) != last - begin + 1:
            raise _BrokenError("the connection ended early", place=self.name)
        return bytes(body)

    def _next(self, pieces: Iterator[bytes]) -> bytes:
        try:
            return next(pieces, b"")
        except Exception as error:
            # Not to be seen by the library, which repeats requests only up to their first byte.
            raise _BrokenError(f"the connection broke: {hide_signatures(str(error))}", place=self.name) from error


class _BrokenError(HubError):
    """An answer that ended too soon; the same request may do better."""

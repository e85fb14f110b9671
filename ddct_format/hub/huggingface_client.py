"""The few requests that ddct makes to the Hugging Face Hub, with every failure as a HubError."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddct_format.container.remote import hide_signatures_in_logs
from ddct_format.errors import HubError
from ddct_format.hub.options import HubOptions
from ddct_format.hub.token import read_token, scrub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Client", "Head"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_OFFICIAL = "https://huggingface.co"
_HOUR = 3600.0
_RETRIES: dict[str, Any] = {"max_retries": 2, "retry_on_status_codes": (500, 502, 503, 504)}
"""Not 429: the library would sleep as long as it is told to, and nobody could see why."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Head:
    """A branch or tag now: its commit, the paths in it, and whether the repository is private (None: not told)."""

    commit: str
    files: tuple[str, ...]
    private: bool | None


class Client:
    """One repository at one endpoint. HubError for a name that is none; nothing is contacted yet."""

    def __init__(self, repository: str, options: HubOptions) -> None:
        self.location = f"hf://{repository}"
        if _REPOSITORY.fullmatch(repository) is None:
            raise HubError("a repository is written hf://owner/name", place=self.location)
        self._repository = repository
        self._options = options
        self._opened: HfApi | None = None
        self._xet: bool | None = None

    def head(self, revision: str = "main") -> Head | None:
        """The state of a branch or tag; None if there is no such tag or repository, or this token may not see it."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with self._errors():
            try:
                info = self._api.repo_info(self._repository, revision=revision)
            except RevisionNotFoundError:
                if revision == "main":
                    raise
                return None
            except RepositoryNotFoundError as error:
                if error.response.status_code == 401:
                    raise
                return None
        if not isinstance(info.sha, str):
            raise HubError(f"the hub does not tell the commit of {revision}", place=self.location)
        files = tuple(file.rfilename for file in info.siblings or ())  # type: ignore[union-attr]
        return Head(info.sha, files, getattr(info, "private", None))

    def create(self, *, private: bool) -> None:
        """Make the repository; nothing happens if it is there already."""
        with self._errors():
            self._api.create_repo(self._repository, private=private, exist_ok=True)

    def commit(self, message: str, operations: Sequence[Any], parent: str) -> None:
        """Upload and commit, only on top of ``parent`` where the hub honours that. Never repeated here."""
        with self._errors():
            self._choose_transfer()
            self._api.create_commit(
                self._repository, operations, commit_message=message, parent_commit=parent, num_threads=1
            )

    def recent_commits(self) -> list[tuple[str, str]]:
        """Id and title of the newest commits of the main branch; none if the hub does not tell them."""
        from huggingface_hub.utils import build_hf_headers, get_session

        url = f"{self._api.endpoint}/api/models/{self._repository}/commits/main"
        # A convenience that some hubs lack.
        with contextlib.suppress(Exception):
            answer = get_session().get(url, headers=build_hf_headers(token=self._api.token))
            return [(str(item["id"]), str(item["title"])) for item in answer.json()]
        return []

    def honours_ranges(self, path: str, revision: str) -> bool:
        """Whether the first byte of a file can be had alone."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, http_stream_backoff

        url = hf_hub_url(self._repository, path, revision=revision, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token) | {"Range": "bytes=0-0"}
        with self._errors(), http_stream_backoff("GET", url, headers=headers, **_RETRIES) as response:
            return bool(response.status_code == 206)

    def uses_xet(self) -> bool:
        """Whether uploads go to Xet storage, and not to git's large file storage."""
        with self._errors():
            self._choose_transfer()
        return bool(self._xet)

    def tags(self) -> tuple[str, ...]:
        """Names of all tags."""
        with self._errors():
            return tuple(tag.name for tag in self._api.list_repo_refs(self._repository).tags)

    def tag(self, name: str, commit: str) -> None:
        """Make a tag. HubError if it exists."""
        with self._errors():
            self._api.create_tag(self._repository, tag=name, revision=commit)

    def remove_tag(self, name: str) -> None:
        """Remove a tag; nothing happens if it is not there."""
        from huggingface_hub.errors import RevisionNotFoundError

        with self._errors(), contextlib.suppress(RevisionNotFoundError):
            self._api.delete_tag(self._repository, tag=name)

    def file_digest(self, path: str, commit: str) -> str | None:
        """sha256 of a file in large file storage, as the hub tells it; None if it does not."""
        folder = path.rpartition("/")[0]
        # Hubs without this request, or with half an answer, leave the caller to read the bytes.
        with contextlib.suppress(Exception):
            for entry in self._api.list_repo_tree(self._repository, folder or None, revision=commit):
                lfs = getattr(entry, "lfs", None)
                if entry.path == path and lfs is not None and _SHA256.fullmatch(str(lfs.sha256)):
                    return str(lfs.sha256)
        return None

    def read_small(self, path: str, limit: int, commit: str = "main") -> bytes | None:
        """A whole file of at most ``limit`` bytes; None if it is not there."""
        try:
            data = b"".join(self.read(path, commit, 0, limit + 1))
        except FileNotFoundError:
            return None
        if len(data) > limit:
            raise HubError(f"is larger than {limit} bytes", place=f"{self.location}/{path}")
        return data

    def read(self, path: str, commit: str, begin: int, end: int) -> Iterator[bytes]:
        """Bytes of a file from ``begin`` to before ``end``, or to its own end, in pieces.

        Raises:
            FileNotFoundError: there is no such file, or no such repository.
            HubError: the hub refuses or fails, maybe after some pieces.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, http_stream_backoff

        url = hf_hub_url(self._repository, path, revision=commit, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token)
        headers |= {"Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"}
        with self._errors(), http_stream_backoff("GET", url, headers=headers, **_RETRIES) as response:
            if response.status_code == 404:
                raise FileNotFoundError(path)
            if response.status_code == 416:  # nothing is there, which is right for an empty file
                return
            _check_status(response)
            # A hub that ignores ranges sends all, again.
            skip = begin if response.status_code == 200 else 0
            limit = end - begin
            # A connection that breaks here is the caller's to go on from: the library would begin again.
            with self._errors():
                # As they come: a size to collect would lose the last ones when the connection breaks.
                for piece in response.iter_bytes():
                    useful = piece[skip:]
                    skip = max(0, skip - len(piece))
                    if useful and limit > 0:
                        yield useful[:limit]
                        limit -= len(useful)
                    if limit <= 0:
                        return

    @property
    def _api(self) -> HfApi:
        if self._opened is None:
            from huggingface_hub import HfApi
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
            hide_signatures_in_logs()
            token = read_token(self._options.token_file)
            # False and not None: the library must not go looking for another token.
            self._opened = HfApi(endpoint=self._options.endpoint, token=token or False)
        return self._opened

    def _choose_transfer(self) -> None:
        """Let the library use Xet only where it works: on a hub without it, uploads would end in a 404."""
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers, get_session

        if self._xet is None:
            self._xet = self._api.endpoint == _OFFICIAL
            if not self._xet:
                url = f"{self._api.endpoint}/api/models/{self._repository}/xet-write-token/main"
                response = get_session().get(url, headers=build_hf_headers(token=self._api.token))
                self._xet = response.status_code == 200
            self._xet = self._xet and not _disabled_by_user()
        constants.HF_HUB_DISABLE_XET = not self._xet

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the library and its HTTP client raise, which share no base, into HubError."""
        try:
            yield
        except (HubError, FileNotFoundError):
            raise
        except Exception as error:
            raise self._hub_error(error) from error

    def _hub_error(self, error: Exception) -> HubError:
        token = self._opened.token if self._opened is not None else None
        # The library hides what happened behind "Error while uploading".
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        said = dict.fromkeys(" ".join(str(each).split()) for each in (error, root))
        text = scrub(": ".join(filter(None, said)), token if isinstance(token, str) else None)
        response = getattr(error, "response", None) or getattr(root, "response", None)
        status = getattr(response, "status_code", None)
        retry_after = _pause(text + _body(response), response) if status == 429 else None
        if status is not None:
            told = getattr(error, "server_message", None) or getattr(root, "server_message", None)
            told = f": {scrub(' '.join(told.split()), None)}" if told else ""
            text = f"the hub answered {status}{told}"
            if status in (401, 403):
                text = (
                    f"the hub refuses the token ({status}{told}); hf auth login, HF_TOKEN or a token file give another"
                )
        # By name: the library has changed its HTTP client before.
        if isinstance(root, OSError) or type(root).__name__ in ("ConnectError", "ConnectTimeout"):
            text = f"the hub cannot be reached ({text}): is the network up, and the address right?"
        return HubError(text or type(error).__name__, place=self.location, retry_after=retry_after)


def _check_status(response: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code not in (200, 206):
        response.read()
        hf_raise_for_status(response)
        raise HubError(f"the hub answered {response.status_code}")


def _pause(text: str, response: Any) -> float:
    """Seconds to keep quiet. The commit limit is per hour, whatever short time Retry-After names."""
    if "hour" in text.lower():
        return _HOUR
    told = str(response.headers.get("Retry-After", ""))
    return min(float(told), _HOUR) if re.fullmatch(r"\d{1,6}", told) else 60.0


def _body(response: Any) -> str:
    try:
        return str(response.text)[:4096]
    except Exception:  # a streamed body that was never read
        return ""


def _disabled_by_user() -> bool:
    return os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")

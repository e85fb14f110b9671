"""Does a hub keep what ddct needs? The promises of ``interface``, tried on the user's own endpoint."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ddct_format.errors import DdctError, HubError
from ddct_format.hub.fetch import fetch_archive
from ddct_format.hub.interface import Hub
from ddct_format.hub.pointer import Pointer

__all__ = ["CheckStep", "check_hub"]

_BYTES = 3 << 20


@dataclass(frozen=True, slots=True)
class CheckStep:
    """Attributes:
    promise: what was tried.
    problem: what went wrong; None if the promise was kept.
    findings: what else is worth knowing, in plain sentences; no reason not to use the hub.
    """

    promise: str
    problem: str | None
    findings: tuple[str, ...] = ()


def check_hub(hub: Hub) -> Iterator[CheckStep]:
    """Publish, read, replace and remove two archives of random bytes under a name of their own.

    Nothing else is touched. Stops at the first promise that is not kept, after clearing up.
    """
    name = f"ddct-check-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="ddct-check-") as directory:
        steps = _Steps(hub, name, Path(directory))
        try:
            for promise, attempt in steps.all():
                problem = _try(attempt)
                yield CheckStep(promise, problem)
                if problem is not None:
                    return
            findings: list[str] = []
            problem = _try(lambda: findings.extend(hub.look_closer(name, steps.published)))
            yield CheckStep("and stays what it is when things are tried on it", problem, tuple(findings))
            if problem is not None:
                return
        finally:
            problem = _try(lambda: hub.remove(name))
        yield CheckStep("what was published for this check is removed", problem)


def _try(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except DdctError as error:
        return str(error)
    return None


class _Steps:
    def __init__(self, hub: Hub, name: str, directory: Path) -> None:
        self._hub, self._name, self._directory = hub, name, directory
        self._first, self._second = _make(directory / "first"), _make(directory / "second")

    def all(self) -> Iterator[tuple[str, Callable[[], object]]]:
        yield "the hub answers, and an unknown name is unknown", self._unknown
        yield "an archive is published", lambda: self._publish(self._first, "first")
        yield "it comes back, byte for byte", lambda: self._fetch(self._first)
        yield "reading goes on from the middle", lambda: self._resume(self._first)
        yield "publishing again changes nothing", lambda: self._publish(self._first, "first")
        yield "the name is listed", self._listed
        yield "another archive takes over the name", lambda: self._publish(self._second, "second")
        yield "and comes back", lambda: self._fetch(self._second)

    @property
    def published(self) -> Pointer:
        """What the name stands for after all steps."""
        return self._second

    def _unknown(self) -> None:
        _require(self._hub.get_pointer(self._name) is None, "a name that nobody used stands for something")

    def _publish(self, pointer: Pointer, file: str) -> None:
        self._hub.put_archive(self._name, pointer, self._directory / file)
        _require(self._hub.get_pointer(self._name) == pointer, "the name does not stand for what was published")
        _require(self._hub.has_archive(self._name, pointer), "the hub does not show the archive")

    def _fetch(self, pointer: Pointer) -> None:
        fetch_archive(self._hub, self._name, pointer, self._directory / "back")
        (self._directory / "back").unlink()

    def _resume(self, pointer: Pointer) -> None:
        (self._directory / "back").write_bytes((self._directory / "first").read_bytes()[: _BYTES // 2])
        fetched = fetch_archive(self._hub, self._name, pointer, self._directory / "back")
        (self._directory / "back").unlink()
        _require(fetched == _BYTES - _BYTES // 2, "the hub sent more than the missing half")

    def _listed(self) -> None:
        _require(self._name in self._hub.list_names(), "the published name is not in the list of names")


def _make(path: Path) -> Pointer:
    data = os.urandom(_BYTES)
    path.write_bytes(data)
    digests = (secrets.token_hex(32) for _ in range(3))
    return Pointer(hashlib.sha256(data).hexdigest(), len(data), *digests)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise HubError(problem)

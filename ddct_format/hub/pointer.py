"""What a published name stands for: a small record, and the rules for names.

Names and pointers come from hubs that others can write to, so both are checked strictly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

from ddct_format.errors import HubError
from ddct_format.limits import MAX_INTEGER

__all__ = ["MAX_POINTER_BYTES", "Pointer", "check_name", "check_sha256", "parse_pointer", "serialise_pointer"]

MAX_POINTER_BYTES = 64 << 10
"""Largest pointer file that is read; real ones have a few hundred bytes."""

_VERSION = 1
_MAX_NAME_LENGTH = 512
_MAX_NAME_DEPTH = 8
_NAME_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pointer:
    """The archive that a name stands for.

    Attributes:
        sha256: of the whole ``.ddct`` file; also the key of the object in the hub.
        size: bytes of the ``.ddct`` file.
        content_id: identity of the archive's content, whatever its compression (spec section 5).
        base_id: model id of the base that decoding needs (spec section 1.2).
        target_id: model id of the model that decoding yields.
    """

    sha256: str
    size: int
    content_id: str
    base_id: str
    target_id: str


def check_name(name: str) -> str:
    """Return ``name`` if it may be published, else raise HubError.

    A name is 1 to 8 components joined by ``/``, at most 512 characters. A component has 1 to 96
    ASCII letters, digits, ``.``, ``_`` and ``-``, begins with a letter or digit, and does not end
    in ``.`` or ``.json``: names become paths and URLs, and must mean the same everywhere.
    """
    components = name.split("/")
    if len(name) > _MAX_NAME_LENGTH or len(components) > _MAX_NAME_DEPTH:
        raise HubError(f"a published name has at most {_MAX_NAME_LENGTH} characters in {_MAX_NAME_DEPTH} parts")
    for component in components:
        usable = _NAME_COMPONENT.fullmatch(component) is not None
        if not usable or component.endswith((".", ".json")):
            raise HubError(f"{name!r} cannot be a published name: the part {component!r} is not allowed")
    return name


def check_sha256(value: object) -> str:
    """Return ``value`` if it is 64 lower-case hexadecimal digits, else raise HubError."""
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        raise HubError("a sha256 must be 64 lower-case hexadecimal digits")
    return value


def serialise_pointer(pointer: Pointer) -> bytes:
    """The pointer as one JSON object in UTF-8, with a trailing line feed."""
    record = {"version": _VERSION, **asdict(pointer)}
    return json.dumps(record, indent=1).encode() + b"\n"


def parse_pointer(raw: bytes) -> Pointer:
    """Read what ``serialise_pointer`` wrote; anything else is a HubError.

    Unknown names are refused: a later version that needs more fields raises ``version``.
    """
    if len(raw) > MAX_POINTER_BYTES:
        raise HubError(f"the pointer is larger than {MAX_POINTER_BYTES} bytes")
    try:
        record = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HubError("the pointer is not valid JSON") from error
    if not isinstance(record, dict):
        raise HubError("the pointer is not a JSON object")
    if record.get("version") != _VERSION:
        raise HubError("the pointer is of a version that this ddct does not know")
    expected = {"version", *(field.name for field in fields(Pointer))}
    if set(record) != expected:
        raise HubError(f"the pointer must have exactly these fields: {', '.join(sorted(expected))}")
    return Pointer(
        sha256=_digest(record, "sha256"),
        size=_size(record),
        content_id=_digest(record, "content_id"),
        base_id=_digest(record, "base_id"),
        target_id=_digest(record, "target_id"),
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("duplicate name")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _digest(record: Mapping[str, object], field: str) -> str:
    try:
        return check_sha256(record[field])
    except HubError as error:
        raise HubError(f"the pointer's {field} is not 64 lower-case hexadecimal digits") from error


def _size(record: Mapping[str, object]) -> int:
    size = record["size"]
    if type(size) is not int or not 0 < size <= MAX_INTEGER:
        raise HubError("the pointer's size is not a positive integer")
    return size

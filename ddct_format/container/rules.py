"""Rules for parsed JSON values: what a value must be, and what it stands for.

A rule is a function that takes a value and returns what it stands for, or refuses it with InvalidError or
UnsupportedError. Members are checked in the order of the file, so that two readers give the same error for
the same file (spec section 9, step 6).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from ddct_format.errors import ArchiveError, InvalidError, UnsupportedError
from ddct_format.limits import MAX_COMPONENT_BYTES, MAX_NAME_BYTES, MAX_PATH_BYTES

__all__ = [
    "ArrayRule",
    "ObjectRule",
    "Rule",
    "boolean",
    "digest",
    "integer",
    "measure",
    "one_of",
    "params",
    "relative_path",
    "tensor_name",
    "text",
    "texts",
]

T = TypeVar("T")
Rule = Callable[[Any], T]

_is_digest = re.compile("[0-9a-f]{64}").fullmatch
_control_character = re.compile("[\x00-\x1f\x7f-\x9f]").search
_path_character = re.compile(r"[\x00-\x1f\x7f-\x9f\\:]").search


_PLAIN = frozenset({str, int, bool, type(None)})


class ObjectRule(Generic[T]):
    """The rule of an object: its members, and what is built of them."""

    def __init__(
        self,
        build: Callable[[dict[str, Any]], T],
        required: Mapping[str, Rule[Any]],
        optional: Mapping[str, Rule[Any]] | None = None,
    ) -> None:
        self._build = build
        self._rules = {**required, **(optional or {})}
        self._required = frozenset(required)

    def __call__(self, value: Any) -> T:
        if type(value) is not dict:
            raise InvalidError("must be an object")
        members: dict[str, Any] = {}
        rules = self._rules
        for name, member in value.items():
            rule = rules.get(name, _extension)
            try:
                if rule is not _extension:
                    members[name] = rule(member)
                elif name.startswith("x-"):
                    _extension(member)
                else:
                    raise InvalidError("is not a name that the format defines")
            except ArchiveError as error:
                raise _inside(error, f"{name[:80]!r}") from None
        if not self._required <= members.keys():
            missing = next(name for name in self._rules if name in self._required - members.keys())
            raise InvalidError(f"{missing!r} is missing")
        return self._build(members)


class ArrayRule(Generic[T]):
    """The rule of an array: how many elements, and the rule of each."""

    def __init__(self, element: Rule[T], least: int, most: int) -> None:
        self._element = element
        self._least = least
        self._most = most

    def __call__(self, value: Any) -> tuple[T, ...]:
        if type(value) is not list:
            raise InvalidError("must be an array")
        if not self._least <= len(value) <= self._most:
            raise InvalidError(f"has {len(value)} elements, not {self._least} … {self._most}")
        element = self._element
        built: list[T] = []
        try:
            for item in value:
                built.append(element(item))
        except ArchiveError as error:
            raise _inside(error, f"element {len(built)}") from None
        return tuple(built)


def _inside(error: ArchiveError, where: str) -> ArchiveError:
    error.reason = f"{where}: {error.reason}"
    return error


def _extension(value: Any) -> Any:
    """A value that the container does not interpret; even there, numbers are integers (5.5)."""
    if type(value) is float:
        raise InvalidError("has a number with a fraction or an exponent")
    if type(value) is list or type(value) is dict:
        items = value.values() if type(value) is dict else value
        # Most values hold numbers and texts alone, which is seen without a loop of our own.
        if not _PLAIN.issuperset(map(type, items)):
            for item in items:
                _extension(item)
    return value


def text(most: int | None = None) -> Rule[str]:
    """The rule of a text, of at most ``most`` bytes in UTF-8."""

    def rule(value: Any) -> str:
        if type(value) is not str:
            raise InvalidError("must be a text")
        if most is not None and _utf8_size(value) > most:
            raise InvalidError(f"is longer than {most} bytes")
        return value

    return rule


def texts(value: Any) -> dict[str, str]:
    """An object of texts, whose names are data and may be anything."""
    if type(value) is not dict or not all(type(text) is str for text in value.values()):
        raise InvalidError("must be an object of texts")
    return value


def params(value: Any) -> dict[str, Any]:
    """An object that a codec defines; its numbers are integers."""
    if type(value) is not dict:
        raise InvalidError("must be an object")
    _extension(value)
    return value


def digest(value: Any) -> str:
    """A digest in hexadecimal."""
    if type(value) is not str or not _is_digest(value):
        raise InvalidError("must be 64 lower-case hexadecimal digits")
    return value


def integer(least: int, most: int) -> Rule[int]:
    """The rule of an integer in ``least`` … ``most``."""

    def rule(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise InvalidError(f"must be an integer in {least} … {most}")
        return value

    return rule


def measure(value: Any) -> float:
    """A number that is not negative; the one kind that may have a fraction (5.5)."""
    if type(value) is not int and type(value) is not float:
        raise InvalidError("must be a number")
    if value < 0:
        raise InvalidError("must not be negative")
    return float(value)


def boolean(value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise InvalidError("must be true or false")
    return value


def one_of(known: frozenset[str]) -> Rule[str]:
    """The rule of a text of which newer versions may define others: those are Unsupported."""

    def rule(value: Any) -> str:
        if type(value) is not str:
            raise InvalidError("must be a text")
        if value not in known:
            raise UnsupportedError(f"{value[:80]!r} is not known")
        return value

    return rule


def tensor_name(value: Any) -> str:
    """The name of a tensor (5.1)."""
    if type(value) is not str or not value or _utf8_size(value) > MAX_NAME_BYTES:
        raise InvalidError(f"must be a text of 1 … {MAX_NAME_BYTES} bytes")
    if not value.isprintable() and _control_character(value):
        raise InvalidError("has a control character")
    return value


def relative_path(value: Any) -> str:
    """A path that stays below the directory it is joined to, on every system (5.4)."""
    if type(value) is not str or not value or _utf8_size(value) > MAX_PATH_BYTES:
        raise InvalidError(f"must be a text of 1 … {MAX_PATH_BYTES} bytes")
    if _path_character(value):
        raise InvalidError("is a path with a control character, a backslash or a colon")
    for component in value.split("/"):
        # A component that ends in a full stop covers "." and ".." as well.
        if not component or component[-1] in ". " or _utf8_size(component) > MAX_COMPONENT_BYTES:
            raise InvalidError("is not a relative path of plain components")
    return value


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())

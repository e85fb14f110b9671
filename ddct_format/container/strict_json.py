"""JSON as the format allows it (spec section 5): what the standard library's parser lets through is refused.

The library accepts duplicate names (the last wins), NaN, lone surrogates and integers of any size,
and its depth is bounded by the interpreter's stack alone.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from typing import Any, Final, NoReturn

from ddct_format.errors import InvalidError
from ddct_format.limits import MAX_INTEGER, MAX_JSON_DEPTH

__all__ = ["MAY_BE_SURROGATE", "check_depth", "parse_fraction", "parse_integer", "parse_json", "unique_names"]

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
MAY_BE_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_INTEGER_DIGITS: Final = len(str(MAX_INTEGER))


def parse_json(raw: bytes) -> Any:
    """The one JSON value in ``raw``: dict, list, str, int, float, bool or None.

    Raises:
        InvalidError: not UTF-8, a byte order mark, not JSON, a duplicate name, a lone surrogate, an
            integer beyond ±(2^53 - 1), a number that is not finite, or nesting above 16.
    """
    if raw.startswith(_BYTE_ORDER_MARK):
        raise InvalidError("metadata begins with a byte order mark")
    try:
        value = json.JSONDecoder(
            object_pairs_hook=unique_names,
            parse_int=parse_integer,
            parse_float=parse_fraction,
            parse_constant=_constant,
        ).decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidError(f"metadata is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidError(f"metadata is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise InvalidError(f"metadata is nested more than {MAX_JSON_DEPTH} deep") from None
    check_depth(value)
    # Only an escape can bring in a lone surrogate. Most files have none of these escapes.
    if MAY_BE_SURROGATE.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidError("metadata has a lone surrogate in a text") from None
    return value


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidError(f"metadata has the name {name[:80]!r} twice in one object")
            seen.add(name)
    return members


# Dimensions, parameters and sizes repeat: most integers of a file are found here.
@lru_cache(maxsize=1024)
def parse_integer(text: str) -> int:
    # The length first: the time that int() takes grows with the square of it.
    if len(text) <= _INTEGER_DIGITS + 1 and abs(value := int(text)) <= MAX_INTEGER:
        return value
    raise InvalidError(f"metadata has the integer {text[:40]}, which is beyond ±(2^53-1)")


def parse_fraction(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidError(f"metadata has the number {text[:40]}, which is not finite")
    return value


def _constant(text: str) -> NoReturn:
    raise InvalidError(f"metadata has {text}, which is not JSON")


def check_depth(value: Any) -> None:
    # Level by level: a comprehension visits three million values in a fifth of a second.
    level: list[Any] = [[value]]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise InvalidError(f"metadata is nested more than {MAX_JSON_DEPTH} deep")

"""Which names, shapes and paths an archive can carry (spec sections 1, 5.1 and 5.4).

A checkpoint that breaks these rules is refused when it is opened, not after hours of packing.
"""

from __future__ import annotations

import re

from ddct_format.container.dtypes import DTYPE_BITS
from ddct_format.errors import CheckpointError
from ddct_format.limits import MAX_COMPONENT_BYTES, MAX_ELEMENTS, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_RANK

__all__ = ["PathSet", "check_tensor", "path_problem", "printable"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_tensor(name: str, dtype: str, shape: tuple[int, ...], place: object) -> None:
    """Check a tensor's name, element type and shape against spec sections 1 and 5.1.

    Raises:
        CheckpointError: naming the tensor and `place`.
    """
    problem = _name_problem(name)
    if problem is None and dtype not in DTYPE_BITS:
        problem = f"element type {dtype} is not supported"
    if problem is None:
        problem = _shape_problem(shape)
    if problem is not None:
        raise CheckpointError(problem, place=place, tensor=name)


def path_problem(path: str) -> str | None:
    """Say what keeps a relative path out of an archive (spec section 5.4); None if nothing does."""
    size = _utf8_size(path)
    if size is None:
        return "its name is not UTF-8"
    if not 1 <= size <= MAX_PATH_BYTES:
        return f"its path is not 1 to {MAX_PATH_BYTES} bytes long"
    if _CONTROL.search(path):
        return "its path holds a control character"
    if "\\" in path or ":" in path:
        return "its path holds a backslash or a colon"
    for component in path.split("/"):
        if component in ("", ".", ".."):
            return "it is not a plain relative path"
        if component.endswith((".", " ")):
            return "a part of its path ends in a full stop or a space"
        if len(component.encode()) > MAX_COMPONENT_BYTES:
            return f"a part of its path is longer than {MAX_COMPONENT_BYTES} bytes"
    return None


class PathSet:
    """Paths that can stand in one archive: each plain, and all distinct without case (spec section 5)."""

    def __init__(self) -> None:
        self._files: dict[bytes, str] = {}
        self._directories: dict[bytes, str] = {}

    def add(self, path: str) -> str | None:
        """Add a path of a file, or say what keeps it out; None if nothing does."""
        problem = path_problem(path)
        if problem is not None:
            return problem
        # bytes.lower folds ASCII alone, as the specification does.
        folded = path.encode().lower()
        parents = [folded[:index] for index, byte in enumerate(folded) if byte == ord("/")]
        other = self._files.get(folded) or self._directories.get(folded)
        for parent in parents:
            other = other or self._files.get(parent)
        if other is not None:
            return f"its path differs from that of {other} only in case"
        self._files[folded] = path
        self._directories.update(dict.fromkeys(parents, path))
        return None


def printable(path: str) -> str:
    """A path as valid text: bytes that are not UTF-8 are spelled out."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _name_problem(name: str) -> str | None:
    size = _utf8_size(name)
    if size is None or not 1 <= size <= MAX_NAME_BYTES:
        return f"a tensor's name must be 1 to {MAX_NAME_BYTES} bytes of UTF-8"
    if _CONTROL.search(name):
        return "a tensor's name must not hold control characters"
    return None


def _shape_problem(shape: tuple[int, ...]) -> str | None:
    if len(shape) > MAX_RANK:
        return f"{len(shape)} dimensions are more than {MAX_RANK}"
    elements = 1
    for dimension in shape:
        # Zero counts as one: a huge dimension must not hide behind an empty one.
        elements *= max(dimension, 1)
    if elements > MAX_ELEMENTS:
        return f"{elements} elements are more than {MAX_ELEMENTS}"
    return None


def _utf8_size(text: str) -> int | None:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None

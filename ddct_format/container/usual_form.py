"""Metadata as ddct itself writes it, parsed and checked in one pass: an archive may list 100,000 tensors.

What is not of exactly the usual form, be it a member more, another order or a value out of bounds, is left to the rules
of ``schema.py``, which are the ones that decide and that say what is wrong. Nothing is accepted here that they refuse,
and the records are the same (tests/container/test_usual_form.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn

from ddct_format.container.dtypes import DTYPE_BITS
from ddct_format.container.records import Layer, Metadata, TensorRecord
from ddct_format.container.schema import check_metadata_object
from ddct_format.container.strict_json import MAY_BE_SURROGATE, check_depth, parse_fraction, parse_integer, unique_names
from ddct_format.errors import ArchiveError
from ddct_format.limits import MAX_ELEMENTS, MAX_INTEGER, MAX_LAYERS, MAX_NAME_BYTES, MAX_PAYLOAD_SIZE, MAX_RANK

__all__ = ["parse_usual_form"]

_LAYER: Final = ("codec", "params", "size", "digest")
_HEAD: Final = ("name", "dtype", "shape", "shard", "op")
_FORMS: Final = {
    (*_HEAD, "base", "layers", "error"): "add",
    (*_HEAD, "base", "base_dtype", "layers", "error"): "add",
    (*_HEAD, "layers"): "replace",
    (*_HEAD, "base"): "keep",
    (*_HEAD, "of"): "alias",
}
"""Operations by the names of a tensor's members."""

_PLAIN: Final = frozenset({str, int, bool})
_INTEGERS: Final = frozenset({int})
_is_digest = re.compile("[0-9a-f]{64}").fullmatch

Pairs = list[tuple[str, Any]]


class _Unusual(Exception):  # noqa: N818 - nothing is wrong
    """Something for the rules to decide."""


def parse_usual_form(raw: bytes) -> Metadata | None:
    """The metadata of the raw bytes, checked as spec section 9, step 6 demands; None where the rules must decide."""
    if MAY_BE_SURROGATE.search(raw):
        return None
    try:
        document = json.JSONDecoder(
            object_pairs_hook=_Builder().build,
            parse_int=parse_integer,
            parse_float=parse_fraction,
            parse_constant=_constant,
        ).decode(raw.decode("utf-8"))
        if type(document) is not dict:
            return None
        tensors = document["tensors"]
        rest = {**document, "tensors": []}
        check_depth(rest)
        if type(tensors) is not list or not {TensorRecord}.issuperset(map(type, tensors)) or _holds_records(rest):
            return None
        return replace(check_metadata_object(rest), tensors=tuple(tensors))
    except (_Unusual, ArchiveError, ValueError, KeyError, TypeError, RecursionError):
        return None


class _Builder:
    """Makes records of the objects of one document, innermost first."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[int, ...], bool] = {}

    def build(self, pairs: Pairs) -> Any:
        """A Layer or TensorRecord where the members' names are theirs; an object like any other otherwise."""
        names = tuple([name for name, _ in pairs])
        if names == _LAYER:
            return _layer(*[value for _, value in pairs])
        op = _FORMS.get(names)
        return unique_names(pairs) if op is None else self._tensor(op, dict(pairs))

    def _tensor(self, op: str, members: dict[str, Any]) -> TensorRecord:
        shape = members["shape"]
        if type(shape) is not list or not _INTEGERS.issuperset(map(type, shape)):
            raise _Unusual
        dimensions = tuple(shape)
        usual = self._shapes.get(dimensions)
        if usual is None:
            usual = self._shapes[dimensions] = _is_shape(dimensions)
        name, dtype, shard = members["name"], members["dtype"], members["shard"]
        base, base_dtype, of = members.get("base"), members.get("base_dtype"), members.get("of")
        layers, error = members.get("layers", ()), members.get("error")
        if not (
            usual
            and members["op"] == op
            and _is_name(name)
            and type(dtype) is str
            and dtype in DTYPE_BITS
            and type(shard) is int
            and 0 <= shard <= MAX_INTEGER
            and ("base" not in members or (type(base) is str and _is_digest(base)))
            and ("base_dtype" not in members or (base_dtype in DTYPE_BITS and base_dtype != dtype))
            and ("of" not in members or _is_name(of))
            and ("layers" not in members or _are_layers(layers))
            and ("error" not in members or ((type(error) is float or type(error) is int) and error >= 0))
        ):
            raise _Unusual
        error = None if error is None else float(error)
        return TensorRecord(name, dtype, dimensions, shard, op, base, base_dtype, of, tuple(layers), error)


def _layer(codec: Any, params: Any, size: Any, digest: Any) -> Layer:
    if not (
        type(codec) is str
        and type(size) is int
        and 0 <= size <= MAX_PAYLOAD_SIZE
        and type(digest) is str
        and _is_digest(digest)
        and type(params) is dict
        and all(type(value) in _PLAIN or _is_table(value) for value in params.values())
    ):
        raise _Unusual
    return Layer(codec, params, size, digest)


def _is_table(value: Any) -> bool:
    """A list of plain values, or of lists of them."""
    return type(value) is list and (
        _PLAIN.issuperset(map(type, value))
        or all(type(row) is list and _PLAIN.issuperset(map(type, row)) for row in value)
    )


def _are_layers(value: Any) -> bool:
    return type(value) is list and 1 <= len(value) <= MAX_LAYERS and {Layer}.issuperset(map(type, value))


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_NAME_BYTES and value.isascii() and value.isprintable()


def _is_shape(dimensions: Sequence[int]) -> bool:
    elements = 1
    for dimension in dimensions:
        elements *= dimension or 1
    return len(dimensions) <= MAX_RANK and min(dimensions, default=0) >= 0 and elements <= MAX_ELEMENTS


def _holds_records(value: Any) -> bool:
    """Whether an object that only looked like a tensor or a layer stands elsewhere."""
    if type(value) is dict or type(value) is list:
        return any(map(_holds_records, value.values() if type(value) is dict else value))
    return type(value) is Layer or type(value) is TensorRecord


def _constant(text: str) -> NoReturn:
    raise _Unusual

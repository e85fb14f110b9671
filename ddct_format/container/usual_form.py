"""Metadata as ddct itself writes it, read by one pattern for each tensor: an archive may list 100,000 of them.

What is not of exactly the usual form, be it a member more, a blank, another order or a value out of bounds, is left to
the rules of ``schema.py``, which are the ones that decide and that say what is wrong. Nothing is accepted here that
they refuse, and the records are the same (tests/container/test_usual_form.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import prod
from typing import Any, Final, NoReturn

from ddct_format.container.dtypes import DTYPE_BITS
from ddct_format.container.records import Layer, Metadata, TensorRecord
from ddct_format.container.schema import check_metadata_object
from ddct_format.container.strict_json import MAY_BE_SURROGATE, check_depth, parse_fraction, parse_integer, unique_names
from ddct_format.errors import ArchiveError
from ddct_format.limits import MAX_ELEMENTS, MAX_LAYERS, MAX_NAME_BYTES, MAX_PAYLOAD_SIZE, MAX_RANK, MAX_TENSORS

__all__ = ["parse_usual_form"]

# Each matches JSON of one kind, and less of it than the rules allow: texts without escapes, no integer beyond
# 2^53 - 1, no number that is negative or not finite.
_CHARACTER: Final = r"[ !#-\[\]-~]"
_NAME: Final = f"{_CHARACTER}{{1,{MAX_NAME_BYTES}}}"
_DTYPE: Final = "|".join(DTYPE_BITS)
_DIGEST: Final = "[0-9a-f]{64}"
_NATURAL: Final = "(?:0|[1-9][0-9]{0,14})"
_SHAPE: Final = rf"(?:{_NATURAL}(?:,{_NATURAL}){{0,{MAX_RANK - 1}}})?"
_MEASURE: Final = rf"{_NATURAL}(?:\.[0-9]{{1,30}})?(?:e[-+]?[0-9]{{1,2}})?"


def _layer_pattern(group: str) -> str:
    """A layer; what stands in it are groups if ``group`` is "(", and are not if it is "(?:".

    Parameters are an object without braces or escapes inside. Whether it is one is seen by parsing it.
    """
    return (
        rf'\{{"codec":"{group}{_CHARACTER}*)","params":{group}\{{[^{{}}\\]*\}}),'
        rf'"size":{group}{_NATURAL}),"digest":"{group}{_DIGEST})"\}}'
    )


_find_layers: Final = re.compile(_layer_pattern("(")).findall
_match_tensor: Final = re.compile(
    rf'\{{"name":"({_NAME})","dtype":"({_DTYPE})","shape":\[({_SHAPE})\],"shard":({_NATURAL}),'
    rf'"op":"(add|replace|keep|alias)"(?:,"base":"({_DIGEST})")?(?:,"base_dtype":"({_DTYPE})")?(?:,"of":"({_NAME})")?'
    rf'(?:,"layers":\[{_layer_pattern("(")}((?:,{_layer_pattern("(?:")}){{0,{MAX_LAYERS - 1}}})\])?'
    rf'(?:,"error":({_MEASURE}))?\}}'
).match
_FORMS: Final = {
    ("add", True, False, True),
    ("replace", False, False, True),
    ("keep", True, False, False),
    ("alias", False, True, False),
}
"""What goes together: an operation, a base, another tensor's name, layers."""
_PLAIN: Final = frozenset({str, int, bool})


class _Unusual(Exception):  # noqa: N818 - nothing is wrong
    """Something for the rules to decide."""


def parse_usual_form(raw: bytes) -> Metadata | None:
    """The metadata of the raw bytes, checked as spec section 9, step 6 demands; None where the rules must decide."""
    if MAY_BE_SURROGATE.search(raw):
        return None
    try:
        return _Parser(raw.decode("utf-8")).metadata()
    except (_Unusual, ArchiveError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None


class _Parser:
    """Reads one document. What is written the same in many tensors is read and checked once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._value = json.JSONDecoder(
            object_pairs_hook=unique_names,
            parse_int=parse_integer,
            parse_float=parse_fraction,
            parse_constant=_constant,
        ).raw_decode
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._params: dict[str, dict[str, Any]] = {}

    def metadata(self) -> Metadata:
        """The whole document: an object, member by member."""
        text = self._text
        members: list[tuple[str, Any]] = []
        tensors: tuple[TensorRecord, ...] = ()
        position, before = 0, "{"
        while text[position] == before:
            name, position = self._value(text, position + 1)
            if type(name) is not str or text[position] != ":":
                raise _Unusual
            if name == "tensors":
                tensors, position = self._tensors(position + 1)
                members.append((name, []))
            else:
                value, position = self._value(text, position + 1)
                members.append((name, value))
            before = ","
        if text[position:] != "}":
            raise _Unusual
        rest = unique_names(members)
        check_depth(rest)
        return replace(check_metadata_object(rest), tensors=tensors)

    def _tensors(self, position: int) -> tuple[tuple[TensorRecord, ...], int]:
        """The array that begins at ``position``, and where it ends."""
        text, match_tensor, tensor = self._text, _match_tensor, self._tensor
        records: list[TensorRecord] = []
        before = "["
        while text[position] == before:
            match = match_tensor(text, position + 1)
            if match is None:
                raise _Unusual
            records.append(tensor(*match.groups()))
            position = match.end()
            before = ","
        if text[position] != "]" or not 0 < len(records) <= MAX_TENSORS:
            raise _Unusual
        return tuple(records), position + 1

    def _tensor(
        self,
        name: str,
        dtype: str,
        shape: str,
        shard: str,
        op: str,
        base: str | None,
        base_dtype: str | None,
        of: str | None,
        codec: str | None,
        params: str,
        size: str,
        digest: str,
        more: str,
        error: str | None,
    ) -> TensorRecord:
        if (op, base is not None, of is not None, codec is not None) not in _FORMS or (
            base_dtype is not None and (op != "add" or base_dtype == dtype)
        ):
            raise _Unusual
        layers: tuple[Layer, ...] = ()
        if codec is not None:
            layers = (self._layer(codec, params, size, digest),)
            if more:
                layers += tuple([self._layer(*groups) for groups in _find_layers(more)])
        return TensorRecord(
            name,
            dtype,
            self._shapes.get(shape) or self._shape(shape),
            int(shard),
            op,
            base,
            base_dtype,
            of,
            layers,
            None if error is None else float(error),
        )

    def _shape(self, text: str) -> tuple[int, ...]:
        shape = tuple([int(dimension) for dimension in text.split(",") if text])
        if prod([dimension or 1 for dimension in shape]) > MAX_ELEMENTS:
            raise _Unusual
        self._shapes[text] = shape
        return shape

    def _layer(self, codec: str, text: str, size_text: str, digest: str) -> Layer:
        params = self._params.get(text)
        if params is None:
            params = self._params[text] = self._parse_params(text)
        size = int(size_text)
        if size > MAX_PAYLOAD_SIZE:
            raise _Unusual
        return Layer(codec, params, size, digest)

    def _parse_params(self, text: str) -> dict[str, Any]:
        params: dict[str, Any]
        params, end = self._value(text)
        if end != len(text) or not all(type(value) in _PLAIN or _is_table(value) for value in params.values()):
            raise _Unusual
        return params


def _is_table(value: Any) -> bool:
    """A list of plain values, or of lists of them."""
    return type(value) is list and (
        _PLAIN.issuperset(map(type, value))
        or all(type(row) is list and _PLAIN.issuperset(map(type, row)) for row in value)
    )


def _constant(text: str) -> NoReturn:
    raise _Unusual

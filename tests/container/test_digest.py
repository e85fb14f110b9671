"""Spec section 1: element types, tensor digests, model ids."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.container.digest import TensorHasher, model_id, tensor_digest
from ddct_format.container.dtypes import DTYPE_BITS, element_count, tensor_nbytes
from ddct_format.errors import UnsupportedError

from . import forge


def test_a_scalar_has_one_element_and_a_zero_dimension_none() -> None:
    assert element_count(()) == 1
    assert element_count((3, 0, 5)) == 0
    assert tensor_nbytes("BF16", (3, 5)) == 30
    assert tensor_nbytes("F64", ()) == 8


def test_element_types_are_those_of_the_specification() -> None:
    groups = {
        8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0",
        16: "I16 U16 F16 BF16",
        32: "I32 U32 F32",
        64: "I64 U64 F64 C64",
    }
    assert dict(DTYPE_BITS) == {name: bits for bits, names in groups.items() for name in names.split()}


def test_an_unknown_element_type_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="F4"):
        tensor_nbytes("F4", (2,))


def test_the_digest_of_no_bytes_has_no_leaves() -> None:
    assert tensor_digest(b"") == hashlib.sha256(bytes(8)).hexdigest()


def test_the_digest_of_three_bytes_by_hand() -> None:
    expected = hashlib.sha256(struct.pack("<Q", 3) + hashlib.sha256(b"abc").digest()).hexdigest()
    assert tensor_digest(b"abc") == expected


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 131072, 200000])
def test_leaves_are_64_kib(size: int) -> None:
    data = bytes(index * 7 % 251 for index in range(size))
    assert tensor_digest(data) == forge.digest_of(data)


@given(st.lists(st.sampled_from([0, 65536, 131072, 196608]), max_size=4), st.integers(0, 70000))
def test_parts_of_whole_leaves_may_be_hashed_by_themselves(sizes: list[int], last: int) -> None:
    hasher, whole = TensorHasher(), bytearray()
    for number, size in enumerate([*sizes, last]):
        data = bytes([number + 1]) * size
        part = TensorHasher()
        part.update(data)
        hasher.extend(part)
        whole += data
    assert hasher.hexdigest() == tensor_digest(bytes(whole))
    if last % 65536:
        with pytest.raises(ValueError, match="leaf"):
            hasher.extend(TensorHasher())


def test_the_digest_of_an_array_is_that_of_its_bytes() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert tensor_digest(array) == tensor_digest(array.tobytes())
    assert tensor_digest(np.empty((0, 4), dtype=np.float32)) == tensor_digest(b"")


@given(cuts=st.lists(st.integers(0, 150_000), max_size=8))
def test_pieces_of_any_size_give_the_same_digest(cuts: list[int]) -> None:
    data = bytes(150_000)
    hasher = TensorHasher()
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        hasher.update(data[start:stop])
    assert hasher.hexdigest() == tensor_digest(data)


def test_a_model_id_is_the_hash_of_its_sorted_lines() -> None:
    lines = f"a\tF32\t\t{'1' * 64}\nb\tBF16\t2,3\t{'2' * 64}\n"
    entries = [("b", "BF16", (2, 3), "2" * 64), ("a", "F32", (), "1" * 64)]
    assert model_id(entries) == hashlib.sha256(lines.encode()).hexdigest()


@given(names=st.sets(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=2))
def test_the_lines_of_a_model_id_are_sorted_by_the_bytes_of_the_name(names: set[str]) -> None:
    ordered = sorted(names, key=lambda name: name.encode())
    lines = "".join(f"{name}\tU8\t1\t{'0' * 64}\n" for name in ordered)
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert model_id((name, "U8", (1,), "0" * 64) for name in names) == expected

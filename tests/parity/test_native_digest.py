"""Digests of many leaves at once, on every instruction set, against hashlib one after another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ddct_format.container.digest import LEAF_SIZE, tensor_digest
from ddct_format.native.digest import digest, tensor_hasher

from .paths import CORE_PATHS, computing_by

_SIZES = [0, 3, LEAF_SIZE, 8 * LEAF_SIZE - 1, 8 * LEAF_SIZE, 17 * LEAF_SIZE, 23 * LEAF_SIZE + 5, 24 * LEAF_SIZE + 1]


@pytest.mark.parametrize("path", ["numpy", *CORE_PATHS])
@pytest.mark.parametrize("size", _SIZES)
def test_digests_are_those_of_hashlib(path: str, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    with computing_by(path):
        assert digest(data) == tensor_digest(data)


@pytest.mark.parametrize("path", CORE_PATHS)
def test_pieces_that_end_inside_of_a_leaf_give_the_same_digest(path: str) -> None:
    data = np.random.default_rng(7).bytes(40 * LEAF_SIZE + 11)
    cuts = [0, 5, 9 * LEAF_SIZE, 9 * LEAF_SIZE + 1, 30 * LEAF_SIZE + 1, len(data)]
    with computing_by(path):
        hasher = tensor_hasher()
        for start, stop in pairwise(cuts):
            hasher.update(data[start:stop])
        assert hasher.hexdigest() == tensor_digest(data)


@pytest.mark.skipif("avx512" not in CORE_PATHS, reason="needs AVX-512")
def test_whole_groups_of_leaves_are_done_at_once() -> None:
    from ddct_format import native

    assert native.core is not None
    with computing_by("avx512"):
        assert len(native.core.leaf_digests(bytes(20 * LEAF_SIZE), LEAF_SIZE)) == 16 * 32
        assert len(native.core.leaf_digests(bytes(25 * LEAF_SIZE), LEAF_SIZE)) == 25 * 32
        with pytest.raises(ValueError, match="whole blocks"):
            native.core.leaf_digests(bytes(1000), 100)

"""What rows in an order of their own bring into memory of a mapped file is counted by large pages."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.codec.dctq import DctqParams
from ddct_format.codec.mapped import LARGEST_PAGE, brought_in
from ddct_format.codec.patches import PatchGrid


@given(st.permutations(range(20)), st.sampled_from([1, 4096, LARGEST_PAGE // 3, LARGEST_PAGE, 3 * LARGEST_PAGE + 1]))
def test_pages_count_when_they_come_in(order: list[int], row_bytes: int) -> None:
    pages, previous, expected = 0, -1, []
    for row in order:
        for page in range(row * row_bytes // LARGEST_PAGE, (row * row_bytes + row_bytes - 1) // LARGEST_PAGE + 1):
            pages += page != previous
            previous = page
        expected.append(pages * LARGEST_PAGE)
    assert brought_in(np.array(order), row_bytes).tolist() == expected


def test_rows_with_keys_sweep_over_the_tensor_once_for_each_key() -> None:
    rows, cols = 4096, 2048
    keys = np.tile(np.array([0, 1], dtype=np.uint8), rows // 2)
    params = DctqParams(PatchGrid(rows, cols, 16), "dct", "levels", ((0, 1, -1),), row_keys=True)
    nbytes = 2 * rows * cols
    touched = params.brought_in(np.concatenate([np.zeros(4, np.uint8), keys]), nbytes)  # a scale comes first
    assert touched(0) == 0
    assert touched(nbytes // 2) == nbytes
    assert touched(nbytes) == 2 * nbytes
    plain = DctqParams(PatchGrid(rows, cols, 16), "dct", "levels", ((0, 1, -1),))
    assert plain.brought_in(keys, nbytes)(12345) == 12345


def test_a_payload_that_ends_too_soon_is_no_error_here() -> None:
    params = DctqParams(PatchGrid(4096, 2048, 16), "dct", "levels", ((0, 1, -1),), row_keys=True)
    assert params.brought_in(np.zeros(100, dtype=np.uint8), 2 * 4096 * 2048)(4096) == LARGEST_PAGE

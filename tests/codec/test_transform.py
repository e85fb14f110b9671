"""Section 7.2.3, step 2: the integer transforms."""

from __future__ import annotations

import numpy as np
import pytest

from ddct_format.codec.transform import PATCH_SIZES, TRANSFORMS, analysis_matrix, basis_matrix, largest_sum


def test_the_first_rows_of_the_dct_basis() -> None:
    assert basis_matrix("dct", 8)[:2].tolist() == [[64] * 8, [88, 75, 50, 18, -18, -50, -75, -88]]
    assert basis_matrix("dct", 16)[1].tolist()[:8] == [90, 86, 79, 70, 57, 42, 26, 9]


def test_the_hadamard_basis_is_sylvesters() -> None:
    assert basis_matrix("hadamard", 8)[3].tolist() == [1, -1, -1, 1, 1, -1, -1, 1]


@pytest.mark.parametrize("patch", PATCH_SIZES)
def test_the_dct_basis_is_nearly_orthogonal(patch: int) -> None:
    basis = basis_matrix("dct", patch).astype(np.float64)
    gram = basis @ basis.T / np.outer(np.linalg.norm(basis, axis=1), np.linalg.norm(basis, axis=1))
    assert np.abs(gram - np.eye(patch)).max() < 0.01


@pytest.mark.parametrize("patch", PATCH_SIZES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_analysis_inverts_synthesis(transform: str, patch: int) -> None:
    basis, analysis = basis_matrix(transform, patch), analysis_matrix(transform, patch)
    levels = np.random.default_rng(0).integers(-127, 128, (patch, patch))
    assert np.array_equal(np.rint(analysis @ (basis.T @ levels @ basis) @ analysis.T), levels)


@pytest.mark.parametrize("patch", PATCH_SIZES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_largest_sum_is_reached_and_fits_32_bits(transform: str, patch: int) -> None:
    basis = basis_matrix(transform, patch).astype(np.int64)
    signs = np.sign(basis[:, np.abs(basis).sum(axis=0).argmax()])
    assert np.abs(basis.T @ np.outer(signs, signs) @ basis).max() == largest_sum(transform, patch)
    assert 127 * largest_sum(transform, patch) < 2**31


def test_sixteen_point_sums_stay_exact_in_binary32_up_to_level_19() -> None:
    assert largest_sum("dct", 16) == 874225
    assert 19 * largest_sum("dct", 16) <= 2**24 < 20 * largest_sum("dct", 16)

"""Section 7.2: parameters and payload of dctq.v1."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.codec.dctq import DctqParams, DctqPayload, build_sections, parse_payload
from ddct_format.errors import InvalidError

from .layers import layers

VALID: dict[str, Any] = {
    "cols": 4,
    "patch": 8,
    "transform": "dct",
    "quantiser": "levels",
    "classes": [[0], [0, -1, 1]],
}


@given(layers())
def test_parameters_round_trip_through_json(layer: tuple[DctqParams, DctqPayload]) -> None:
    params, _ = layer
    assert DctqParams.parse(params.as_json(), params.grid.rows * params.grid.cols) == params


@given(layers())
def test_payloads_round_trip_and_keep_the_size_bounds(layer: tuple[DctqParams, DctqPayload]) -> None:
    params, payload = layer
    stored = np.concatenate(build_sections(params, payload))
    smallest, largest = params.size_bounds()
    assert smallest <= stored.size <= largest
    parsed = parse_payload(params, stored)
    for field in fields(DctqPayload):
        ours, theirs = getattr(payload, field.name), getattr(parsed, field.name)
        if field.name == "codes":
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        else:
            assert np.array_equal(ours, theirs), field.name


@given(layers(), st.data())
def test_a_payload_of_another_size_is_invalid(layer: tuple[DctqParams, DctqPayload], data: st.DataObject) -> None:
    params, payload = layer
    stored = np.concatenate(build_sections(params, payload))
    smallest, _ = params.size_bounds()
    longer = np.append(stored, np.uint8(0))
    with pytest.raises(InvalidError):
        parse_payload(params, longer)
    if stored.size > smallest:
        with pytest.raises(InvalidError):
            parse_payload(params, stored[: data.draw(st.integers(smallest, stored.size - 1))])


@pytest.mark.parametrize(
    "change",
    [
        {"cols": 0},
        {"cols": 3},
        {"cols": True},
        {"cols": 4.0},
        {"patch": 12},
        {"patch": "8"},
        {"transform": "wavelet"},
        {"transform": None},
        {"quantiser": "vector"},
        {"classes": []},
        {"classes": [[0]] * 256},
        {"classes": [[1]]},
        {"classes": [[]]},
        {"classes": [[0, 128]]},
        {"classes": [[0, -128]]},
        {"classes": [[0, True]]},
        {"classes": ["01"]},
        {"classes": [4]},
        {"quantiser": "affine"},
        {"quantiser": "affine", "classes": [0]},
        {"quantiser": "affine", "classes": [128]},
        {"sparse": []},
        {"sparse": [0]},
        {"sparse": [2]},
        {"sparse": [-1]},
        {"sparse": [1, 1]},
        {"sparse": [True]},
        {"sparse": [0], "classes": [[1, 0]]},
        {"rank": 0},
        {"rank": 257},
        {"row_keys": False},
        {"col_keys": 1},
        {"unknown": 1},
    ],
)
def test_parameters_outside_the_specification_are_invalid(change: dict[str, Any]) -> None:
    DctqParams.parse(VALID, 20)
    with pytest.raises(InvalidError):
        DctqParams.parse({**VALID, **change}, 20)


def test_a_missing_parameter_is_invalid() -> None:
    for name in VALID:
        with pytest.raises(InvalidError):
            DctqParams.parse({key: value for key, value in VALID.items() if key != name}, 20)


def test_a_tensor_without_elements_cannot_be_a_delta() -> None:
    with pytest.raises(InvalidError):
        DctqParams.parse(VALID, 0)


@pytest.mark.parametrize("scale", [-1.0, np.inf, np.nan])
def test_a_scale_that_is_negative_or_not_finite_is_invalid(scale: float) -> None:
    params = DctqParams.parse({**VALID, "classes": [[0]]}, 4)
    parse_payload(params, np.array([1.0], dtype="<f4").view(np.uint8))
    with pytest.raises(InvalidError, match="scale"):
        parse_payload(params, np.array([scale], dtype="<f4").view(np.uint8))


@pytest.mark.parametrize(("minimum", "step"), [(np.inf, 1), (np.nan, 1), (0, -1), (0, np.inf), (0, np.nan)])
def test_affine_minima_and_steps_are_checked(minimum: float, step: float) -> None:
    params = DctqParams.parse({**VALID, "quantiser": "affine", "classes": [2]}, 4)
    payload = DctqPayload(
        scales=np.ones(1, dtype="<f4"),
        class_map=np.zeros(1, dtype=np.uint8),
        codes=(np.zeros((1, 8, 8), dtype=np.uint8),),
        minima=np.array([minimum], dtype="<f2"),
        steps=np.array([step], dtype="<f2"),
    )
    with pytest.raises(InvalidError, match="minimum"):
        parse_payload(params, np.concatenate(build_sections(params, payload)))


def test_a_patch_of_a_class_that_does_not_exist_is_invalid() -> None:
    params = DctqParams.parse(VALID, 4)
    scales = np.ones(2, dtype="<f4").view(np.uint8)
    with pytest.raises(InvalidError, match="class that does not exist"):
        parse_payload(params, np.append(scales, np.uint8(2)))


def test_multipliers_are_bounded_so_that_sums_fit_32_bits() -> None:
    params = DctqParams.parse({**VALID, "classes": [[0]], "rank": 3}, 4)
    fixed = np.zeros(params.size_bounds()[0], dtype=np.uint8)
    fixed[8:14].view("<u2")[:] = (65535, 65535, 1)
    parse_payload(params, fixed)
    fixed[8:14].view("<u2")[2] = 2
    with pytest.raises(InvalidError, match="multipliers"):
        parse_payload(params, fixed)

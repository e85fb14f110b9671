"""Many payloads checked at once: what each gives, or is refused for, is what it gives by itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.codec.dctq import DctqParams, DctqPayload, PayloadSplits, build_sections, split_payload
from ddct_format.errors import InvalidError
from ddct_format.native import core

from .layers import layers


def alone(params: DctqParams, payload: npt.NDArray[np.uint8]) -> object:
    try:
        found = split_payload(params, payload)
    except InvalidError as error:
        return str(error)
    return found.payload.tobytes(), found.sections, found.codes


@st.composite
def damaged(draw: st.DrawFn) -> tuple[DctqParams, npt.NDArray[np.uint8]]:
    params, contents = draw(layers())
    payload = np.concatenate(build_sections(params, contents))
    for _ in range(draw(st.integers(0, 2))):
        payload[draw(st.integers(0, payload.size - 1))] = draw(st.integers(0, 255))
    shorter, longer = draw(st.integers(0, 2)), draw(st.integers(0, 1))
    return params, np.append(payload[: payload.size - shorter], np.zeros(longer, dtype=np.uint8))


@given(st.lists(damaged(), min_size=1, max_size=5), st.booleans())
def test_together_as_alone(items: list[tuple[DctqParams, npt.NDArray[np.uint8]]], natively: bool) -> None:
    params, payloads = zip(*items, strict=True)
    memory, places = np.empty(7, dtype=np.uint8), []
    for payload in payloads:
        places.append((memory.size, memory.size + payload.size))
        memory = np.concatenate([memory, payload, np.empty(5, dtype=np.uint8)])
    splits = PayloadSplits(params, places)
    if core is not None and natively:
        core.split_payloads(memory, splits.buffers)
    for number, found in enumerate(splits.results(memory)):
        ours = str(found) if isinstance(found, InvalidError) else (found.payload.tobytes(), found.sections, found.codes)
        assert ours == alone(params[number], payloads[number])


@pytest.mark.skipif(core is None, reason="no native core")
@given(layers())
def test_the_core_sees_nothing_wrong_in_a_right_payload(layer: tuple[DctqParams, DctqPayload]) -> None:
    """Else all would be right, and slow."""
    assert core is not None
    payload = np.concatenate(build_sections(*layer))
    splits = PayloadSplits([layer[0]], [(0, payload.size)])
    core.split_payloads(payload, splits.buffers)
    assert splits.buffers[-1] == b"\1"


@pytest.mark.skipif(core is None, reason="no native core")
def test_buffers_that_disagree_are_a_mistake_of_the_caller() -> None:
    assert core is not None
    params = DctqParams.parse(
        {"cols": 16, "patch": 8, "transform": "dct", "quantiser": "levels", "classes": [[0]]}, 256
    )
    rows, classes, codes, good = PayloadSplits([params], [(0, 4)]).buffers
    core.split_payloads(bytes(4), (rows, classes, codes, good))
    for memory, buffers in (
        (bytes(3), (rows, classes, codes, good)),
        (bytes(4), (rows[:-1], classes, codes, good)),
        (bytes(4), (rows, classes[:-2], codes, good)),
        (bytes(4), (rows, classes, codes[:0], good)),
        (bytes(4), (rows, classes, codes, good + b"1")),
    ):
        with pytest.raises(ValueError, match="do not agree"):
            core.split_payloads(memory, buffers)

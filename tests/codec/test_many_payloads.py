"""Many payloads checked at once: what each gives, or is refused for, is what it gives by itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.codec.dctq import DctqParams, DctqPayload, build_sections, split_payload, split_payloads
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


@given(st.lists(damaged(), min_size=1, max_size=5), st.integers(1, 4))
def test_together_as_alone(items: list[tuple[DctqParams, npt.NDArray[np.uint8]]], threads: int) -> None:
    params, payloads = zip(*items, strict=True)
    memory, places = np.empty(7, dtype=np.uint8), []
    for payload in payloads:
        places.append((memory.size, memory.size + payload.size))
        memory = np.concatenate([memory, payload, np.empty(5, dtype=np.uint8)])
    for number, found in enumerate(split_payloads(params, memory, places, threads)):
        ours = str(found) if isinstance(found, InvalidError) else (found.payload.tobytes(), found.sections, found.codes)
        assert ours == alone(params[number], payloads[number])


@pytest.mark.skipif(core is None, reason="no native core")
@given(layers())
def test_the_core_sees_nothing_wrong_in_a_right_payload(layer: tuple[DctqParams, DctqPayload]) -> None:
    """Else the way above would be right, and slow."""
    from ddct_format.codec import dctq

    payload = np.concatenate(build_sections(*layer))
    assert 0 in dctq._find_codes([layer[0]], payload, [(0, payload.size)], 1)

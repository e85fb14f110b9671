"""The core's checks of packed symbols tell what numpy tells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddct_format import native
from ddct_format.codec.symbols import measure_runs
from parity.paths import CORE_PATHS, computing_by


def test_the_core_is_here_to_be_compared() -> None:
    if native.core is None:
        pytest.skip("the package was built without a C compiler")
    assert native.core.instruction_sets()[0] == "portable"
    with pytest.raises(ValueError, match="no instruction set mmx"):
        native.core.use_instruction_set("mmx")


@pytest.mark.parametrize("path", CORE_PATHS)
@given(st.binary(max_size=300), st.integers(-3, 3), st.booleans())
def test_runs_are_measured_alike(path: str, data: bytes, off: int, long: bool) -> None:
    runs = np.frombuffer(data, dtype=np.uint8) | (np.uint8(255) if long else np.uint8(0))
    length = int(runs.sum(dtype=np.int64)) + int((runs != 255).sum())
    count = max(0, length + off)
    with computing_by("numpy"):
        expected = measure_runs(runs, count)
    with computing_by(path):
        assert measure_runs(runs, count) == expected == (length <= count, int((runs != 255).sum()))

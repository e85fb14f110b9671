"""Analyses are the same whether they are in memory or in a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ddct_format.encode.delta import DeltaAnalysis
from ddct_format.encode.factors import Factors
from ddct_format.pipeline.analyses import Analyses, Outline


def analysis(number: int, rank: int) -> DeltaAnalysis:
    random = np.random.default_rng(number)
    rows, cols = 40 + number, 30
    factors = Factors(
        random.random(rank),
        random.random((rows, rank), dtype=np.float32),
        random.random((cols, rank), dtype=np.float32),
        random.random(rows),
        random.random(cols),
    )
    return DeltaAnalysis((rows, cols), 0.5 + number, 2.0, factors, rows)


@pytest.mark.parametrize("memory", [0, 8_000, 1 << 20])
def test_what_is_kept_is_what_was_added(tmp_path: Path, memory: int) -> None:
    added = {str(number): analysis(number, rank) for number, rank in enumerate((5, 0, 7, 1))}
    kept = Analyses(memory, tmp_path)
    for name, one in added.items():
        kept.add(name, one)
    kept.add("vector", DeltaAnalysis((4, 8), 1.0, 1.0, None, 4))
    kept.add("carried", None)
    for name, one in added.items():
        found = kept.get(name)
        assert found is not None and found.factors is not None and one.factors is not None
        assert (found.view, found.deviation, found.rows) == (one.view, one.deviation, one.rows)
        for field in fields(Factors):
            before, after = getattr(one.factors, field.name), getattr(found.factors, field.name)
            assert (before.dtype, before.shape, before.tobytes()) == (after.dtype, after.shape, after.tobytes())
        assert kept.outline(name) == Outline(one.deviation, one.rows, True)
    assert kept.outline("vector") == Outline(1.0, 4, False)
    assert kept.get("carried") is None and kept.outline("carried") is None and kept.get("unknown") is None
    assert not list(tmp_path.iterdir())

"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["DDCT_CACHE"] = "off"  # tests, and what they start, leave the user's cache alone
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # as the command line does; the tests themselves run in parallel


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The collection of real models: $DDCT_ZOO, or ../shared/zoo beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "zoo"
    location = Path(os.environ.get("DDCT_ZOO") or beside)
    if not location.is_dir():
        pytest.skip(f"no collection of real models at {location}: set DDCT_ZOO to run this")
    return location

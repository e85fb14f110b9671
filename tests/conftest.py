"""Fixtures for all tests."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

os.environ["DDCT_CACHE"] = "off"  # tests, and what they start, leave the user's cache alone
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # as the command line does; the tests themselves run in parallel
# Hundreds of processes are started, each of which would compile all modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _has_gpu_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


if not _has_gpu_driver():
    # Then Triton's kernels run through its interpreter; what decides is the environment when Triton is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """``-n auto``: two for each core, for much of what the tests do is to wait for processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 * cores


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The collection of real models: $DDCT_ZOO, or ../shared/zoo beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "zoo"
    location = Path(os.environ.get("DDCT_ZOO") or beside)
    if not location.is_dir():
        pytest.skip(f"no collection of real models at {location}: set DDCT_ZOO to run this")
    return location


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> int:
    """A working set in which one may pack for once: so little that models of tests go through files, too."""
    from ddct_format.pipeline import decoding, encoding

    monkeypatch.setattr(encoding, "MIN_PACK_MEMORY", decoding.MIN_MEMORY)
    monkeypatch.setattr(encoding, "_RESERVE", 0)
    return decoding.MIN_MEMORY

"""Fixtures of the conformance tests."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from spec.readers import Reader, build_c_reader, c_reader, ddct_reader, python_reader


@pytest.fixture(scope="session")
def c_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path | None, str]:
    """The C reader, or why there is none; built once by the first of several workers that needs it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "c-reader"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_c_reader(folder)


@pytest.fixture(scope="session")
def c_program(c_build: tuple[Path | None, str]) -> Path:
    program, reason = c_build
    if program is None:
        pytest.skip(f"the C reader is not tested here: {reason}")
    return program


@pytest.fixture(scope="session")
def readers(tmp_path_factory: pytest.TempPathFactory, c_build: tuple[Path | None, str]) -> dict[str, Reader]:
    """All readers that work on this machine, by name."""
    found = {"reference": ddct_reader("reference"), "cpu": ddct_reader("cpu"), "python": python_reader}
    if c_build[0] is not None:
        found["c"] = c_reader(c_build[0], tmp_path_factory.mktemp("c-archives"))
    return found

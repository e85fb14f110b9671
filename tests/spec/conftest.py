"""Fixtures of the conformance tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from spec.readers import Reader, build_c_reader, c_reader, ddct_reader, python_reader


@pytest.fixture(scope="session")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program, reason = build_c_reader(tmp_path_factory.mktemp("c-reader"))
    if program is None:
        pytest.skip(f"the C reader is not tested here: {reason}")
    return program


@pytest.fixture(scope="session")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """All readers that work on this machine, by name."""
    found = {"reference": ddct_reader("reference"), "cpu": ddct_reader("cpu"), "python": python_reader}
    program, _ = build_c_reader(tmp_path_factory.mktemp("c-reader"))
    if program is not None:
        found["c"] = c_reader(program, tmp_path_factory.mktemp("c-archives"))
    return found

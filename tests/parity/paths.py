"""The ways to the same bytes: numpy, and the native core on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ddct_format import native

__all__ = ["CORE_PATHS", "computing_by"]

CORE_PATHS = native.core.instruction_sets() if native.core is not None else []
"""Names for :func:`computing_by`, less ``numpy``; none where the package was built without a C compiler."""


@contextmanager
def computing_by(path: str) -> Iterator[None]:
    """Use the core's kernels for an instruction set, or with ``numpy`` no core at all, inside the block."""
    core = native.core
    before = core.use_instruction_set(path) if core is not None and path != "numpy" else ""
    native.core = core if path != "numpy" else None
    try:
        yield
    finally:
        native.core = core
        if before:
            assert core is not None
            core.use_instruction_set(before)

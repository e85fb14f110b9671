"""What the extension module offers: ``src/`` beside this file, compiled. Bytes are any C-contiguous buffer.

Sizes are checked, and a wrong one is a ValueError: a mistake of the caller, never of a file. What a file may get
wrong is told by the result. Work of any length lets other threads run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..container.buffers import Buffer

__all__ = ["Core"]


class InstructionSets(Protocol):
    """Functions of ``src/instruction_set.c``."""

    def instruction_sets(self) -> list[str]:
        """What this machine has kernels for, the best last: ``portable``, ``avx2``, ``avx512``."""

    def use_instruction_set(self, name: str, /) -> str:
        """Use the kernels for that instruction set from now on; for tests, and only while nothing else computes.

        Returns:
            The one in use before.

        Raises:
            ValueError: this machine does not have it.
        """


class Symbols(Protocol):
    """Functions of ``src/symbols.c``."""

    def measure_runs(self, runs: Buffer, count: int, /) -> tuple[bool, int]:
        """Whether run bytes stay within ``count`` symbols, and how many values belong to them (section 7.2.5)."""


class Core(InstructionSets, Symbols, Protocol):
    """All of it."""

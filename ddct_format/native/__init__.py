"""The native core: the work of codecs and backends in C, where the package was built with a C compiler.

``core`` is the extension module, or None: whoever uses it has a path without it, slower, with the same bytes.
``DDCT_NATIVE=off`` does without the core, and ``DDCT_NATIVE=portable|avx2|avx512`` chooses its instruction set.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib import import_module
from typing import cast

from ..errors import ConfigError
from .interface import Core

__all__ = ["Core", "core", "warn_without_core"]


def _load() -> Core | None:
    wanted = os.environ.get("DDCT_NATIVE", "")
    if wanted == "off":
        return None
    try:
        loaded = cast(Core, import_module("._core", __name__))
    except ImportError:
        return None
    if wanted:
        try:
            loaded.use_instruction_set(wanted)
        except ValueError as error:
            raise ConfigError(f"DDCT_NATIVE: {error}; known are off, {', '.join(loaded.instruction_sets())}") from None
    return loaded


core = _load()


@cache
def warn_without_core() -> None:
    """Say once that work will be slow because the core was not built."""
    if core is None and os.environ.get("DDCT_NATIVE") != "off":
        logging.getLogger("ddct").warning(
            "ddct was installed without its native core, as there was no C compiler: same results, several times slower"
        )

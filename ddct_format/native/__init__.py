"""The native core: the work of codecs and backends in C, where the package was built with a C compiler.

``core`` is the extension module, or None: whoever uses it has a path without it, slower, with the same bytes.
``DDCT_NATIVE=off`` does without the core, ``on`` demands it, and ``portable``, ``avx2``, ``avx512``, ``vbmi2`` or
``amx`` demand it with that instruction set.
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


def _load() -> tuple[Core | None, str]:
    """The core, or why there is none."""
    wanted = os.environ.get("DDCT_NATIVE", "")
    if wanted == "off":
        return None, ""
    try:
        loaded = cast(Core, import_module("._core", __name__))
        if wanted not in ("", "on"):
            loaded.use_instruction_set(wanted)
    except (ImportError, ValueError) as error:
        if wanted:
            raise ConfigError(f"DDCT_NATIVE={wanted}: {error}") from None
        return None, str(error)
    return loaded, ""


core, _reason = _load()


@cache
def warn_without_core() -> None:
    """Say once that work will be slow because the core was not built."""
    if _reason:
        logging.getLogger("ddct").warning(
            "ddct works without its native core, with the same results, several times slower: %s", _reason
        )

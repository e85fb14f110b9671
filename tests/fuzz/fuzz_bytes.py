"""Mutated bytes of the vectors, sealed again, into ddct_format and the Python reader (see README.md).

Usage: python tests/fuzz/fuzz_bytes.py CORPUS [libFuzzer options, such as -max_total_time=60]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["ddct_format", "ddct_reader"]):
    from fuzz.seeds import join, reseal, split

    from spec.readers import ddct_reader, python_reader

SECONDS_PER_64_KIB = 1.0
_folder = tempfile.TemporaryDirectory()
_base = Path(_folder.name) / "base.safetensors"
_readers = {"ddct_format": ddct_reader("reference"), "python": python_reader}


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's own mutation, then checksums that match."""
    archive, base = split(bytes(atheris.Mutate(data, max_size)))
    return join(reseal(archive), base)[:max_size]


def test_one_input(data: bytes) -> None:
    """Readers agree, and neither takes long or fails otherwise than by an error of its own."""
    archive, base = split(data)
    outcomes = {}
    for name, read in _readers.items():
        usable = _write_base(base)
        started = time.monotonic()
        outcome = read(archive, usable)
        outcomes[name] = (outcome["status"], outcome.get("tensors"))
        allowed = SECONDS_PER_64_KIB * (1 + len(data) / 65536)
        if (taken := time.monotonic() - started) > allowed:
            raise AssertionError(f"{name} took {taken:.1f} s for {len(data)} bytes")
    found = {str(outcome) for outcome in outcomes.values() if outcome[0] not in ("budget", "checkpoint")}
    # With several faults after the metadata, any one may be reported (spec section 9); a wrong base is one.
    statuses = {outcome[0] for outcome in outcomes.values()}
    if len(found) > 1 and not ("base-mismatch" in statuses and "ok" not in statuses):
        raise AssertionError(f"the readers disagree: {outcomes}")


def _write_base(base: bytes) -> Path | None:
    """Only bases that are sound safetensors files reach the readers: it is the archive that is fuzzed."""
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(base)
    except SafetensorError:
        return None
    _base.write_bytes(base)
    return _base


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
    atheris.Fuzz()

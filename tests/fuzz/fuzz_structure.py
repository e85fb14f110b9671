"""The generators of tests/spec, steered by coverage (see README.md).

Usage: python tests/fuzz/fuzz_structure.py [libFuzzer options, such as -max_total_time=60]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["ddct_format", "ddct_reader"]):
    from hypothesis import HealthCheck, given, settings
    from spec.archives import Parts, mutations

    from spec.readers import ddct_reader, python_reader

_folder = tempfile.TemporaryDirectory()
_readers = {"ddct_format": ddct_reader("reference"), "python": python_reader}


@settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(mutations())
def readers_agree(parts: Parts) -> None:
    base = Path(_folder.name) / "base.safetensors"
    base.write_bytes(parts.base_file())
    archive = parts.build()
    outcomes = {name: read(archive, base) for name, read in _readers.items()}
    found = {(outcome["status"], str(outcome.get("tensors"))) for outcome in outcomes.values()}
    assert len({item for item in found if item[0] != "budget"}) <= 1, outcomes


if __name__ == "__main__":
    atheris.Setup(sys.argv, readers_agree.hypothesis.fuzz_one_input)  # type: ignore[attr-defined]
    atheris.Fuzz()

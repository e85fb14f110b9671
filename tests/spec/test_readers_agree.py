"""All readers make the same of a file: the same bytes, or the same class of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings

from spec.archives import Parts, archives, mutations
from spec.readers import Reader

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def _outcomes(parts: Parts, readers: dict[str, Reader], folder: Path) -> dict[str, tuple[Any, Any]]:
    base = folder / "base.safetensors"
    base.write_bytes(parts.base_file())
    archive = parts.build()
    found = {name: reader(archive, base) for name, reader in readers.items()}
    return {name: (outcome["status"], outcome.get("tensors")) for name, outcome in found.items()}


@settings(UNHURRIED, max_examples=60)
@given(archives())
def test_on_random_archives(readers: dict[str, Reader], folder: Path, parts: Parts) -> None:
    outcomes = _outcomes(parts, readers, folder)
    assert outcomes["reference"][0] == "ok"
    assert len({str(outcome) for outcome in outcomes.values()}) == 1, outcomes


@settings(UNHURRIED, max_examples=400)
@given(mutations())
def test_on_archives_with_one_thing_wrong(readers: dict[str, Reader], folder: Path, parts: Parts) -> None:
    outcomes = {name: found for name, found in _outcomes(parts, readers, folder).items() if found[0] != "budget"}
    if parts.damaged:
        # Versions of libzstd notice different damages: to 1.5.7 one is Corrupt that 1.5.4 makes an Invalid payload of.
        for name, found in outcomes.items():
            if found[0] in ("corrupt", "invalid"):
                outcomes[name] = ("damaged", None)
    event(next(iter(outcomes.values()))[0] if outcomes else "budget")
    assert len({str(outcome) for outcome in outcomes.values()}) <= 1, outcomes

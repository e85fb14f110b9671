"""Every reader makes of every vector what the manifest says: the same bytes, or the same class of error."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spec.readers import SPEC, Outcome, Reader, c_reader, conform, ddct_reader, python_reader

VECTORS = SPEC / "vectors"
MANIFEST = json.loads((VECTORS / "manifest.json").read_text())
NAMES = [(kind, name) for kind in ("good", "bad") for name in MANIFEST[kind]]
FROZEN = VECTORS / "good" / "v1.0"


def _expected(kind: str, name: str) -> Outcome:
    entry = MANIFEST[kind][name]
    return {"status": "ok", "tensors": entry["tensors"]} if kind == "good" else {"status": entry["status"]}


def _read(reader: Reader, kind: str, name: str) -> tuple[Outcome, Any]:
    base = MANIFEST[kind][name]["base"]
    outcome = reader((VECTORS / kind / f"{name}.ddct").read_bytes(), VECTORS / kind / base if base else None)
    return {key: outcome[key] for key in ("status", "tensors") if key in outcome}, outcome.get("reason")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_ddct_format(kind: str, name: str, backend: str) -> None:
    outcome, reason = _read(ddct_reader(backend), kind, name)
    assert outcome == _expected(kind, name), reason


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_the_python_reader(kind: str, name: str) -> None:
    outcome, reason = _read(python_reader, kind, name)
    assert outcome == _expected(kind, name), reason


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_the_c_reader(kind: str, c_program: Path, tmp_path: Path) -> None:
    reader = c_reader(c_program, tmp_path)
    wrong = {}
    for name in MANIFEST[kind]:
        outcome, reason = _read(reader, kind, name)
        if outcome != _expected(kind, name):
            wrong[name] = (outcome["status"], reason)
    assert not wrong


def test_expected_files_hold_the_bytes_that_the_manifest_names() -> None:
    from ddct_format.checkpoint import open_checkpoint
    from ddct_format.container.digest import tensor_digest

    for name, entry in MANIFEST["good"].items():
        if entry["expected"] and entry["tensors"]:
            with open_checkpoint(VECTORS / "good" / entry["expected"]) as expected:
                assert {tensor: tensor_digest(expected.read(tensor)) for tensor in expected.tensors} == entry[
                    "tensors"
                ], name


@pytest.mark.parametrize("name", MANIFEST["v1.0"])
def test_the_compatibility_set_never_changes_and_is_still_read(name: str, readers: dict[str, Reader]) -> None:
    pinned = MANIFEST["v1.0"][name]["sha256"]
    assert {path: hashlib.sha256((FROZEN / path).read_bytes()).hexdigest() for path in pinned} == pinned
    base = FROZEN / f"{name}.base.safetensors"
    expected = _digests_of(FROZEN / f"{name}.expected.safetensors")
    for reader in readers.values():
        outcome = reader((FROZEN / f"{name}.ddct").read_bytes(), base if base.exists() else None)
        assert outcome["status"] == "ok" and outcome["tensors"] == expected


def _digests_of(path: Path) -> dict[str, str]:
    return {
        name: conform.tensor_digest(data) for name, (_, _, data) in conform.read_safetensors(path.read_bytes()).items()
    }


@pytest.mark.parametrize(
    ("kind", "name"), [("good", "ops"), ("good", "raw-planes"), ("bad", "base-digest"), ("bad", "json-nan")]
)
def test_the_python_readers_command_line(kind: str, name: str) -> None:
    base = MANIFEST[kind][name]["base"]
    program = SPEC / "readers" / "python" / "conform.py"
    command = [sys.executable, str(program), str(VECTORS / kind / f"{name}.ddct")]
    done = subprocess.run(command + ([str(VECTORS / kind / base)] if base else []), capture_output=True, check=True)
    report = json.loads(done.stdout)
    assert {key: report[key] for key in ("status", "tensors") if key in report} == _expected(kind, name)


def test_the_python_reader_stays_one_short_independent_file() -> None:
    text = (SPEC / "readers" / "python" / "ddct_reader.py").read_text()
    assert "ddct_format" not in text
    assert len(text.splitlines()) <= 530

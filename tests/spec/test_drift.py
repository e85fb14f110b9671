"""What is generated agrees with what generates it: vectors, their manifest, and the schema of the metadata."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ddct_format.container import schema as rules
from ddct_format.container.rules import ArrayRule, ObjectRule
from ddct_format.errors import DdctError
from spec.readers import SPEC, load_module

make_vectors = load_module(SPEC / "vectors" / "make_vectors.py")
make_schema = load_module(SPEC / "make_schema.py")
VECTORS = SPEC / "vectors"
MANIFEST = json.loads((VECTORS / "manifest.json").read_text())


@pytest.fixture(scope="module")
def rendered() -> tuple[dict[str, bytes], dict[str, Any]]:
    files, manifest = make_vectors.render()
    return files, manifest


def test_the_script_makes_the_vectors_that_are_there(rendered: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    """Files that zstd has a part in are compared where its version is that of the manifest."""
    files, manifest = rendered
    there = {
        path.relative_to(VECTORS).as_posix(): path
        for folder in ("good", "bad")
        for path in (VECTORS / folder).iterdir()
        if path.is_file()
    }
    assert there.keys() == files.keys()
    same_zstd = make_vectors.zstd_version() == MANIFEST["zstd"]
    for name, path in there.items():
        entry = manifest["good"].get(Path(name).stem) if name.startswith("good/") else None
        if same_zstd or entry is None or not entry["uses_zstd"]:
            assert path.read_bytes() == files[name], name


def test_the_manifest_says_what_the_script_says(rendered: tuple[dict[str, bytes], dict[str, Any]]) -> None:
    _, manifest = rendered
    for part in ("good", "bad"):
        assert MANIFEST[part] == json.loads(json.dumps(manifest[part]))


def test_the_compatibility_set_is_complete() -> None:
    folder = VECTORS / "good" / "v1.0"
    pinned = {path for entry in MANIFEST["v1.0"].values() for path in entry["sha256"]}
    assert {path.name for path in folder.iterdir()} == pinned
    assert set(MANIFEST["v1.0"]) == set(make_vectors.COMPATIBILITY_SET)


def test_the_vectors_stay_small() -> None:
    assert (
        sum(path.stat().st_size for path in VECTORS.rglob("*.*") if path.suffix in (".ddct", ".safetensors"))
        < 1_500_000
    )


def test_the_schema_is_what_the_code_generates() -> None:
    assert json.loads(make_schema.PATH.read_text()) == json.loads(json.dumps(make_schema.schema()))


def test_the_schema_and_the_rules_name_the_same_members() -> None:
    def compare(schema: dict[str, Any], rule: Any, where: str) -> None:
        if isinstance(rule, ArrayRule):
            assert (schema["minItems"], schema["maxItems"]) == (rule._least, rule._most), where
            compare(schema["items"], rule._element, where + "[]")
        rule = rules._tensor_object if rule is rules._tensor else rule
        if isinstance(rule, ObjectRule):
            assert schema["properties"].keys() == rule._rules.keys(), where
            assert set(schema["required"]) == rule._required, where
            for name, member in rule._rules.items():
                compare(schema["properties"][name], member, f"{where}.{name}")

    compare(make_schema.schema(), rules.check_metadata_object, "metadata")


def test_the_schema_knows_the_members_of_each_op() -> None:
    tensor = make_schema.schema()["properties"]["tensors"]["items"]
    ops = {part["if"]["properties"]["op"]["const"]: part["then"] for part in tensor["allOf"]}
    assert ops.keys() == rules._MEMBERS_OF.keys()
    for op, (required, forbidden) in rules._MEMBERS_OF.items():
        assert set(ops[op]["required"]) == required
        assert {part["required"][0] for part in ops[op]["not"]["anyOf"]} == forbidden


def test_the_schemas_pattern_of_paths_is_that_of_the_reader() -> None:
    for path in ["a", "a/b", "a.b/c d", "é", ".a", "", "/a", "a/", "a//b", "a/.", "..", "a\\b", "a:b", "a.", "a ",
                 "a\n", "x" * 255, "x" * 256, "a/" + "x" * 256]:  # fmt: skip
        try:
            rules.relative_path(path)
            allowed = True
        except DdctError:
            allowed = False
        # In a JSON Schema $ matches at the very end alone, unlike in Python.
        pattern = make_schema.FILE_PATH["pattern"].replace("$", r"\Z")
        assert bool(re.search(pattern, path)) == allowed, path

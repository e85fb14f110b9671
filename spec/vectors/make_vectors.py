"""Makes the conformance vectors: ``python make_vectors.py`` rewrites good/, bad/ and manifest.json beside it.

good/v1.0/ is the compatibility set: files there are made once and never overwritten.
"""
# ruff: noqa: E402

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import zstandard

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1]))

from bad import bad_vectors
from good import good_vectors
from pieces import Vector, forge, safetensors

__all__ = ["main", "render", "zstd_version"]

COMPATIBILITY_SET = ("chunks-compressed", "dctq-classes-255", "dctq-dct-16-levels", "dctq-hadamard-32-affine",
                     "dctq-keys", "dctq-low-rank", "extensions", "files-compressed", "layer-skipped", "ops",
                     "raw-types", "shapes", "shards", "special-BF16", "special-F16", "special-F32")  # fmt: skip
EXPECTED_BYTES_LIMIT = 65536


def zstd_version() -> str:
    """Of the library that compresses: its output may differ between versions."""
    return ".".join(map(str, zstandard.ZSTD_VERSION))


def render() -> tuple[dict[str, bytes], dict[str, Any]]:
    """All files but those of the compatibility set, by path below this folder, and what the manifest says of them."""
    files: dict[str, bytes] = {}
    good: dict[str, Any] = {}
    bad: dict[str, Any] = {}
    for name, vector in sorted(good_vectors().items()):
        good[name] = {
            "description": vector.description,
            "base": _put(files, "good", name, vector),
            "expected": _put_expected(files, name, vector),
            "tensors": {tensor: forge.digest_of(data) for tensor, (_, _, data) in vector.expected.items()},
            "uses_zstd": vector.uses_zstd,
        }
    for name, vector in sorted(bad_vectors().items()):
        bad[name] = {
            "status": vector.status,
            "about": vector.description,
            "base": _put(files, "bad", name, vector),
        }
    return files, {"zstd": zstd_version(), "good": good, "bad": bad}


def _put(files: dict[str, bytes], folder: str, name: str, vector: Vector) -> str | None:
    """Returns the name of the base's file, if there is one."""
    files[f"{folder}/{name}.ddct"] = vector.data
    if not vector.base:
        return None
    files[f"{folder}/{name}.base.safetensors"] = safetensors(vector.base)
    return f"{name}.base.safetensors"


def _put_expected(files: dict[str, bytes], name: str, vector: Vector) -> str | None:
    expected = safetensors(vector.expected)
    if len(expected) > EXPECTED_BYTES_LIMIT:
        return None
    files[f"good/{name}.expected.safetensors"] = expected
    return f"{name}.expected.safetensors"


def _freeze(files: dict[str, bytes], manifest: dict[str, Any]) -> dict[str, Any]:
    """Makes what is missing of the compatibility set, and describes all of it."""
    folder = HERE / "good" / "v1.0"
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {}
    for name in COMPATIBILITY_SET:
        described[name] = {"sha256": {}}
        for suffix in ("ddct", "base.safetensors", "expected.safetensors"):
            path = folder / f"{name}.{suffix}"
            made = files.get(f"good/{path.name}")
            if made is None:
                continue
            if not path.exists():
                path.write_bytes(made)
            elif path.read_bytes() != made:
                print(f"kept as it is, though it would be made otherwise today: {path}", file=sys.stderr)
            described[name]["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return described


def main() -> None:
    files, manifest = render()
    for folder in ("good", "bad"):
        (HERE / folder).mkdir(exist_ok=True)
        for stale in (HERE / folder).glob("*.*"):
            if stale.is_file() and f"{folder}/{stale.name}" not in files:
                stale.unlink()
    for path, data in files.items():
        (HERE / path).write_bytes(data)
    manifest["v1.0"] = _freeze(files, manifest)
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(manifest['good'])} good, {len(manifest['bad'])} bad, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()

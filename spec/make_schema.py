"""Writes metadata.schema.json: the shape of the metadata (section 5) as a JSON Schema, for editors and other tools.

Limits, element types and the members of each object come from ``ddct_format``. What a schema cannot say (bytes of
UTF-8, order, uniqueness, the digests) is in the specification alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddct_format import limits
from ddct_format.container.digest import DIGEST_NAME
from ddct_format.container.dtypes import DTYPE_BITS

__all__ = ["PATH", "main", "schema"]

PATH = Path(__file__).parent / "metadata.schema.json"

DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
NAME = {
    "type": "string",
    "minLength": 1,
    "maxLength": limits.MAX_NAME_BYTES,
    "pattern": "^[^\u0000-\u001f\u007f-\u009f]*$",
}
PART = "(?=[^/]{1,255}(/|$))[^/:\\\\\u0000-\u001f\u007f-\u009f]*[^/:\\\\. \u0000-\u001f\u007f-\u009f]"
FILE_PATH = {"type": "string", "maxLength": limits.MAX_PATH_BYTES, "pattern": f"^{PART}(/{PART})*$"}
DTYPE = {"enum": sorted(DTYPE_BITS)}
ERROR = {"type": "number", "minimum": 0}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
    }


def _array(element: dict[str, Any], least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": element, "minItems": least, "maxItems": most}


def _integer(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _text(most: int | None = None) -> dict[str, Any]:
    return {"type": "string"} if most is None else {"type": "string", "maxLength": most}


def _only(op: str, required: list[str], forbidden: list[str]) -> dict[str, Any]:
    return {
        "if": {"properties": {"op": {"const": op}}},
        "then": {"required": required, "not": {"anyOf": [{"required": [name]} for name in forbidden]}},
    }


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the metadata."""
    layer = _object(
        {
            "codec": _text(),
            "params": {"type": "object"},
            "size": _integer(0, limits.MAX_PAYLOAD_SIZE),
            "digest": DIGEST,
        },
        {"must_understand": {"type": "boolean"}},
    )
    tensor = _object(
        {
            "name": NAME,
            "dtype": DTYPE,
            "shape": _array(_integer(0, limits.MAX_ELEMENTS), 0, limits.MAX_RANK),
            "shard": _integer(0, limits.MAX_SHARDS - 1),
            "op": {"enum": ["add", "replace", "keep", "alias"]},
        },
        {
            "base": DIGEST,
            "base_dtype": DTYPE,
            "of": NAME,
            "layers": _array(layer, 1, limits.MAX_LAYERS),
            "error": ERROR,
        },
    )
    tensor["allOf"] = [
        _only("add", ["base", "layers"], ["of"]),
        _only("replace", ["layers"], ["base", "base_dtype", "of"]),
        _only("keep", ["base"], ["base_dtype", "of", "layers"]),
        _only("alias", ["of"], ["base", "base_dtype", "layers"]),
    ]
    hint = _object({}, dict.fromkeys(("repo", "revision", "name"), _text(limits.MAX_HINT_BYTES)))
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    powers = [1 << k for k in range(64) if limits.MIN_CHUNK_SIZE <= 1 << k <= limits.MAX_CHUNK_SIZE]
    top = _object(
        {
            "generator": _text(limits.MAX_GENERATOR_BYTES),
            "digest": {"const": DIGEST_NAME},
            "chunk_size": {"enum": powers},
            "base": _object({"id": DIGEST}, {"hint": hint}),
            "target": _object({"ids": _array(DIGEST, 1, limits.MAX_LAYERS), "exact_id": DIGEST}),
            "shards": _array(
                _object({"path": {"allOf": [FILE_PATH, {"pattern": "\\.safetensors$"}]}, "metadata": texts}),
                0,
                limits.MAX_SHARDS,
            ),
            "files": _array(
                _object({"path": FILE_PATH, "size": _integer(0, limits.MAX_PAYLOAD_SIZE), "digest": DIGEST}),
                0,
                limits.MAX_FILES,
            ),
            "tensors": _array(tensor, 0, limits.MAX_TENSORS),
        },
        {"quality": _object({"preset": _text(), "error": ERROR})},
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Metadata of a .ddct file", **top}


def main() -> None:
    PATH.write_text(json.dumps(schema(), indent=2) + "\n")


if __name__ == "__main__":
    main()

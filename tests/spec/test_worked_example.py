"""Section 11 of the specification says what the reference decoder does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ddct_format.backends import get_backend
from ddct_format.codec.dctq import DctqParams, parse_payload
from ddct_format.codec.transform import basis_matrix

SPECIFICATION = Path(__file__).parents[2] / "spec" / "ddct-v1.md"


def test_the_worked_example_is_what_the_reference_computes() -> None:
    text = SPECIFICATION.read_text().split("## 11. Worked example", 1)[1]
    example = json.loads(text.split("```json")[1].split("```")[0])
    levels = np.zeros((16, 16), dtype=np.int64)
    for row, column, level in example["levels"]:
        levels[row, column] = level
    basis = basis_matrix("dct", 16).astype(np.int64)
    assert (basis.T @ levels @ basis)[0, :4].tolist() == example["integers"]

    start = bytes.fromhex(example["payload_start"])
    dense = np.frombuffer(start + bytes(example["payload_size"] - len(start)), dtype=np.uint8).copy()
    table = [0, -2, -1, 2, 3]
    flat = levels.reshape(-1)
    for position in np.flatnonzero(flat):
        dense[4 + position // 3] = 0
    for position in np.flatnonzero(flat):
        dense[4 + position // 3] += table.index(int(flat[position])) * 5 ** (int(position) % 3)
    assert dense[: len(start)].tobytes() == start

    base = np.full(256, 0x3C00, dtype="<u2").view(np.uint8)
    for params, payload in (
        (example["params"], dense),
        ({**example["params"], "sparse": [0]}, np.frombuffer(bytes.fromhex(example["sparse_payload"]), dtype=np.uint8)),
    ):
        parsed = DctqParams.parse(params, 256)
        fields = parse_payload(parsed, payload)
        result = get_backend("reference").apply(parsed, fields, base, "BF16", "BF16").view("<u2")
        assert [f"{bits:04x}" for bits in result[:4]] == example["result"]


def test_the_dump_is_the_vector() -> None:
    text = SPECIFICATION.read_text().split("## 12. A whole file", 1)[1].split("```")[1]
    dump = b"".join(bytes.fromhex(line.partition("  ")[2]) for line in text.strip().splitlines())
    assert dump == (SPECIFICATION.parent / "vectors" / "good" / "lossy.ddct").read_bytes()

"""How far the stored symbols of lossy layers are above their entropy.

Usage: python benchmarks/entropy.py [ZOO] [--pair BASE:FINETUNED ...] [--preset NAME ...]

For each class of each layer of an archive: the stored bytes of its symbols, that is what the layer would be smaller by
without them, against their entropy given the class, Σ n · log2(N / n). Prints one table per preset, over all pairs, by
bits per symbol. Tables of the entropy stage, run counts and block headers count as stored bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddct_format import open_archive, pack
from ddct_format.codec.dctq import DctqParams, build_sections, parse_payload
from ddct_format.container.payload import store_payload
from ddct_format.encode.rate import entropy_bits

__all__ = ["main"]

PAIRS = ("base-lm:math", "base-vit:vit-mnist")
PRESETS = ("tiny", "small", "balanced", "high")
EDGES = (0.03, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 8.0)
_SMALLEST = 4096
"""Classes of fewer symbols are shown as one row: there, the entropy stage's tables are most of the difference."""


@dataclass(frozen=True)
class CodedClass:
    """One class of one layer; ``entropy`` and ``stored`` in bytes."""

    symbols: int
    entropy: float
    stored: int

    @property
    def bits(self) -> float:
        """Of entropy, per symbol."""
        return 8 * self.entropy / self.symbols


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("zoo", nargs="?", type=Path, default=os.environ.get("DDCT_ZOO"))
    parser.add_argument("--pair", action="append", metavar="BASE:FINETUNED")
    parser.add_argument("--preset", action="append", choices=PRESETS)
    arguments = parser.parse_args()
    if arguments.zoo is None or not Path(arguments.zoo).is_dir():
        print("skipped: no collection of real models; give its folder or set DDCT_ZOO")
        return
    for preset in arguments.preset or PRESETS:
        found: list[CodedClass] = []
        for pair in arguments.pair or PAIRS:
            base, tuned = (Path(arguments.zoo) / name for name in pair.split(":"))
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder, "model.ddct")
                pack(base, tuned, archive, preset=preset, verify=False)
                found += coded_classes(archive)
        _print(preset, found)


def coded_classes(archive: Path) -> Iterator[CodedClass]:
    """Every class with symbols of every ``dctq.v1`` layer."""
    with open_archive(archive) as opened:
        chunk_size = opened.reader.metadata.chunk_size
        for record in opened.reader.metadata.tensors:
            for number, layer in enumerate(record.layers):
                if layer.codec != "dctq.v1":
                    continue
                params = DctqParams.parse(layer.params, record.elements)
                raw = opened.reader.payload(record.name, number)
                yield from _classes_of(params, np.frombuffer(raw, dtype=np.uint8), chunk_size)


def _classes_of(params: DctqParams, raw: npt.NDArray[np.uint8], chunk_size: int) -> Iterator[CodedClass]:
    payload = parse_payload(params, raw)
    sections = build_sections(params, payload)
    whole = store_payload(sections, chunk_size).stored_size
    lengths = [2 if number in params.sparse else 1 for number in range(len(params.levels))]
    first = len(sections) - sum(lengths)
    for codes, alphabet, length in zip(payload.codes, params.alphabets, lengths, strict=True):
        if alphabet > 1 and codes.size:
            rest = store_payload(sections[:first] + sections[first + length :], chunk_size).stored_size
            entropy = float(entropy_bits(np.bincount(codes.reshape(-1)))) / 8
            if entropy:
                yield CodedClass(codes.size, entropy, whole - rest)
        first += length


def _print(preset: str, found: list[CodedClass]) -> None:
    print(f"\n{preset}\n\n| bits per symbol | classes | symbols | entropy, bytes | stored, bytes | ratio |")
    print("|---|---|---|---|---|---|")
    small = [item for item in found if item.symbols < _SMALLEST]
    large = [item for item in found if item.symbols >= _SMALLEST]
    for low, high in zip((0.0, *EDGES), EDGES, strict=False):
        _print_row(f"{low:g} to {high:g}", [item for item in large if low <= item.bits < high])
    _print_row(f"classes below {_SMALLEST} symbols", small)
    _print_row("0.3 to 3, from 4096 symbols", [item for item in large if 0.3 <= item.bits < 3])
    _print_row("all", found)
    sys.stdout.flush()


def _print_row(label: str, items: list[CodedClass]) -> None:
    if not items:
        return
    entropy, stored = sum(item.entropy for item in items), sum(item.stored for item in items)
    symbols = sum(item.symbols for item in items)
    print(f"| {label} | {len(items)} | {symbols} | {entropy:.0f} | {stored} | {stored / entropy:.3f} |")


if __name__ == "__main__":
    main()

"""How far the stored symbols of lossy layers are above their entropy, and what an entropy stage of our own would save.

Usage: python benchmarks/entropy.py [ZOO] [--pair BASE:FINETUNED ...] [--preset NAME ...]

For each class of each layer of an archive: the stored bytes of its symbols, that is what the layer would be smaller by
without them, against their entropy given the class, Σ n · log2(N / n). Prints one table per preset, over all pairs, by
bits per symbol. Tables of the entropy stage, run counts and block headers count as stored bytes.

``rANS`` is what the symbols would take in a table-driven rANS stage: frequencies of 12 bits, coded as zstd codes those
of its FSE tables, once per class, and four states. The last line of a table compares whole layers, factors, keys and
class maps included, with each stored block's bytes coded so if that is smaller.
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
from ddct_format.codec.dctq import DctqParams, split_payload, unpack_codes
from ddct_format.container.payload import store_payload
from ddct_format.encode.blocks import share_blocks
from ddct_format.encode.rate import entropy_bits

__all__ = ["main"]

PAIRS = ("base-lm:math", "base-vit:vit-mnist")
PRESETS = ("tiny", "small", "balanced", "high")
EDGES = (0.03, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 8.0)
_SMALLEST = 4096
"""Classes of fewer symbols are shown as one row: there, the entropy stage's tables are most of the difference."""
_RANS_BITS = 12
_RANS_STATES = 4 * 4
_FRAME_BYTES, _BLOCK_BYTES = 9, 5
"""Headers that a stage of our own would have, too: of a chunk, and of each of its blocks."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CodedClass:
    """One class of one layer; ``entropy``, ``stored`` and ``rans`` in bytes."""

    symbols: int
    entropy: float
    stored: float
    rans: float

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
        whole: list[tuple[int, float]] = []
        for pair in arguments.pair or PAIRS:
            base, tuned = (Path(arguments.zoo) / name for name in pair.split(":"))
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder, "model.ddct")
                pack(base, tuned, archive, preset=preset, verify=False)
                for params, raw, chunk_size in layers(archive):
                    classes, sizes = measure(params, raw, chunk_size)
                    found += classes
                    whole.append(sizes)
        _print(preset, found, whole)


def layers(archive: Path) -> Iterator[tuple[DctqParams, Bytes, int]]:
    """Parameters, payload and chunk size of every ``dctq.v1`` layer."""
    with open_archive(archive) as opened:
        for record in opened.reader.metadata.tensors:
            for number, layer in enumerate(record.layers):
                if layer.codec == "dctq.v1":
                    raw = np.frombuffer(opened.reader.payload(record.name, number), dtype=np.uint8)
                    params = DctqParams.parse(layer.params, record.elements)
                    yield params, raw, opened.reader.metadata.chunk_size


def measure(params: DctqParams, raw: Bytes, chunk_size: int) -> tuple[list[CodedClass], tuple[int, float]]:
    """Its classes with symbols; and the stored bytes of the layer, as it is and with rANS."""
    stored = split_payload(params, raw)
    fixed: list[Bytes] = []
    for name in stored.sections:
        part = stored.section(name)
        fixed += list(part.reshape(params.rank, -1)) if name in ("left", "right") and params.rank else [part]
    codes = [
        [raw[slice(*place)] for place in ((place.runs, place.packed) if place.runs else (place.packed,))]
        for place in stored.codes
    ]
    whole = store_payload(share_blocks([*fixed, *(part for parts in codes for part in parts)]), chunk_size).stored_size
    classes = []
    for number, symbols in enumerate(unpack_codes(params, stored).codes):
        counts = np.bincount(symbols.reshape(-1))
        if np.count_nonzero(counts) > 1:
            others = share_blocks([*fixed, *(part for i, parts in enumerate(codes) if i != number for part in parts)])
            without = store_payload(others, chunk_size).stored_size
            entropy = float(entropy_bits(counts)) / 8
            classes.append(CodedClass(symbols.size, entropy, whole - without, rans_bytes(counts)))
    blocks = [_BLOCK_BYTES + rans_bytes(np.bincount(block)) for block in share_blocks(fixed)]
    alone = store_payload(share_blocks(fixed), chunk_size).stored_size
    coded = min(sum(blocks) + _FRAME_BYTES, alone) + sum(min(item.rans + _BLOCK_BYTES, item.stored) for item in classes)
    return classes, (whole, min(coded, whole))


def rans_bytes(counts: npt.NDArray[np.int64]) -> float:
    """What symbols of these counts take: ideally coded by rounded frequencies, and the frequencies themselves."""
    used = counts[counts > 0]
    if used.size < 2:
        return 2.0
    total = 1 << _RANS_BITS
    frequencies = np.maximum(np.rint(used * total / used.sum()), 1)
    frequencies[np.argmax(frequencies)] += total - frequencies.sum()
    left = total - np.cumsum(frequencies) + frequencies  # of the frequencies, when a symbol's turn comes
    table = np.ceil(np.log2(left + 1)).sum() + (counts.size - used.size) * 2 / 3
    symbols = (used * (_RANS_BITS - np.log2(frequencies))).sum()
    return float(table + symbols) / 8 + _RANS_STATES


def _print(preset: str, found: list[CodedClass], whole: list[tuple[int, float]]) -> None:
    print(
        f"\n{preset}\n\n| bits per symbol | classes | symbols | entropy, bytes | stored, bytes | ratio | rANS, ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    small = [item for item in found if item.symbols < _SMALLEST]
    large = [item for item in found if item.symbols >= _SMALLEST]
    for low, high in zip((0.0, *EDGES), EDGES, strict=False):
        _print_row(f"{low:g} to {high:g}", [item for item in large if low <= item.bits < high])
    _print_row(f"classes below {_SMALLEST} symbols", small)
    _print_row("0.3 to 3, from 4096 symbols", [item for item in large if 0.3 <= item.bits < 3])
    _print_row("all", found)
    stored, rans = (sum(sizes) for sizes in zip(*whole, strict=True))
    print(f"| whole layers | | | | {stored} | | {rans / stored:.3f} of stored |")
    sys.stdout.flush()


def _print_row(label: str, items: list[CodedClass]) -> None:
    if not items:
        return
    entropy, stored = sum(item.entropy for item in items), sum(item.stored for item in items)
    symbols, rans = sum(item.symbols for item in items), sum(item.rans for item in items)
    cells = (label, len(items), symbols, f"{entropy:.0f}", f"{stored:.0f}", f"{stored / entropy:.3f}")
    print(f"| {' | '.join(map(str, cells))} | {rans / entropy:.3f} |")


if __name__ == "__main__":
    main()

"""Which neighbouring sections of a payload share a block of a zstd frame, and with it a table of the entropy stage.

A block of its own costs 20 to 130 bytes, a table that does not fit costs bits in every symbol. Both are estimated
from how often each byte occurs: compressing every alternative would take several times as long for the same choice
(spec/adr/0202-entropy-stage.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from .. import native

__all__ = ["share_blocks", "terms_of"]

_LARGE = 1 << 16
"""Bytes of a section that a block of its own cannot cost anything worth mentioning."""
_BLOCK_BYTES, _ROOT_BYTES = 20, 7.0
"""What a block costs beyond the entropy of its bytes, and the square root of how many different ones it has: headers,
streams that end in the middle of a byte, and the Huffman table. Fitted on blocks of real deltas, and rounded."""
_SAME_BYTES, _RAW_BYTES = 4, 3
"""A block of one byte, repeated; what a block costs that is stored as it is."""
_FRACTION = 16
"""Estimates are integers, in 2^-16 bits: the native core comes to the same choices."""
_DIGITS = 12
_LOGARITHMS = np.rint(np.log2(np.maximum(np.arange(1 << _DIGITS), 1)) * (1 << _FRACTION)).astype(np.int64)
_OVERHEADS = np.rint(8 * (_BLOCK_BYTES + _ROOT_BYTES * np.sqrt(np.arange(257))) * (1 << _FRACTION)).astype(np.int64)
_OVERHEADS[:2] = 8 * _SAME_BYTES << _FRACTION

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


def share_blocks(sections: Sequence[Bytes]) -> list[Bytes]:
    """The same bytes in fewer sections, each of which is worth a block of its own.

    Args:
        sections: uint8 arrays; those of more than 64 KiB are left alone, and not copied.
    """
    shared: list[Bytes] = []
    small: list[Bytes] = []
    for section in sections:
        if section.size > _LARGE:
            shared += _share(small)
            shared.append(section)
            small = []
        elif section.size:
            small.append(section)
    return shared + _share(small)


def terms_of(factors: npt.NDArray[np.generic]) -> list[Bytes]:
    """Factors [rows, rank] of a low-rank part, a section per term: those of strong ones use more of their range."""
    return [np.ascontiguousarray(column).view(np.uint8) for column in factors.T]


def _share(sections: list[Bytes]) -> list[Bytes]:
    if len(sections) < 2:
        return sections
    joined = np.concatenate(sections)
    ends = list(accumulate(section.size for section in sections))
    if native.core is not None:
        starts = list(native.core.share_blocks(joined, np.array(ends, dtype=np.uint64), _LOGARITHMS, _OVERHEADS))
    else:
        counts = [np.bincount(section, minlength=256).astype(np.int64) for section in sections]
        starts = _merge(counts)
    edges = [0, *(ends[start - 1] for start in starts[1:]), joined.size]
    return [joined[start:stop] for start, stop in pairwise(edges)]


def _merge(counts: list[Counts]) -> list[int]:
    """Merge neighbours, the best pair first, as long as that saves bits; the first of each group.

    Args:
        counts: of each section's bytes, [256].
    """
    firsts = list(range(len(counts)))
    costs = [_block_bits(part) for part in counts]
    together = [_block_bits(left + right) for left, right in pairwise(counts)]
    while together:
        saved = [costs[i] + costs[i + 1] - both for i, both in enumerate(together)]
        best = max(range(len(saved)), key=saved.__getitem__)
        if saved[best] < 0:
            break
        counts[best : best + 2] = [counts[best] + counts[best + 1]]
        costs[best : best + 2] = [together[best]]
        del together[best], firsts[best + 1]
        for i in (best - 1, best):
            if 0 <= i < len(together):
                together[i] = _block_bits(counts[i] + counts[i + 1])
    return firsts


def _block_bits(counts: Counts) -> int:
    """About what a block takes, in 2^-16 bits: the entropy, but a bit at least of each byte, and the overhead."""
    total, largest = int(counts.sum()), int(counts.max())
    weighted = _weighted(counts)
    of_all = int(_weighted(np.array(total)))
    bits = of_all - int(weighted.sum())
    if 2 * largest > total:  # a bit tells whether it is the most frequent byte, instead of less
        others = int(_weighted(np.array(total - largest)))
        bits += (total << _FRACTION) - (of_all - int(_weighted(np.array(largest))) - others)
    overhead = int(_OVERHEADS[np.count_nonzero(counts)])
    return min(bits + overhead, 8 * (total + _RAW_BYTES) << _FRACTION)


def _weighted(numbers: Counts) -> Counts:
    """n · log2 n in 2^-16 bits, with the logarithm of the leading twelve digits; 0 of 0."""
    shifts = np.maximum(np.frexp(numbers.astype(np.float64))[1] - _DIGITS, 0)
    result: Counts = numbers * (_LOGARITHMS[numbers >> shifts] + (shifts.astype(np.int64) << _FRACTION))
    return result

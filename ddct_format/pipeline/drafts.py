"""What a search for steps measures: small samples of large tensors, encoded for real and scaled up.

Size and error of a tensor follow from a few per cent of its rows within a fraction of a per cent, and all samples
together stay in memory: so a search costs little, whatever the model's size (spec/adr/0502-steps-from-samples.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..checkpoint import TensorInfo
from ..container.records import TensorRecord
from ..encode.delta import DeltaAnalysis
from ..encode.pair import Pair
from ..encode.sampling import spread_rows

__all__ = ["Draft", "Sample", "SamplePlan", "plan_samples", "take_sample"]

_WHOLE_MODEL = 32 << 20
"""Weights; up to that nothing is sampled."""
_SHARE = 0.02
_FEWEST, _MOST = 4 << 20, 24 << 20
"""Weights of all samples together, but for the fewest rows of each."""
_FEWEST_ROWS = 32
_GROUP = 16
"""Neighbouring rows that are taken together: as many as a patch has."""
_REPRESENTATIVES = 6
"""Tensors of one shape that are sampled; where there are more, these stand for the others."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is known of an encoded tensor without keeping it: its record, stored bytes, squared error and energy."""

    record: TensorRecord
    stored: int
    noise: float = 0.0
    energy: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a tensor, in memory, and which."""

    pair: Pair
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """How much is sampled.

    Attributes:
        share: of each tensor's rows; 1 for small models.
        stands_for: for each tensor the one that is drafted in its place, perhaps itself.
    """

    share: float
    stands_for: Mapping[str, str]


def plan_samples(tensors: Sequence[TensorInfo], elements: Mapping[str, int]) -> SamplePlan:
    """Decide on the samples of tensors of so many elements each."""
    total = sum(elements[info.name] for info in tensors)
    if total <= _WHOLE_MODEL:
        return SamplePlan(1.0, {info.name: info.name for info in tensors})
    alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for info in tensors:
        alike[(info.dtype, info.shape)].append(info.name)
    stands_for = {}
    for names in alike.values():
        count = min(len(names), _REPRESENTATIVES)
        for place, name in enumerate(names):
            part = place * count // len(names)  # of `count` parts of neighbours, the one that it belongs to
            start, stop = (-(-bound * len(names) // count) for bound in (part, part + 1))
            stands_for[name] = names[(start + stop) // 2]
    return SamplePlan(min(max(_SHARE * total, _FEWEST), _MOST) / total, stands_for)


def take_sample(pair: Pair, analysis: DeltaAnalysis, share: float) -> Sample | None:
    """A sample of a matrix; None where it would be more than half of it."""
    wanted = max(_FEWEST_ROWS, round(pair.rows * share))
    if analysis.factors is None or 2 * wanted > pair.rows:
        return None
    rows = spread_rows(pair.rows, wanted, _GROUP)
    return Sample(pair.take(rows), rows)

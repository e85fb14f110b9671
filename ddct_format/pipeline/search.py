"""Finding the quantiser steps that meet a target, by encoding the model in drafts until its real size is right.

Nothing of a draft is kept but numbers: the search needs no more memory than the final pass, beside samples. Singular
vectors of the tensors lie in a file if they are many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..container.records import TensorRecord
from ..encode.allocation import StepSearch, relative_steps
from ..encode.presets import PRESETS, Preset
from ..errors import ConfigError
from .drafts import Draft
from .encoding import Encoding
from .progress import Progress, Tally
from .steering import Forecast, Goal

__all__ = ["choose_steps"]

_BITS_WINDOW = (0.985, 1.0)
"""Never above the target, and within 2 % of it with what the drafts do not know."""
_ERROR_WINDOW = (0.97, 1.0)
_MOST_PASSES = 12


def choose_steps(
    encoding: Encoding,
    metadata_size: Callable[[Sequence[TensorRecord]], int],
    progress: Progress | None = None,
) -> Forecast:
    """Set the steps of all tensors whose preset has a target; each preset's tensors meet it by themselves.

    Args:
        metadata_size: stored bytes of preamble and metadata of an archive of these tensors.

    Returns:
        what the final pass will come to.

    Raises:
        ConfigError: a target of the caller's own cannot be met. A preset's is met as far as its usual steps reach.
    """
    groups: dict[str, list[str]] = {}
    targets: dict[str, Preset] = {}
    for name, preset in encoding.presets.items():
        if preset.searched:
            groups.setdefault(preset.name, []).append(name)
            targets[preset.name] = preset
    searched = {group: [n for n in names if encoding.is_stored(n)] for group, names in groups.items()}
    todo = [name for names in searched.values() for name in names]
    if not todo:
        return Forecast(encoding)
    size = sum(encoding.target.tensors[name].nbytes for name in todo)
    tally = Tally(size, "analysing", progress)
    for name in encoding.analyse(todo):
        tally.add(encoding.target.tensors[name].nbytes)
    searches: dict[str, StepSearch] = {}
    shares: dict[str, dict[str, float]] = {}
    for group, names in searched.items():
        outlines = {name: outline for name in names if (outline := encoding.analyses.outline(name)) is not None}
        matrices = {name: outline.deviation for name, outline in outlines.items() if outline.is_matrix}
        shares[group] = {**dict.fromkeys(names, 1.0), **relative_steps(matrices, coarse=targets[group].coarse)}
        if outlines:
            search = searches[group] = _search(targets[group], encoding.is_sampled)
            encoding.steps.update((name, search.scale * share) for name, share in shares[group].items())
    measured = _Measured(encoding, groups, metadata_size)
    for number in range(_MOST_PASSES):
        waiting = [group for group, search in searches.items() if not search.done]
        if not waiting:
            break
        names = [name for group in waiting for name in searched[group]]
        tally = Tally(size, f"choosing steps, pass {number + 1}", progress)
        measured.measure(names, errors=any(targets[group].error is not None for group in waiting), tally=tally)
        for group in waiting:
            preset, search, steps = targets[group], searches[group], shares[group]
            search.record(measured.error(group) if preset.error is not None else measured.bits(group))
            encoding.steps.update((name, search.scale * share) for name, share in steps.items())
            if search.exhausted:
                found = measured.error(group) if preset.error is not None else measured.bits(group)
                raise ConfigError(
                    f"{preset.name} cannot be met: the nearest is {found:.4g}", place=encoding.target.path
                )

    if not encoding.is_sampled:
        return Forecast(encoding)
    goals = [measured.goal(group, targets[group], search.reached) for group, search in searches.items()]
    return Forecast(encoding, goals)


def _search(preset: Preset, corrected: bool) -> StepSearch:
    if preset.error is not None:
        return StepSearch(preset.error, rising=True, low=_ERROR_WINDOW[0], high=_ERROR_WINDOW[1])
    assert preset.bits is not None
    return StepSearch(
        preset.bits,
        rising=False,
        low=_BITS_WINDOW[0],
        high=_BITS_WINDOW[1],
        strict=preset.name not in PRESETS,
        corrected=corrected,
    )


class _Measured:
    """Sizes and errors of every tensor, as the last draft that included it found them."""

    def __init__(
        self,
        encoding: Encoding,
        groups: Mapping[str, Sequence[str]],
        metadata_size: Callable[[Sequence[TensorRecord]], int],
    ) -> None:
        self._encoding = encoding
        self._groups = groups
        self._metadata_size = metadata_size
        self._records: dict[str, TensorRecord] = {}
        self._stored: dict[str, int] = {}
        self._noise: dict[str, float] = {}
        self._energy: dict[str, float] = {}
        self._metadata_bytes = 0

    def measure(self, names: Sequence[str], *, errors: bool, tally: Tally) -> None:
        # What is not searched for never changes: once is enough.
        fixed = [name for name in self._encoding.presets if name not in self._records and name not in set(names)]
        for name, item in zip(fixed, self._encoding.draft_all(fixed), strict=True):
            self._store(name, item)
        for name, item in zip(names, self._encoding.draft_all(names, errors=errors), strict=True):
            self._store(name, item)
            tally.add(item.record.nbytes)
        self._metadata_bytes = self._metadata_size([self._records[name] for name in self._encoding.presets])

    def _store(self, name: str, item: Draft) -> None:
        # A draft's error is not known; four digits that do not repeat stand for it.
        error = None if item.record.error is None else int(self._encoding.target_digests[name][:4], 16) / 1e5
        self._records[name] = replace(item.record, error=error)
        self._stored[name], self._noise[name], self._energy[name] = item.stored, item.noise, item.energy

    def goal(self, group: str, preset: Preset, reached: bool) -> Goal:
        """What the final pass should come to."""
        names = self._groups[group]
        drafts = {name: Draft(self._records[name], self._stored[name]) for name in names}
        if preset.error is not None:
            return Goal(frozenset(names), drafts, preset.error, False, not self._encoding.exact, True)
        assert preset.bits is not None
        elements = sum(record.elements for record in (self._records[name] for name in names))
        size = preset.bits * elements / 8 - self._metadata_bytes * len(names) / len(self._records)
        return Goal(frozenset(names), drafts, size, True, reached, preset.name not in PRESETS)

    def bits(self, group: str) -> float:
        """Bits per weight of a group, with its share of the metadata by the number of tensors."""
        names = self._groups[group]
        metadata_bytes = self._metadata_bytes * len(names) / len(self._records)
        elements = sum(self._records[name].elements for name in names)
        return 8 * (sum(self._stored[name] for name in names) + metadata_bytes) / max(elements, 1)

    def error(self, group: str) -> float:
        names = self._groups[group]
        energy = sum(self._energy[name] for name in names)
        return sum(self._noise[name] for name in names) / energy if energy else 0.0

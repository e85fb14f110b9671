"""The schemes that a sweep compares: presets, and each choice behind them changed by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..encode.presets import PAPER_QUANTISER, PRESETS, Preset, get_preset
from ..errors import ConfigError

__all__ = ["DEFAULT_BITS", "GROUPS", "Scheme", "choose_schemes"]

GROUPS = {
    "presets": "every preset of pack",
    "transform": "DCT, Hadamard, none",
    "patch": "patches of 8, 16 and 32",
    "gain": "unbiased, least squares, mean absolute delta",
    "low-rank": "with and without the low-rank part",
    "paper": "the paper's scheme: transform, patches, rescaling",
    "allocation": "the paper's scheme: how many patches get how many bits",
}
DEFAULT_BITS = (0.5, 1.0)

_TRANSFORMS = {"none": "no transform", "hadamard": "Hadamard"}
_PATCHES = (8, 32)
_ALLOCATIONS = (
    ((1, 1.0),),
    ((2, 0.5),),
    ((3, 1 / 3),),
    ((4, 0.25),),
    ((2, 0.3), (1, 0.4)),
    ((2, 0.25), (1, 0.5)),
    ((4, 0.1), (2, 0.2), (1, 0.2)),
)
"""All of them 1 bit per coefficient before entropy coding; the second and fifth are the published ones."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One row of a sweep.

    Attributes:
        family: what it is a variant of: ``ddct`` or ``paper``.
        variant: what was changed; empty if nothing.
    """

    name: str
    family: str
    variant: str
    preset: Preset

    def settings(self) -> dict[str, object]:
        """What distinguishes it, for JSON."""
        preset, quantiser = self.preset, self.preset.quantiser
        if preset.exact:
            return {"exact": True}
        settings: dict[str, object] = {"transform": quantiser.transform, "patch": quantiser.patch}
        settings["gain"] = quantiser.gain
        if preset.shares:
            return {**settings, "shares": [list(share) for share in preset.shares]}
        return {**settings, "low_rank": quantiser.low_rank, "bits": preset.bits, "error": preset.error}


def choose_schemes(groups: Sequence[str] = (), bits: Sequence[float] = DEFAULT_BITS) -> list[Scheme]:
    """The schemes of these groups, all if none are named, each once; what a variant is compared with comes along.

    Args:
        groups: some of ``GROUPS``.
        bits: bits per weight at which choices behind the presets are compared.

    Raises:
        ConfigError: an unknown group, or a number of bits that pack would refuse.
    """
    for group in groups:
        if group not in GROUPS:
            raise ConfigError(f"unknown group {group!r}; known are {', '.join(GROUPS)}")
    chosen: dict[Preset, Scheme] = {}
    wanted = set(groups or GROUPS)
    for scheme in _all_schemes(wanted, bits):
        chosen.setdefault(replace(scheme.preset, name="", summary=""), scheme)
    return list(chosen.values())


def _all_schemes(groups: set[str], bits: Sequence[float]) -> Iterator[Scheme]:
    if "presets" in groups:
        for preset in PRESETS.values():
            yield Scheme(preset.name, "paper" if preset.shares else "ddct", "", preset)
    if groups & {"transform", "patch", "gain", "low-rank"}:
        for number in sorted(bits):
            plain = get_preset("balanced", bits=number)
            base = Scheme(f"{number:g} bits", "ddct", "", plain)
            yield base
            yield from _variants(base, groups)
    if groups & {"paper", "allocation"}:
        base = Scheme("paper", "paper", "", PRESETS["paper"])
        yield base
        if "paper" in groups:
            yield from _variants(base, {"transform", "patch", "gain"})
            yield _variant(base, "no rescaling", gain="none")
    if "allocation" in groups:
        for shares in _ALLOCATIONS:
            parts = [f"{100 * share:.0f} % at {number}" for number, share in shares]
            name = f"paper, {', '.join(parts)}"
            yield Scheme(name, "paper", "allocation", Preset(name, "", shares=shares, quantiser=PAPER_QUANTISER))


def _variants(base: Scheme, groups: set[str]) -> Iterator[Scheme]:
    own = base.preset.quantiser
    if "transform" in groups:
        for transform, label in _TRANSFORMS.items():
            yield _variant(base, label, transform=transform)
    if "patch" in groups:
        for patch in _PATCHES:
            yield _variant(base, f"patches of {patch}", patch=patch)
    if "gain" in groups:
        for gain in ("unbiased", "least-squares", "mean-absolute"):
            if gain != own.gain:
                yield _variant(base, f"{gain} gain", gain=gain)
    if "low-rank" in groups and own.low_rank:
        yield _variant(base, "no low-rank part", low_rank=False)


def _variant(base: Scheme, label: str, **changes: Any) -> Scheme:
    name = f"{base.name}, {label}"
    quantiser = replace(base.preset.quantiser, **changes)
    return Scheme(name, base.family, label, replace(base.preset, name=name, quantiser=quantiser))

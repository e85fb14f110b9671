"""Named encoder settings. A preset is not a format: every reader reads what any preset wrote."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .quantiser import DEFAULT_QUANTISER, Quantiser

__all__ = ["DEFAULT_PRESET", "KEEP_PRESETS", "PAPER_QUANTISER", "PRESETS", "RAW", "Preset", "get_preset"]

DEFAULT_PRESET = "balanced"
_COARSE_BITS = 0.35


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings of the encoder. Without any of its three numbers, tensors are carried byte for byte.

    Attributes:
        summary: one line for ``--help``.
        bits: target in bits per weight: all bytes of the archive but those of side files, times 8, over the parameters.
        error: target as relative squared error over all tensors.
        shares: the paper's quantiser: (bits per coefficient, share of the patches), strongest patches first.
        exact: the fine-tune comes back bit for bit, and no lossy layer is chosen for its own sake.
        quantiser: the choices beneath.
    """

    name: str
    summary: str
    bits: float | None = None
    error: float | None = None
    shares: tuple[tuple[int, float], ...] = ()
    exact: bool = False
    quantiser: Quantiser = DEFAULT_QUANTISER

    @property
    def searched(self) -> bool:
        """Whether quantiser steps must be searched for, to meet a target."""
        return self.bits is not None or self.error is not None

    @property
    def coarse(self) -> bool:
        """Whether hardly any value of the residual will survive."""
        return self.bits is not None and self.bits < _COARSE_BITS


PAPER_QUANTISER = Quantiser(gain="mean-absolute", low_rank=False)
"""Delta-DCT as published."""

RAW = Preset("raw", "carried byte for byte")
"""Not a preset for a whole model: for tensors that must not change at all."""

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", "a quarter of a bit per weight", bits=0.25),
        Preset("small", "half a bit per weight", bits=0.5),
        Preset("balanced", "one bit per weight", bits=1.0),
        Preset("high", "two bits per weight", bits=2.0),
        Preset(
            "paper",
            "Delta-DCT as published: half of the patches at 2 bits, half at none",
            shares=((2, 0.5),),
            quantiser=PAPER_QUANTISER,
        ),
        Preset(
            "paper-mix",
            "Delta-DCT, mixed: 30 % at 2 bits, 40 % at 1 bit, 30 % at none",
            shares=((2, 0.3), (1, 0.4)),
            quantiser=PAPER_QUANTISER,
        ),
        Preset("exact", "lossless: every tensor comes back bit for bit", exact=True),
    )
}
KEEP_PRESETS = {**PRESETS, RAW.name: RAW}
"""What single tensors can be given."""


def get_preset(name: str, *, bits: float | None = None, error: float | None = None) -> Preset:
    """Look a preset up, or make one for a target of the caller's own.

    Args:
        bits, error: a target that replaces the preset's; at most one of them.

    Raises:
        ConfigError: there is none of that name, or it has no target that could be replaced.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if bits is None and error is None:
        return preset
    if bits is not None and error is not None:
        raise ConfigError("bits and error are two targets; give one of them")
    if not preset.searched:
        raise ConfigError(f"preset {name!r} fixes the quantiser: it takes no target in bits or error")
    if bits is not None:
        if not 0.01 <= bits <= 8:
            raise ConfigError(f"{bits:g} bits per weight is not in 0.01 to 8")
        return Preset(f"bits={bits:g}", "a target of the user's own", bits=bits)
    assert error is not None
    if not 1e-4 <= error < 1:
        raise ConfigError(f"a relative error of {error:g} is not in 0.0001 to 1")
    return Preset(f"error={error:g}", "a target of the user's own", error=error)

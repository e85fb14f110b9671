"""Named encoder settings. A preset is not a format: every reader reads what any preset wrote."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["PRESETS", "Preset", "get_preset"]


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings of the encoder.

    Attributes:
        shares: (bits per coefficient, share of the patches), strongest patches first.
        summary: one line for ``--help``.
        exact: the fine-tune comes back bit for bit, and no lossy layer is chosen for its own sake.
    """

    name: str
    shares: tuple[tuple[int, float], ...]
    summary: str
    exact: bool = False


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("paper", ((2, 0.5),), "Delta-DCT as published: half of the patches at 2 bits, half at none"),
        Preset("paper-mix", ((2, 0.3), (1, 0.4)), "Delta-DCT, mixed: 30 % at 2 bits, 40 % at 1 bit, 30 % at none"),
        Preset("exact", (), "lossless: every tensor comes back bit for bit", exact=True),
    )
}


def get_preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}") from None

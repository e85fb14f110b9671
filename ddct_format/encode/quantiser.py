"""What of quantising a matrix is a matter of choice, decided by measuring (spec/adr): the knobs of an ablation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_QUANTISER", "GAINS", "Quantiser", "choose_gain"]

GAINS = ("unbiased", "least-squares", "mean-absolute", "none")


@dataclass(frozen=True, slots=True)
class Quantiser:
    """Settings of the quantiser; the defaults are what the presets use.

    Attributes:
        transform: of patches, one of the format's.
        patch: side of a patch, one of the format's.
        gain: one of ``GAINS``, see :func:`choose_gain`.
        low_rank: whether strong directions are coded by themselves. Not for the paper's scheme, which has none.
    """

    transform: str = "dct"
    patch: int = 16
    gain: str = "unbiased"
    low_rank: bool = True


DEFAULT_QUANTISER = Quantiser()


def choose_gain(
    kind: str, *, energy: float, aligned: float, decoded: float, absolute: float, decoded_absolute: float
) -> float:
    """What decoded values r of true ones d are multiplied with; 0 where nothing was decoded.

    ``unbiased`` lets r project onto d with coefficient 1, ``least-squares`` makes the error smallest, ``mean-absolute``
    is the paper's (section 3.4): as much change in all as there was.

    Args:
        kind: one of ``GAINS``.
        energy, aligned, decoded: <d,d>, <d,r> and <r,r>.
        absolute, decoded_absolute: sums of |d| and |r|.
    """
    if kind == "none":
        return 1.0
    above, below = {
        "unbiased": (energy, aligned),
        "least-squares": (aligned, decoded),
        "mean-absolute": (absolute, decoded_absolute),
    }[kind]
    return max(0.0, above / below) if below > 0 else 0.0

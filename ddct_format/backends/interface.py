"""What every backend does. Decoding is bound to equality of bytes, not closeness: see tests/parity/."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..codec.dctq import DctqParams, DctqPayload, StoredPayload
from ..codec.ulp import UlpParams
from .encoder import Encoder

__all__ = ["Backend", "Comparison", "Decoder"]


@dataclass(slots=True)
class Comparison:
    """What a result is compared with while it is made, and still in the caches.

    Attributes:
        target: uint8, 1-D, of the result's element type.
        error: Σ (t−d)², float64, infinite if a difference is not finite; None as long as that was not computed.
    """

    target: npt.NDArray[np.uint8]
    error: float | None = None


class Decoder(Protocol):
    """The arithmetic of dctq.v1 and ulp.v1 on some hardware. Tensors come and go as bytes in host memory."""

    name: str

    def decode_delta(self, params: DctqParams, payload: DctqPayload) -> npt.NDArray[np.float32]:
        """The decoded delta, [rows, cols], as section 7.2.3 computes it: the same bits on every backend."""

    def apply(
        self,
        params: DctqParams,
        payload: DctqPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        """Bytes of the base tensor -> bytes of the tensor after the layer: the same bits on every backend."""

    def apply_stored(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        """As :meth:`apply`, from a payload whose symbols are still packed."""

    def apply_bands(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
        out: npt.NDArray[np.uint8],
        comparison: Comparison | None = None,
    ) -> Iterator[int]:
        """As :meth:`apply_stored`, into memory of the caller's, with a pause after each band of the tensor.

        Args:
            out: where the result goes, writable, 1-D and contiguous, of exactly its size; it may be a mapped region of
                a file, of any alignment, and must not overlap ``base`` or the payload.
            comparison: made on the way where that saves reading the result again; a backend may leave it to the caller.

        Yields:
            how many bytes of the result are finished, after each band of about 8 MiB or less; at the end ``out.size``.
            They are the first bytes of ``out``, unless rows have keys: then they are whole rows, scattered over it.
            Until all is done, the rest of ``out`` is undefined. Nothing is computed before it is asked for.
        """

    def apply_ulp_bands(
        self,
        params: UlpParams,
        payload: npt.NDArray[np.uint8],
        before: npt.NDArray[np.uint8],
        before_dtype: str,
        out: npt.NDArray[np.uint8],
    ) -> Iterator[int]:
        """The tensor after a layer of ulp.v1 (section 7.3.3), into memory of the caller's, band by band.

        Args:
            payload: of a size within :meth:`UlpParams.size_bounds`, unchecked.
            before: bytes of the tensor so far, of type ``before_dtype``.
            out: writable, 1-D and contiguous, of the target's size and any alignment. It may be ``before`` itself where
                that has the target's type; otherwise they do not overlap.

        Yields:
            how many bytes of ``out``, from its start, are finished; ``out.size`` at the end.

        Raises:
            InvalidError: the payload is not as section 7.3 demands. ``out`` is undefined then.
        """


class Backend(Decoder, Encoder, Protocol):
    """Both directions on some hardware."""

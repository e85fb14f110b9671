"""What every backend does. Decoding is bound to equality of bytes, not closeness: see tests/parity/."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..codec.dctq import DctqParams, DctqPayload, StoredPayload
from .encoder import Encoder

__all__ = ["Backend", "Decoder"]


class Decoder(Protocol):
    """The arithmetic of dctq.v1 on some hardware. Tensors come and go as bytes in host memory."""

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
    ) -> Iterator[int]:
        """As :meth:`apply_stored`, into memory of the caller's, with a pause after each band of the tensor.

        Args:
            out: where the result goes, writable, 1-D and contiguous, of exactly its size; it may be a mapped region of
                a file, of any alignment, and must not overlap ``base`` or the payload.

        Yields:
            how many bytes of the result are finished, after each band of about 8 MiB or less; at the end ``out.size``.
            They are the first bytes of ``out``, unless rows have keys: then they are whole rows, scattered over it.
            Until all is done, the rest of ``out`` is undefined. Nothing is computed before it is asked for.
        """


class Backend(Decoder, Encoder, Protocol):
    """Both directions on some hardware."""

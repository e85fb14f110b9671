"""Several devices that share a model by tensor: each call goes to the one with the least to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ...codec.dctq import DctqParams, DctqPayload, StoredPayload
from ...codec.patches import PatchGrid
from ..encoder import AffineBand, Band, DeltaSums, PowerStep, QuantisedBand, ResidualPlan
from .backend import CudaBackend

__all__ = ["SeveralCudaBackends"]


class SeveralCudaBackends:
    """See :class:`~ddct_format.backends.interface.Backend`; worker threads are what makes all of them busy."""

    name = "cuda"

    def __init__(self, backends: list[CudaBackend]) -> None:
        self._backends = backends
        self._busy = [0] * len(backends)
        self._lock = threading.Lock()

    @contextmanager
    def _one(self) -> Iterator[CudaBackend]:
        with self._lock:
            number = min(range(len(self._busy)), key=self._busy.__getitem__)
            self._busy[number] += 1
        try:
            yield self._backends[number]
        finally:
            with self._lock:
                self._busy[number] -= 1

    def delta(
        self, base: npt.NDArray[np.uint8], base_dtype: str, target: npt.NDArray[np.uint8], dtype: str
    ) -> npt.NDArray[np.float32]:
        with self._one() as one:
            return one.delta(base, base_dtype, target, dtype)

    def coefficients(self, view: npt.NDArray[np.float32], grid: PatchGrid, transform: str) -> npt.NDArray[np.float32]:
        with self._one() as one:
            return one.coefficients(view, grid, transform)

    def decode_delta(self, params: DctqParams, payload: DctqPayload) -> npt.NDArray[np.float32]:
        with self._one() as one:
            return one.decode_delta(params, payload)

    def apply(
        self,
        params: DctqParams,
        payload: DctqPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        with self._one() as one:
            return one.apply(params, payload, base, base_dtype, dtype)

    def apply_stored(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        with self._one() as one:
            return one.apply_stored(params, stored, base, base_dtype, dtype)

    def apply_bands(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
        out: npt.NDArray[np.uint8],
    ) -> Iterator[int]:
        with self._one() as one:
            yield from one.apply_bands(params, stored, base, base_dtype, dtype, out)

    def difference(self, band: Band) -> npt.NDArray[np.float32]:
        with self._one() as one:
            return one.difference(band)

    def delta_sums(self, band: Band) -> DeltaSums:
        with self._one() as one:
            return one.delta_sums(band)

    def power_step(self, band: Band, scale: float, vectors: npt.NDArray[np.float32]) -> PowerStep:
        with self._one() as one:
            return one.power_step(band, scale, vectors)

    def quantise(self, band: Band, plan: ResidualPlan, left: npt.NDArray[np.float32]) -> QuantisedBand:
        with self._one() as one:
            return one.quantise(band, plan, left)

    def patch_energies(self, band: Band, patch: int) -> npt.NDArray[np.float64]:
        with self._one() as one:
            return one.patch_energies(band, patch)

    def quantise_affine(
        self, band: Band, patch: int, transform: str, scale: float, alphabets: npt.NDArray[np.uint8]
    ) -> AffineBand:
        with self._one() as one:
            return one.quantise_affine(band, patch, transform, scale, alphabets)

    def pack_class(
        self, symbols: npt.NDArray[np.uint8], class_map: npt.NDArray[np.uint8], number: int, alphabet: int, sparse: bool
    ) -> list[npt.NDArray[np.uint8]]:
        return self._backends[0].pack_class(symbols, class_map, number, alphabet, sparse)

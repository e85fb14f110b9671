"""The backend ``cuda``: bytes come from host memory and go back there; the arithmetic is on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from ...codec.dctq import DctqParams, DctqPayload, StoredPayload, build_sections, split_payload
from ..numpy_encoder import NumpyEncoder
from ..torch_cpu import TorchCpuBackend
from .fused import FusedLayer
from .layer import BITS, DeviceLayer, plan_layer

__all__ = ["CudaBackend"]

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}


class CudaBackend(NumpyEncoder):
    """Decodes and transforms on one CUDA device.

    Args:
        device: where; tests may pass the CPU, on which Triton's interpreter runs the same kernels.
    """

    name = "cuda"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def decode_delta(self, params: DctqParams, payload: DctqPayload) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = self._layer(params, _stored(params, payload)).delta().cpu().numpy()
        return result

    def apply(
        self,
        params: DctqParams,
        payload: DctqPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        return self.apply_stored(params, _stored(params, payload), base, base_dtype, dtype)

    def apply_stored(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        try:
            return self._apply_on_device(params, stored, base, base_dtype, dtype)
        except torch.cuda.OutOfMemoryError:
            # Other processes may hold the device's memory: the CPU gives the same bits, only later.
            torch.cuda.empty_cache()
            return TorchCpuBackend().apply_stored(params, stored, base, base_dtype, dtype)

    def apply_bands(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
        out: npt.NDArray[np.uint8],
    ) -> Iterator[int]:
        out[:] = self.apply_stored(params, stored, base, base_dtype, dtype)
        yield out.size

    def _apply_on_device(
        self,
        params: DctqParams,
        stored: StoredPayload,
        base: npt.NDArray[np.uint8],
        base_dtype: str,
        dtype: str,
    ) -> npt.NDArray[np.uint8]:
        layer = self._layer(params, stored)
        before = self._upload(base)
        after = before if base_dtype == dtype else self._empty(base.size // _WIDTHS[base_dtype] * _WIDTHS[dtype])
        layer.apply(before.view(BITS[base_dtype]), base_dtype, after.view(BITS[dtype]), dtype)
        result: npt.NDArray[np.uint8] = after.cpu().numpy()
        return result

    def _layer(self, params: DctqParams, stored: StoredPayload) -> DeviceLayer | FusedLayer:
        plan = plan_layer(params, stored, self.device)
        head = np.empty(plan.upload_size, dtype=np.uint8)
        plan.write(head)
        buffer = self._empty(plan.size)
        buffer[: plan.upload_size].copy_(torch.from_numpy(head))
        return plan.build(buffer)

    def _empty(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def _upload(self, data: npt.NDArray[np.uint8]) -> torch.Tensor:
        result = self._empty(data.size)
        if data.size:
            result.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return result


def _stored(params: DctqParams, payload: DctqPayload) -> StoredPayload:
    return split_payload(params, np.concatenate(build_sections(params, payload)))

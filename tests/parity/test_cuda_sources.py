"""The kernels in CUDA C++ compile, which NVRTC tells without a GPU; what they compute is compared on one."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ddct_format.backends.cuda import fused, fused_encoder, nvrtc

OLDEST, MEASURED = "sm_80", "sm_90"
"""Architectures: the oldest that the kernels are for, and that on which they are measured."""


@cache
def library() -> ctypes.CDLL | None:
    """NVRTC from the package of that name, with torch for CUDA or without."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    for builtins in sorted(found for folder in folders for found in folder.glob("*/lib/libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins))  # the library looks for it by name
        (path,) = builtins.parent.glob("libnvrtc.so.*")
        return ctypes.CDLL(str(path))
    return None


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch, architecture: str) -> list[bytes]:
    """What was compiled, in place of being loaded on a device."""
    found: list[bytes] = []
    nvrtc_library = library()
    if nvrtc_library is None:
        pytest.skip("NVRTC is not installed")

    def compile_only(source: str, options: Sequence[str], device: torch.device) -> None:
        found.append(nvrtc._compile(nvrtc_library, source, [f"--gpu-architecture={architecture}", *options]))

    for module in (fused, fused_encoder):
        monkeypatch.setattr(module, "load_kernels", compile_only)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return found


@pytest.mark.parametrize(
    ("architecture", "base", "result", "affine", "limbs", "chunks", "vector"),
    [
        (MEASURED, "BF16", "BF16", False, 0, 0, True),
        (OLDEST, "F16", "F32", False, 2, 1, True),
        (MEASURED, "F32", "BF16", True, 3, 4, False),
        (OLDEST, "none", "F32", True, 0, 0, False),
    ],
)
def test_decoders(
    images: list[bytes], base: str, result: str, affine: bool, limbs: int, chunks: int, vector: bool
) -> None:
    macros = {"AFFINE": int(affine), "LIMBS": limbs}
    fused._load.__wrapped__(torch.device("cpu"), "prepare", **macros)
    macros |= {"BASE": fused._TYPES[base], "RESULT": fused._TYPES[result], "CHUNKS": chunks, "VECTOR": int(vector)}
    fused._load.__wrapped__(torch.device("cpu"), "rows", **macros)
    fused._load.__wrapped__(torch.device("cpu"), "tiles", **macros)
    assert [image[:4] for image in images] == [b"\x7fELF"] * 3


@pytest.mark.parametrize(
    ("architecture", "dtype", "quantiser", "vector"),
    [
        (MEASURED, "BF16", "levels.cu", True),
        (OLDEST, "F32", "levels.cu", False),
        (MEASURED, "F16", "affine.cu", True),
        (OLDEST, "BF16", "affine.cu", False),
    ],
)
def test_encoders(images: list[bytes], dtype: str, quantiser: str, vector: bool) -> None:
    fused_encoder._load.__wrapped__(torch.device("cpu"), fused_encoder._TYPES[dtype], quantiser, vector)
    assert [image[:4] for image in images] == [b"\x7fELF"]


@pytest.mark.parametrize("architecture", [MEASURED])
def test_a_mistake_is_found(images: list[bytes]) -> None:
    with pytest.raises(nvrtc.NvrtcError, match=r"do not compile: .*not_a_type"):
        fused.load_kernels("not_a_type x;", (), torch.device("cpu"))

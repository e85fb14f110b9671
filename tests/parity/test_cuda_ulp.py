"""The CUDA backend decodes ulp.v1 to the bytes of the codec, refuses what that refuses, and encodes as the CPU does.

Where it runs: see ``test_cuda.py``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from codec.layers import base_bytes
from codec.ulp_pairs import layer_of, layers_of_pairs, pairs
from hypothesis import given
from hypothesis import strategies as st

from ddct_format.backends.encoder import Encoder
from ddct_format.backends.native_encoder import NativeEncoder
from ddct_format.codec.ulp import UlpParams, apply_ulp
from ddct_format.encode.exact import Kinds, encode_exact, plan_exact
from ddct_format.encode.pair import TensorData
from ddct_format.encode.workspace import Workspace
from ddct_format.errors import InvalidError
from parity.test_cuda import INTERPRETED, examples, kernels, needs_kernels

Bytes = npt.NDArray[np.uint8]
Layer = tuple[UlpParams, Bytes, Bytes, str, Bytes]

pytestmark = [
    pytest.mark.gpu,
    needs_kernels,
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # numpy, under the interpreter
]


def decoded(params: UlpParams, payload: Bytes, before: Bytes, before_dtype: str, size: int) -> Bytes:
    out = np.full(size, 0xA5, dtype=np.uint8)
    assert list(kernels().apply_ulp_bands(params, payload, before, before_dtype, out)) == [size]
    return out


def encoded_by(
    encoder: Encoder, before: Bytes, before_dtype: str, target: Bytes, dtype: str, cols: int, kinds: Kinds
) -> tuple[UlpParams, Bytes]:
    tensors = TensorData(before_dtype, (), before), TensorData(dtype, (), target)
    plan = plan_exact(*tensors, cols, encoder, Workspace(), kinds=kinds)
    params, sections = encode_exact(*tensors, cols, encoder, plan=plan)
    return params, np.concatenate(sections)


@examples(300, 60)
@given(layers_of_pairs())
def test_layers_decode_to_the_target(layer: Layer) -> None:
    params, payload, before, before_dtype, target = layer
    assert np.array_equal(apply_ulp(params, payload, before, before_dtype), target)
    assert np.array_equal(decoded(params, payload, before, before_dtype, target.size), target)


@examples(300, 60)
@given(layers_of_pairs(), st.data())
def test_damaged_layers_are_decoded_or_refused_alike(layer: Layer, data: st.DataObject) -> None:
    params, payload, before, before_dtype, target = layer
    for _ in range(data.draw(st.integers(1, 3))):
        if payload.size:
            payload[data.draw(st.integers(0, payload.size - 1))] = data.draw(st.integers(0, 255))
    smallest, largest = params.size_bounds()
    size = min(max(smallest, payload.size + data.draw(st.integers(-2, 2))), largest)
    payload = np.resize(payload, size) if payload.size else np.zeros(size, dtype=np.uint8)
    try:
        wanted = apply_ulp(params, payload, before, before_dtype)
    except InvalidError:
        with pytest.raises(InvalidError):
            decoded(params, payload, before, before_dtype, target.size)
    else:
        assert np.array_equal(decoded(params, payload, before, before_dtype, target.size), wanted)


@examples(100, 15)
@given(pairs(), st.sampled_from([(False, False), (True, False), (False, True), (True, True)]))
def test_what_it_encodes_is_what_the_cpu_encodes(pair: tuple[Bytes, str, Bytes, str, int], kinds: Kinds) -> None:
    before, before_dtype, target, dtype, cols = pair
    wanted = encoded_by(NativeEncoder(), before, before_dtype, target, dtype, cols, kinds)
    found = encoded_by(kernels(), before, before_dtype, target, dtype, cols, kinds)
    assert np.array_equal(apply_ulp(*found, before, before_dtype), target)
    if not any(kinds):  # keys follow from sums in floating point
        assert found[0] == wanted[0]
        assert np.array_equal(found[1], wanted[1])


@pytest.mark.parametrize("special", [0, 0x7F80, 0x7FFF])
def test_every_pattern_is_reached_from_every_special_one(special: int) -> None:
    everything = np.arange(0, 2**16, 64 if INTERPRETED else 1, dtype="<u2").view(np.uint8)
    alike = np.full(everything.size // 2, special, dtype="<u2").view(np.uint8)
    params = UlpParams("BF16", 32, everything.size // 64)
    for before, target in ((alike, everything), (everything, alike)):
        payload = layer_of(params, before, "BF16", target, 0)
        assert np.array_equal(decoded(params, payload, before, "BF16", target.size), target)


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize(("dtype", "rows", "cols"), [("BF16", 3001, 1503), ("F16", 1, 3000001), ("F32", 1000003, 1)])
def test_a_tensor_of_many_tiles_and_bands(dtype: str, rows: int, cols: int, keys: bool) -> None:
    if INTERPRETED:
        rows, cols = -(-rows // 300), -(-cols // 300)
    random = np.random.default_rng(0)
    before = base_bytes(rows * cols, dtype, 0, finite=True)
    patterns = before.view("<u4" if dtype == "F32" else "<u2")
    moves = np.rint(random.standard_cauchy(patterns.size)).clip(-2000, 2000).astype(np.int64)
    target = (patterns + moves).astype(patterns.dtype).view(np.uint8)
    params = UlpParams(
        dtype, rows, cols, tuple(range(300, 1020, 3)), sparse=(0, 77, 120, 200), row_keys=keys, col_keys=keys
    )
    payload = layer_of(params, before, dtype, target, 1)
    assert np.array_equal(decoded(params, payload, before, dtype, target.size), target)
    backend = kernels()
    backend.band_weights = rows * cols // 4
    found, wanted = (
        encoded_by(encoder, before, dtype, target, dtype, cols, (False, False))
        for encoder in (backend, NativeEncoder())
    )
    assert found[0] == wanted[0]
    assert np.array_equal(found[1], wanted[1])


def test_without_memory_of_the_device_the_cpu_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddct_format.backends.cuda import backend

    def exhausted(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(backend, "decode_ulp", exhausted)
    before, target = (base_bytes(600, "BF16", seed, finite=True) for seed in (0, 1))
    params, payload = encoded_by(NativeEncoder(), before, "BF16", target, "BF16", 20, (False, False))
    assert np.array_equal(decoded(params, payload, before, "BF16", target.size), target)


@given(st.integers(0, 40), st.integers(0, 120), st.integers(0, 30), st.binary(min_size=20, max_size=24))
def test_bits_are_copied_from_anywhere_to_anywhere(first: int, count: int, position: int, data: bytes) -> None:
    from ddct_format.backends.cuda.ulp_encode import copy_bits

    out = np.zeros(20, dtype=np.uint8)
    below = (1 << position) - 1
    out[:] = np.frombuffer(below.to_bytes(20, "little"), dtype=np.uint8)
    copy_bits(np.frombuffer(data, dtype=np.uint8), first, count, out, position)
    bits = int.from_bytes(data, "little") >> first & ((1 << count) - 1)
    assert out.tobytes() == (below | bits << position).to_bytes(20, "little")

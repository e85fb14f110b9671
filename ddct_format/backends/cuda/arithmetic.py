"""Element types in Triton: bits to binary32 and back, as section 7.2.3 of the specification rounds.

Kernels that use these are launched with ``enable_fp_fusion=False``: a multiply and an add must round twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add_rounded", "binary32", "round_bits"]


@triton.jit
def binary32(bits, DTYPE: tl.constexpr):
    """Bits of ``DTYPE`` elements -> float32, exactly."""
    if DTYPE == "BF16":
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    if DTYPE == "F16":
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def round_bits(values, DTYPE: tl.constexpr):
    """float32 -> bits of ``DTYPE``, to nearest, ties to even, every NaN the quiet one."""
    if DTYPE == "BF16":
        bits = values.to(tl.int32, bitcast=True)
        bits = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        return tl.where(values != values, 0x7FC0, bits).to(tl.int16)
    if DTYPE == "F16":
        bits = values.to(tl.float16).to(tl.int16, bitcast=True)
        return tl.where(values != values, tl.full(values.shape, 0x7E00, tl.int16), bits)
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(values != values, tl.full(values.shape, 0x7FC00000, tl.int32), bits)


@triton.jit
def add_rounded(bits, delta, BASE: tl.constexpr, RESULT: tl.constexpr):
    """Base bits plus a float32 delta, rounded once; where the delta is zero, the base alone (step 5)."""
    base = binary32(bits, BASE)
    if BASE == RESULT:
        return tl.where(delta == 0, bits, round_bits(base + delta, RESULT))
    return round_bits(tl.where(delta == 0, base, base + delta), RESULT)

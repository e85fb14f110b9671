"""Element types in Triton: bits to binary32 and back, as section 7.2.3 of the specification rounds.

Kernels that use these are launched with ``enable_fp_fusion=False``: a multiply and an add must round twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "add_rounded", "binary32", "round_bits"]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether Triton interprets. Its interpreter truncates to bfloat16 and knows no assembly: such places have a twin."""


@triton.jit
def binary32(bits, DTYPE: tl.constexpr):
    """Bits of ``DTYPE`` elements -> float32, exactly."""
    if DTYPE == "BF16":
        values = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == "F16":
        values = bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        values = bits.to(tl.float32, bitcast=True)
    return values


@triton.jit
def round_bits(values, DTYPE: tl.constexpr):
    """float32 -> bits of ``DTYPE``, to nearest, ties to even, every NaN the quiet one."""
    if DTYPE == "BF16":
        if INTERPRETED:
            bits = values.to(tl.int32, bitcast=True)
            bits = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).to(tl.int16)
        else:
            bits = values.to(tl.bfloat16).to(tl.int16, bitcast=True)
        rounded = tl.where(values != values, tl.full(values.shape, 0x7FC0, tl.int16), bits)
    elif DTYPE == "F16":
        bits = values.to(tl.float16).to(tl.int16, bitcast=True)
        rounded = tl.where(values != values, tl.full(values.shape, 0x7E00, tl.int16), bits)
    else:
        bits = values.to(tl.int32, bitcast=True)
        rounded = tl.where(values != values, tl.full(values.shape, 0x7FC00000, tl.int32), bits)
    return rounded


@triton.jit
def add_rounded(bits, delta, BASE: tl.constexpr, RESULT: tl.constexpr):
    """Base bits plus a float32 delta, rounded once; where the delta is zero, the base alone (step 5)."""
    base = binary32(bits, BASE)
    if BASE == "BF16" and RESULT == "BF16" and not INTERPRETED:
        # The same in pairs: 11 instructions for two elements. 0xB8 selects c where b is set, else a.
        result = tl.inline_asm_elementwise(
            """{
            .reg .f32 low, high; .reg .b32 bits, nan; .reg .pred zero;
            shl.b32 bits, $1, 16; mov.b32 low, bits; and.b32 bits, $1, 0xFFFF0000; mov.b32 high, bits;
            add.rn.f32 low, low, $2; add.rn.f32 high, high, $3;
            cvt.rn.bf16x2.f32 bits, high, low;
            set.nan.u32.bf16x2 nan, bits, bits;
            lop3.b32 bits, bits, nan, 0x7FC07FC0, 0xB8;
            setp.eq.f32 zero, $2, 0f00000000; @zero prmt.b32 bits, bits, $1, 0x3254;
            setp.eq.f32 zero, $3, 0f00000000; @zero prmt.b32 bits, bits, $1, 0x7610;
            mov.b32 $0, bits;
            }""",
            "=r,r,f,f",
            [bits, delta],
            dtype=tl.int16,
            is_pure=True,
            pack=2,
        )
    elif BASE == RESULT:
        result = tl.where(delta == 0, bits, round_bits(base + delta, RESULT))
    else:
        result = round_bits(tl.where(delta == 0, base, base + delta), RESULT)
    return result

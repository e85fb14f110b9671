// Base elements plus deltas (spec section 7.2.3, step 5), and which rows a lane has.

#if BASE == 3
typedef u32 BaseBits;
typedef uint4 BaseFour;
#else
typedef u16 BaseBits;
typedef uint2 BaseFour;
#endif
#if RESULT == 3
typedef u32 ResultBits;
typedef uint4 ResultFour;
#else
typedef u16 ResultBits;
typedef uint2 ResultFour;
#endif

__device__ __forceinline__ float number(u32 bits, int type)
{
    float result = __uint_as_float(bits);
    if (type == 1) result = __uint_as_float(bits << 16);
    if (type == 2) asm("{.reg .b16 a; cvt.u16.u32 a, %1; cvt.f32.f16 %0, a;}" : "=f"(result) : "r"(bits));
    return result;
}

__device__ __forceinline__ u32 round_to(float value, int type)
{
    u32 bits = __float_as_uint(value);
    bool is_nan = value != value;
    if (type == 1) {
        asm("{.reg .b16 a; cvt.rn.bf16.f32 a, %1; cvt.u32.u16 %0, a;}" : "=r"(bits) : "f"(value));
        return is_nan ? 0x7FC0 : bits;
    }
    if (type == 2) {
        asm("{.reg .b16 a; cvt.rn.f16.f32 a, %1; cvt.u32.u16 %0, a;}" : "=r"(bits) : "f"(value));
        return is_nan ? 0x7E00 : bits;
    }
    return is_nan ? 0x7FC00000u : bits;
}

// Step 5: where the delta is zero, the base alone.
__device__ __forceinline__ u32 add_one(u32 bits, float delta)
{
#if BASE == 0
    return __float_as_uint(delta);
#else
    float base = number(bits, BASE);
    if (BASE == RESULT) return delta == 0 ? bits : round_to(base + delta, RESULT);
    return round_to(delta == 0 ? base : base + delta, RESULT);
#endif
}

#if BASE == 1 && RESULT == 1 && __CUDA_ARCH__ >= 900
__device__ __forceinline__ u32 add_two(u32 bits, float low, float high)
{
    u32 result; // 0xB8 selects the third operand where the second is set, else the first
    asm("{.reg .f32 low, high; .reg .b32 bits, nan; .reg .pred zero;\n"
        "shl.b32 bits, %1, 16; mov.b32 low, bits; and.b32 bits, %1, 0xFFFF0000; mov.b32 high, bits;\n"
        "add.rn.f32 low, low, %2; add.rn.f32 high, high, %3;\n"
        "cvt.rn.bf16x2.f32 bits, high, low;\n"
        "set.nan.u32.bf16x2 nan, bits, bits;\n"
        "lop3.b32 bits, bits, nan, 0x7FC07FC0, 0xB8;\n"
        "setp.eq.f32 zero, %2, 0f00000000; @zero prmt.b32 bits, bits, %1, 0x3254;\n"
        "setp.eq.f32 zero, %3, 0f00000000; @zero prmt.b32 bits, bits, %1, 0x7610;\n"
        "mov.b32 %0, bits;}"
        : "=r"(result) : "r"(bits), "f"(low), "f"(high));
    return result;
}
__device__ __forceinline__ uint2 add_four(uint2 base, const float* delta)
{
    return make_uint2(add_two(base.x, delta[0], delta[1]), add_two(base.y, delta[2], delta[3]));
}
__device__ __forceinline__ u32 zero_or_nan(u32 bits) // not 0 if one of the pair is
{
    u32 result;
    asm("set.equ.u32.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(bits), "r"(0));
    return result;
}
__device__ __forceinline__ u32 add_plain(u32 bits, float low, float high)
{
    u32 result;
    asm("{.reg .f32 low, high; .reg .b32 bits;\n"
        "shl.b32 bits, %1, 16; mov.b32 low, bits; and.b32 bits, %1, 0xFFFF0000; mov.b32 high, bits;\n"
        "add.rn.f32 low, low, %2; add.rn.f32 high, high, %3; cvt.rn.bf16x2.f32 %0, high, low;}"
        : "=r"(result) : "r"(bits), "f"(low), "f"(high));
    return result;
}
#define HAS_PLAIN 1
// For finite deltas: only where the base is zero or NaN does anything but the sum, rounded, come out.
__device__ __forceinline__ void add_eight(uint2 (&base)[2], const float (&delta)[8], bool finite)
{
    u32 special = zero_or_nan(base[0].x) | zero_or_nan(base[0].y) | zero_or_nan(base[1].x) | zero_or_nan(base[1].y);
    if (finite && !__any_sync(ALL, special))
        for (int half = 0; half < 2; half++)
            base[half] = make_uint2(add_plain(base[half].x, delta[4 * half], delta[4 * half + 1]),
                                    add_plain(base[half].y, delta[4 * half + 2], delta[4 * half + 3]));
    else
        for (int half = 0; half < 2; half++) base[half] = add_four(base[half], delta + 4 * half);
}
#else
__device__ __forceinline__ u32 element(uint2 four, int n) { return (n & 2 ? four.y : four.x) >> (n & 1) * 16 & 0xFFFF; }
__device__ __forceinline__ u32 element(uint4 four, int n)
{
    return n == 0 ? four.x : n == 1 ? four.y : n == 2 ? four.z : four.w;
}
__device__ __forceinline__ void join(u32 (&bits)[4], uint2& four)
{
    four = make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
}
__device__ __forceinline__ void join(u32 (&bits)[4], uint4& four) { four = make_uint4(bits[0], bits[1], bits[2], bits[3]); }
__device__ __forceinline__ ResultFour add_four(BaseFour base, const float* delta)
{
    u32 bits[4];
    for (int n = 0; n < 4; n++) bits[n] = add_one(element(base, n), delta[n]);
    ResultFour result;
    join(bits, result);
    return result;
}
#endif

// Rows of the view that a lane's results belong to; a row beyond the view, or beyond the part, is not inside.
__device__ __forceinline__ void find_rows(const Layer& layer, i64 down, int g, u32 (&rows)[2], bool (&inside)[2])
{
    for (int n = 0; n < 2; n++) {
        i64 row = down * 16 + g + 8 * n;
        inside[n] = row < layer.rows;
        rows[n] = inside[n] ? (layer.row_order ? layer.row_order[row] : (u32)row) : 0;
        inside[n] = inside[n] && rows[n] >= layer.row_first && rows[n] < layer.row_stop;
    }
}

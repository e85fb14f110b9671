// One patch: symbols -> levels -> inverse transform -> scale, and the low-rank part, in the registers of a warp.

struct Basis {
    u32 first[4], second[4];
    float ones[8];
};

__device__ __forceinline__ void load_basis(Basis& basis, const u32* table, int lane)
{
    *(uint4*)basis.first = ((const uint4*)table)[lane * 4];
    *(uint4*)basis.second = ((const uint4*)table)[lane * 4 + 1];
    if (AFFINE) {
        *(uint4*)basis.ones = ((const uint4*)table)[lane * 4 + 2];
        *(uint4*)(basis.ones + 4) = ((const uint4*)table)[lane * 4 + 3];
    }
}

__device__ __forceinline__ u32 choose(u32 first, u32 second, u32 mask) // bits of the first where the mask is set
{
    u32 result;
    asm("lop3.b32 %0, %1, %2, %3, 0xE2;" : "=r"(result) : "r"(first), "r"(mask), "r"(second));
    return result;
}

// Four bytes, levels plus 128 -> two pairs of float16: 0x6400 | b is 1024 + b, and 0x6480 is 1152.
__device__ __forceinline__ void to_halves(u32 bytes, u32& low, u32& high)
{
    low = permute(bytes, 0x64646464u, 0x4140);
    high = permute(bytes, 0x64646464u, 0x4342);
    asm("sub.f16x2 %0, %0, %1;" : "+r"(low) : "r"(0x64806480u));
    asm("sub.f16x2 %0, %0, %1;" : "+r"(high) : "r"(0x64806480u));
}

__device__ __forceinline__ u32 gather_nibbles(u32 bytes) // the low nibbles of four bytes, side by side
{
    return (bytes & 0xF) | (bytes >> 4 & 0xF0) | (bytes >> 8 & 0xF00) | (bytes >> 12 & 0xF000);
}

__device__ __forceinline__ const u8* words_of(const Layer& layer, uint2 place)
{
    return layer.buffer + ((u64)(place.x >> CODE_BITS) << 6);
}

// Two times four levels, bytes as the code says, as pairs of float16.
__device__ __forceinline__ void to_levels(uint2 place, u32 even, u32 odd, u32 (&halves)[4])
{
    if (place.x & CODE_HIGH) {
        halves[0] = permute(even, 0, 0x1404);
        halves[1] = permute(even, 0, 0x3424);
        halves[2] = permute(odd, 0, 0x1404);
        halves[3] = permute(odd, 0, 0x3424);
    } else {
        to_halves(even, halves[0], halves[1]);
        to_halves(odd, halves[2], halves[3]);
    }
}

// A patch's place, and four rows of symbols of two bits.
struct Symbols {
    uint2 place;
    uint4 rows;
};

// The levels of a lane: halves[0, 1] of rows 4t, 4t+1 and 4t+2, 4t+3 in column 2g, halves[2, 3] in column 2g+1.
__device__ __forceinline__ void unpack(
    const Layer& layer, const Symbols& symbols, u32 low, u32 high, int g, int t, u32 (&halves)[4])
{
    u32 even, odd, width = symbols.place.x & CODE_WIDTH;
    if (width == 1) {
        const uint4& rows = symbols.rows;
        int shift = 32 - 4 * g;
        u32 a = __funnelshift_l(rows.x, rows.x, shift), b = __funnelshift_l(rows.y, rows.y, shift + 4);
        u32 c = __funnelshift_l(rows.z, rows.z, shift + 8), d = __funnelshift_l(rows.w, rows.w, shift + 12);
        u32 digits = choose(choose(a, b, 0xF), choose(c, d, 0xF00), 0xFF);
        even = permute(low, 0, digits & 0x3333);
        odd = permute(low, 0, digits >> 2 & 0x3333);
    } else if (width == 2) {
        const u8* words = words_of(layer, symbols.place) + t * 32 + g;
        u32 fours = __ldg(words) | __ldg(words + 8) << 8 | __ldg(words + 16) << 16 | __ldg(words + 24) << 24;
        u32 evens = fours & 0x07070707, odds = fours >> 4 & 0x07070707;
        even = permute(low, high, gather_nibbles(evens));
        odd = permute(low, high, gather_nibbles(odds));
    } else {
        const u16* place = (const u16*)words_of(layer, symbols.place) + t * 32 + g;
        u32 upper = __ldg(place) | __ldg(place + 8) << 16, lower = __ldg(place + 16) | __ldg(place + 24) << 16;
        even = permute(upper, lower, 0x6420);
        odd = permute(upper, lower, 0x7531);
    }
    to_levels(symbols.place, even, odd, halves);
}

// integers[0..3]: row g, columns 4t to 4t+3; integers[4..7]: row g + 8.
__device__ __forceinline__ void inverse(const u32 (&halves)[4], const Basis& basis, bool split, float (&integers)[8])
{
    float left[4] = {}, right[4] = {}, operand_sums[2][4] = {};
    u32 operand[4];
    multiply(left, basis.first, halves[0], halves[1]);
    multiply(right, basis.first, halves[2], halves[3]);
    if (AFFINE && !split)
        for (int n = 0; n < 4; n++) {
            operand_sums[0][n] = CENTRE * basis.ones[(n & 1) + (n & 2) * 2];
            operand_sums[1][n] = CENTRE * basis.ones[2 + (n & 1) + (n & 2) * 2];
        }
    if (split) {
        // The high part is a multiple of 2^5, the low part at most 2^4 with 2^-6 as its unit: 11 bits each. The sum of
        // the two products is rounded once, by the addition, which is the conversion that the specification asks for.
        const float part = 1.5f * 8388608.0f * 32.0f;
        float high_left[4], high_right[4], high_sums[2][4] = {};
        for (int n = 0; n < 4; n++) {
            high_left[n] = (left[n] + part) - part;
            high_right[n] = (right[n] + part) - part;
            left[n] -= high_left[n];
            right[n] -= high_right[n];
        }
        pairs(high_left, high_right, operand);
        multiply(high_sums[0], operand, basis.second[0], basis.second[1]);
        multiply(high_sums[1], operand, basis.second[2], basis.second[3]);
        pairs(left, right, operand);
        multiply(operand_sums[0], operand, basis.second[0], basis.second[1]);
        multiply(operand_sums[1], operand, basis.second[2], basis.second[3]);
        for (int n = 0; n < 4; n++) {
            operand_sums[0][n] += high_sums[0][n];
            operand_sums[1][n] += high_sums[1][n];
        }
    } else {
        pairs(left, right, operand);
        multiply(operand_sums[0], operand, basis.second[0], basis.second[1]);
        multiply(operand_sums[1], operand, basis.second[2], basis.second[3]);
    }
    for (int n = 0; n < 2; n++) {
        integers[n] = operand_sums[0][n];
        integers[n + 2] = operand_sums[1][n];
        integers[n + 4] = operand_sums[0][n + 2];
        integers[n + 6] = operand_sums[1][n + 2];
    }
}

struct alignas(16) Scaled { // what a class's integers are made of and multiplied with
    u32 low_levels, high_levels;
    float factor, scale;
};

struct Classes { // a table of Scaled in shared memory, its address kept in a register
    u32 address;

    __device__ __forceinline__ Classes(const Layer& layer, Scaled* table)
    {
        address = (u32)__cvta_generic_to_shared(table);
        if (AFFINE) return;
        for (int number = threadIdx.x; number < layer.classes; number += THREADS) {
            uint4 entry = __ldg((const uint4*)(layer.class_table + number));
            table[number] = {entry.x, entry.y, __uint_as_float(entry.z), __ldg(layer.scales + number)};
        }
        __syncthreads();
        asm volatile("" : "+r"(address)); // else it is computed again for each patch
    }

    __device__ __forceinline__ Scaled operator[](u32 number) const
    {
        Scaled entry;
        asm("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
            : "=r"(entry.low_levels), "=r"(entry.high_levels), "=f"(entry.factor), "=f"(entry.scale)
            : "r"(address + number * (u32)sizeof(Scaled)));
        return entry;
    }
};

// The delta of a patch but for the low-rank part; laid out as `integers` of inverse. The source is what `unpack` takes.
template <typename Source>
__device__ __forceinline__ void decode_patch(const Layer& layer, const Basis& basis, const Classes& classes,
                                             const Source& symbols, float gain, int g, int t, float (&delta)[8])
{
    uint2 place = symbols.place;
    if ((place.x & CODE_WIDTH) == 0) {
        for (int n = 0; n < 8; n++) delta[n] = 0.0f;
        return;
    }
    u32 halves[4];
    if (AFFINE) {
        bool split = layer.split;
        unpack(layer, symbols, split ? 0x83828180u : 0x81807F7Eu, 0x87868584u, g, t, halves);
        inverse(halves, basis, split, delta);
        float minimum, step;
        asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
            : "=f"(minimum), "=f"(step) : "r"(place.y));
        for (int n = 0; n < 8; n++) delta[n] = (delta[n] * step + basis.ones[n] * minimum) * gain;
    } else {
        Scaled entry = classes[place.y];
        unpack(layer, symbols, entry.low_levels, entry.high_levels, g, t, halves);
        inverse(halves, basis, place.x & CODE_SPLIT, delta);
        for (int n = 0; n < 8; n++) delta[n] = (delta[n] * entry.factor) * entry.scale;
    }
}

#if LIMBS
__device__ __forceinline__ void multiply_bytes(int (&sum)[4], u32 a0, u32 a1, u32 b)
{
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3]) : "r"(a0), "r"(a1), "r"(b));
}

// Factors of the two rows that a lane's results lie in; with CHUNKS of 16 terms they stay in registers.
struct Left {
    u32 rows[2];
    u32 limbs[LIMBS][CHUNKS ? CHUNKS : 1][2];
};

__device__ __forceinline__ u32 left_terms(const Layer& layer, u32 row, int limb, u32 first)
{
    return __ldg((const u32*)(layer.left_limbs + ((u64)limb * layer.rows + row) * layer.padded_rank + first));
}

__device__ __forceinline__ void load_left(const Layer& layer, const u32 (&rows)[2], int t, Left& left)
{
    left.rows[0] = rows[0], left.rows[1] = rows[1];
    for (int limb = 0; limb < LIMBS; limb++)
        for (int chunk = 0; chunk < CHUNKS; chunk++)
            for (int n = 0; n < 2; n++) left.limbs[limb][chunk][n] = left_terms(layer, rows[n], limb, chunk * 16 + 4 * t);
}

// The factors that this lane brings: those of the patch's columns 4(g/2) + g%2, and two further on.
struct Right {
    const u32* terms[2];
    u32 chunks[CHUNKS ? CHUNKS : 1][2];
};

__device__ __forceinline__ void load_right(const Layer& layer, const u32 (&cols)[2], int t, Right& right)
{
    for (int n = 0; n < 2; n++) {
        right.terms[n] = (const u32*)(layer.right_rows + (u64)cols[n] * layer.padded_rank) + t;
        for (int chunk = 0; chunk < CHUNKS; chunk++) right.chunks[chunk][n] = __ldg(right.terms[n] + chunk * 4);
    }
}

// Adds f(y) * scale of step 4.
__device__ __forceinline__ void add_low_rank(
    const Layer& layer, const Left& left, const Right& right, float scale, int t, float (&delta)[8])
{
    int limbs[LIMBS][2][4] = {};
#pragma unroll
    for (int limb = 0; limb < LIMBS; limb++) {
        int(&sums)[2][4] = limbs[limb];
#if CHUNKS
        for (int chunk = 0; chunk < CHUNKS; chunk++)
            for (int n = 0; n < 2; n++)
                multiply_bytes(sums[n], left.limbs[limb][chunk][0], left.limbs[limb][chunk][1], right.chunks[chunk][n]);
#else
        for (u32 first = 0; first < (u32)layer.padded_rank; first += 16) {
            u32 upper = left_terms(layer, left.rows[0], limb, first + 4 * t);
            u32 lower = left_terms(layer, left.rows[1], limb, first + 4 * t);
            for (int n = 0; n < 2; n++) multiply_bytes(sums[n], upper, lower, __ldg(right.terms[n] + first / 4));
        }
#endif
    }
    for (int n = 0; n < 8; n++) {
        u32 sum = 0; // a polynomial in 256; what overflows on the way comes back
        for (int limb = LIMBS - 1; limb >= 0; limb--) sum = sum * 256 + (u32)limbs[limb][n >> 1 & 1][(n & 1) + (n >> 2) * 2];
        delta[n] = delta[n] + __int2float_rn((int)sum) * scale;
    }
}
#endif

// Encoding with patches of 16 x 16 in one pass: delta -> forward DCT -> symbols, packed, and the sums of encoder.py.
//
// Macros: BASE, TARGET: 1 BF16, 2 F16; or 0 and 3 where the float32 residual was made before. AFFINE: the quantiser.
// VECTOR: rows may be read 16 bytes at a time.
//
// Deltas in steps (affine: two patches, brought to a largest magnitude of 2^10 to 2^11) are rounded to float16, which
// differences of neighbouring 16-bit floats mostly are already; so is the first of the two products. Errors are about
// 2^-12 of the patch, far below any quantiser's noise. The matrix is held in two parts, and so are deltas and product
// where a residual in float32 is given.
// Lane 4g + t brings rows 2t, 2t+1, 2t+8, 2t+9 of columns g and g+8, and has the results of rows g and g+8 and columns
// 4t to 4t+3.

#define STRIP 4 // patches side by side
#define BLOCKS 3
#define BINS 36
#define KEPT 16 // magnitudes that a block counts by itself
#define LARGEST 127

struct Encode { // see fused_encoder.py, which fills it
    const void *base, *target;
    i64 rows, cols, down, across;
    const u32* table;
    void* symbols; // 128 bytes a patch, four bits each, 15 for what stands in `escapes`; affine: 64 bytes, two bits each
    int* activity;
    int* counts;    // [BINS][128]
    double* totals; // levels: sum of all |v|, and of those of the magnitudes 1 to 127, energy; affine: see below
    u64* escapes;   // place << 8 | symbol
    u32* escaped;
    i64 capacity;
    const u8* alphabets;
    u16 *minima, *steps;
    float up, factor, bias, scale; // levels: deltas times `up` are in steps
};

struct Tables {
    u32 first[4], second[4];
#if AFFINE
    u32 inverse_first[4], inverse_second[4];
    float row_sums[2], col_sums[4];
#endif
};

#if TARGET == 3
struct Stage {
    float rows[16][64]; // pieces of 16 bytes swizzled by row, as below
};
#else
struct Stage {
    uint4 base[16][8], target[16][8];
};
#endif

__device__ __forceinline__ void widen(u32 bits, int type, float& low, float& high)
{
    if (type == 1) {
        low = __uint_as_float(bits << 16);
        high = __uint_as_float(bits & 0xFFFF0000u);
    } else {
        asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
            : "=f"(low), "=f"(high) : "r"(bits));
    }
}

template <bool turned> __device__ __forceinline__ void load_tiles(u32 (&tiles)[4], const void* place)
{
    u32 address = (u32)__cvta_generic_to_shared(place);
    if (turned)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(address) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(address) : "memory");
}

// The delta of patch n of a strip: pairs of rows 2t and 2t+1 in column g, lower, right and lower right of it; or, not
// turned, pairs of columns 2t and 2t+1 in row g, and so on.
template <bool turned> __device__ __forceinline__ void load_delta(const Stage& stage, int n, int lane, float (&delta)[8])
{
#if TARGET == 3
    int g = lane / 4, t = lane % 4;
    for (int k = 0; k < 8; k++) {
        int along = 2 * t + k % 2;
        int row = (turned ? along : g) + (k / 2 % 2) * 8, col = (turned ? g : along) + k / 4 * 8 + 16 * n;
        delta[k] = stage.rows[row][(col / 4 ^ (row & 7)) * 4 + col % 4];
    }
#else
    int row = lane % 16, piece = (2 * n + lane / 16) ^ (row & 7);
    u32 base[4], target[4];
    load_tiles<turned>(base, &stage.base[row][piece]);
    load_tiles<turned>(target, &stage.target[row][piece]);
    for (int k = 0; k < 4; k++) {
        float low, high, base_low, base_high;
        widen(target[k], TARGET, low, high);
        widen(base[k], BASE, base_low, base_high);
        delta[2 * k] = low - base_low;
        delta[2 * k + 1] = high - base_high;
    }
#endif
}

__device__ __forceinline__ void split(const float (&values)[8], u32 (&high)[4], u32 (&low)[4])
{
    for (int k = 0; k < 4; k++) {
        float first, second;
        high[k] = pair(values[2 * k], values[2 * k + 1]);
        widen(high[k], 2, first, second);
        low[k] = pair(values[2 * k] - first, values[2 * k + 1] - second);
    }
}

// Coefficients of row g, columns 4t to 4t+3, and of row g + 8; what they are to be multiplied with comes back.
__device__ __forceinline__ float transform(
    const Encode& encode, const Tables& tables, const uint4 (*low)[2], float (&delta)[2][8], float (&result)[2][8])
{
#if AFFINE
    float largest = 0;
    for (int k = 0; k < 16; k++) largest = fmaxf(largest, fabsf(delta[k / 8][k % 8]));
    u32 exponent = max(__reduce_max_sync(ALL, __float_as_uint(largest)) >> 23, 11u);
    float up = __uint_as_float((264 - exponent) << 23), factor = __uint_as_float((exponent - 10) << 23) * encode.factor;
#else
    float up = encode.up, factor = encode.factor;
#endif
    uint4 low_parts[2] = {low[threadIdx.x % 32][0], low[threadIdx.x % 32][1]};
    u32 first_low[4] = {low_parts[0].x, low_parts[0].y, low_parts[0].z, low_parts[0].w};
    u32 second_low[4] = {low_parts[1].x, low_parts[1].y, low_parts[1].z, low_parts[1].w};
    for (int one = 0; one < 2; one++) {
        u32 operand[4];
        float sums[2][2][4] = {};
        for (int k = 0; k < 8; k++) delta[one][k] *= up;
#if TARGET == 3
        u32 rest[4];
        split(delta[one], operand, rest);
        for (int n = 0; n < 2; n++) multiply(sums[0][n], tables.first, rest[2 * n], rest[2 * n + 1]);
#else
        for (int k = 0; k < 4; k++) operand[k] = pair(delta[one][2 * k], delta[one][2 * k + 1]);
#endif
        for (int n = 0; n < 2; n++) multiply(sums[0][n], first_low, operand[2 * n], operand[2 * n + 1]);
        for (int n = 0; n < 2; n++) multiply(sums[0][n], tables.first, operand[2 * n], operand[2 * n + 1]);
#if TARGET == 3
        float flat[8];
        for (int k = 0; k < 8; k++) flat[k] = sums[0][k / 4][k % 4];
        split(flat, operand, rest);
        for (int n = 0; n < 2; n++) multiply(sums[1][n], rest, tables.second[2 * n], tables.second[2 * n + 1]);
#else
        pairs(sums[0][0], sums[0][1], operand);
#endif
        for (int n = 0; n < 2; n++) multiply(sums[1][n], operand, second_low[2 * n], second_low[2 * n + 1]);
        for (int n = 0; n < 2; n++) multiply(sums[1][n], operand, tables.second[2 * n], tables.second[2 * n + 1]);
        for (int n = 0; n < 8; n++) result[one][n] = sums[1][n >> 1 & 1][(n & 1) + (n >> 2) * 2];
    }
    return factor;
}

struct Sums { // of a lane
#if AFFINE
    float magnitude, energy, aligned;
#else
    float all, one, two, three, energy;
#endif
};

struct Block {
    uint4 low[32][2]; // of a lane: what float16 leaves of the matrices
    u32 taken;        // strips
    double warps[WARPS][5];
#if !AFFINE
    u8 bins[3 * 256 + 4]; // of small activities
    int counts[BINS][KEPT];
    float sums[LARGEST + 1];
#endif
};

#if !AFFINE
__device__ __forceinline__ int bin_of(int activity)
{
    if (!activity) return 0;
    int octave = 31 - __clz(activity);
    float power = __uint_as_float((127 + octave) << 23), value = (float)activity;
    return 2 * octave + 1 + (value >= power * 1.1892071f) + (value >= power * 1.6817928f);
}

__device__ __forceinline__ void quantise(
    const Encode& encode, Block& block, const float (&values)[8], float factor, i64 patch, u32* out,
    int* activity_out, int lane, Sums& sums)
{
    int g = lane / 4, t = lane % 4;
    u32 fours[8], packed = 0, signs = 0, tally = 0; // four times each magnitude
    float all = 0, one = 0, two = 0, energy = 0;
#pragma unroll
    for (int k = 7; k >= 0; k--) {
        float absolute = fabsf(values[k]);
        float steps = fminf(fmaf(absolute, factor, encode.bias), (float)LARGEST);
        // The last bit is a quarter. In assembly, because the compiler would mask each use by itself.
        asm("and.b32 %0, %1, 0x1FC;" : "=r"(fours[k]) : "r"(__float_as_uint(__fadd_rz(steps, 2097152.0f))));
        packed += k ? fours[k] << (4 * k - 1) : fours[k] >> 1;
        signs = __funnelshift_l(__float_as_uint(values[k]), signs, 4);
        u32 unit;
        asm("shl.b32 %0, %1, %2;" : "=r"(unit) : "r"(1), "r"(fours[k])); // nothing from 32 on
        tally += unit;
        all += absolute;
        energy = fmaf(absolute, absolute, energy);
        if (fours[k] == 4) one += absolute;
        if (fours[k] == 8) two += absolute;
    }
    // Four bits each: 2m, less 1 where the value is above zero.
    u32 symbols = packed - (((packed | packed << 1 | packed << 2) & 0x88888888u & ~signs) >> 3);
    sums.all = fmaf(all, factor, sums.all);
    sums.one = fmaf(one, factor, sums.one);
    sums.two = fmaf(two, factor, sums.two);
    sums.energy = fmaf(energy, factor * factor, sums.energy);
    u32 counted = __reduce_add_sync(ALL, (tally & 15) | (tally >> 4 & 15) << 10 | (tally >> 8 & 15) << 20);
    int counts[3] = {(int)(counted & 1023), (int)(counted >> 10 & 1023), (int)(counted >> 20)}, threes = 0;
    int activity = counts[1] + 2 * counts[2], rest = 256 - counts[0] - counts[1] - counts[2];
    if (rest) { // a magnitude of 3 or more
        threes = __reduce_add_sync(ALL, tally >> 12 & 15);
        rest -= threes;
        activity += 3 * threes;
        float three = 0;
        for (int k = 0; k < 8; k++)
            if (fours[k] == 12) three += fabsf(values[k]);
        sums.three = fmaf(three, factor, sums.three);
    }
    int bin = block.bins[activity];
    if (rest) { // larger ones, which are few
        int more = 0, largest = 0;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            if (fours[k] > 12) more += fours[k] / 4;
            largest = max(largest, (int)fours[k]);
        }
        activity += __reduce_add_sync(ALL, more);
        bin = bin_of(activity);
        if (largest >= 32) symbols = 0;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            int magnitude = fours[k] / 4;
            u32 symbol = max(2 * magnitude - (values[k] > 0), 0);
            if (largest >= 32) symbols |= min(symbol, 15u) << 4 * k;
            if (magnitude < 4) continue;
            atomicAdd(&block.sums[magnitude], fabsf(values[k]) * factor);
            atomicAdd(magnitude < KEPT ? &block.counts[bin][magnitude] : &encode.counts[bin * (LARGEST + 1) + magnitude], 1);
            if (magnitude < 8) continue;
            u32 place = atomicAdd(encode.escaped, 1u);
            u64 element = patch * 256 + (g + k / 4 * 8) * 16 + 4 * t + k % 4;
            if (place < encode.capacity) encode.escapes[place] = element << 8 | symbol;
            if (!(fabsf(values[k]) < 3e38f)) atomicOr(encode.escaped, 1u << 30); // beyond float16: all this is of no use
        }
    }
    int mine = lane == 3 ? threes : counted >> 10 * lane & 1023;
    if (lane < 4) atomicAdd(&block.counts[bin][lane], mine);
    if (lane == 0) *activity_out = activity;
    // Lanes with an even t take 8 symbols of row g, the others of row g + 8.
    u32 other = __shfl_xor_sync(ALL, symbols, 1);
    out[0] = permute(symbols, other, t & 1 ? 0x3276 : 0x5410);
}
#else
__device__ __forceinline__ int sortable(float value)
{
    int bits = __float_as_int(value);
    return bits ^ (bits >> 31 & 0x7FFFFFFF);
}
__device__ __forceinline__ float from_sortable(int bits) { return __int_as_float(bits ^ (bits >> 31 & 0x7FFFFFFF)); }

__device__ __forceinline__ u16 half_bits(float value)
{
    u16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
    return result;
}

__device__ __forceinline__ float from_half(u16 bits)
{
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
}

__device__ __forceinline__ float reciprocal(float value)
{
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

__device__ __forceinline__ u32 turn(u32 tile)
{
    u32 result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(tile));
    return result;
}

// Symbols between the extremes of a patch, and sums over what they stand for in the view: `rows` and `cols` of it.
__device__ __forceinline__ void quantise(const Encode& encode, const Tables& tables, const float (&values)[8],
    float factor, const Stage& stage, int n, float most, i64 patch, u8* out, int rows, int cols, int lane, Sums& sums)
{
    int g = lane / 4, t = lane % 4;
    float low = values[0], high = values[0];
    for (int k = 1; k < 8; k++) low = fminf(low, values[k]), high = fmaxf(high, values[k]);
    low = from_sortable(__reduce_min_sync(ALL, sortable(low))) * factor;
    high = from_sortable(__reduce_max_sync(ALL, sortable(high))) * factor;
    u16 low_bits = half_bits(low), step_bits = half_bits((high - low) * reciprocal(most));
    float minimum = from_half(low_bits), step = from_half(step_bits), inverse = step > 0 ? reciprocal(step) : 0.0f;
    float levels[8], slope = factor * inverse, shift = -minimum * inverse;
    u32 packed[2] = {0, 0};
    for (int k = 0; k < 8; k++) {
        float rounded = fminf(fmaxf(fmaf(values[k], slope, shift), 0.0f), most) + 12582912.0f;
        packed[k / 4] |= (__float_as_uint(rounded) & 3) << 2 * (k % 4);
        levels[k] = rounded - 12582912.0f;
    }
    out[0] = (u8)packed[0];
    out[32] = (u8)packed[1];
    if (lane == 0) encode.minima[patch] = low_bits, encode.steps[patch] = step_bits;

    float left[4] = {}, right[4] = {}, products[2][4] = {}, delta[8];
    u32 operand[4];
    multiply(left, tables.inverse_first, turn(pair(levels[0], levels[1])), turn(pair(levels[4], levels[5])));
    multiply(right, tables.inverse_first, turn(pair(levels[2], levels[3])), turn(pair(levels[6], levels[7])));
    pairs(left, right, operand);
    multiply(products[0], operand, tables.inverse_second[0], tables.inverse_second[1]);
    multiply(products[1], operand, tables.inverse_second[2], tables.inverse_second[3]);
    load_delta<false>(stage, n, lane, delta);
    float wide = step * 64.0f, offsets[2] = {tables.row_sums[0] * minimum, tables.row_sums[1] * minimum}, aligned = 0;
    float decoded[8]; // rows g and g + 8, columns 2t, 2t + 1, 2t + 8, 2t + 9
    for (int k = 0; k < 8; k++)
        decoded[k] = fmaf(products[k / 4][k % 4], wide, offsets[k / 2 % 2] * tables.col_sums[k % 2 + k / 4 * 2]);
    if (min(rows, cols) < 16)
        for (int k = 0; k < 8; k++)
            if (g + k / 2 % 2 * 8 >= rows || 2 * t + k % 2 + k / 4 * 8 >= cols) decoded[k] = 0;
    for (int k = 0; k < 8; k++) {
        sums.magnitude += fabsf(decoded[k]);
        sums.energy = fmaf(decoded[k], decoded[k], sums.energy);
        aligned = fmaf(decoded[k], delta[k], aligned);
    }
    sums.aligned = fmaf(aligned, encode.scale, sums.aligned);
}
#endif

__device__ __forceinline__ float warp_sum(float value)
{
    for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(ALL, value, distance);
    return value;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) encode_strips(const __grid_constant__ Encode encode)
{
    extern __shared__ uint4 memory[]; // two stages a warp
    __shared__ Block block;
    int lane = threadIdx.x % 32;
    Tables tables;
    for (int n = 0; n < (int)sizeof(Tables) / 4; n++) ((u32*)&tables)[n] = encode.table[n * 32 + lane];
    if (threadIdx.x == 0) block.taken = 0;
    ((u32*)block.low)[threadIdx.x] = encode.table[24 * 32 + threadIdx.x];
#if !AFFINE
    for (int n = threadIdx.x; n < BINS * KEPT; n += THREADS) (&block.counts[0][0])[n] = 0;
    for (int n = threadIdx.x; n <= LARGEST; n += THREADS) block.sums[n] = 0;
    for (int n = threadIdx.x; n <= 3 * 256; n += THREADS) block.bins[n] = (u8)bin_of(n);
#endif
    __syncthreads();
    Stage* stage = (Stage*)memory + threadIdx.x / 32 * 2;
    u32 strips = (u32)((encode.across + STRIP - 1) / STRIP), count = strips * (u32)encode.down;
    u32 next = 0, next_down = 0, next_strip = 0;
    auto take = [&]() { // warps of a block take turns as they come
        u32 turn = 0;
        if (lane == 0) turn = atomicAdd(&block.taken, 1u);
        next = __shfl_sync(ALL, turn, 0) * gridDim.x + blockIdx.x;
    };

    auto fetch = [&](Stage& into) { // strip `next`, zeros beyond the view
        next_down = next / strips, next_strip = next - next_down * strips;
        i64 row = next_down * 16ll, col = next_strip * 64ll, at = row * encode.cols + col;
#if TARGET == 3
        for (int n = lane; n < 1024; n += 32) {
            int down = n / 64, right = n % 64;
            bool inside = row + down < encode.rows && col + right < encode.cols;
            float value = inside ? ((const float*)encode.target)[at + down * encode.cols + right] : 0.0f;
            into.rows[down][(right / 4 ^ (down & 7)) * 4 + right % 4] = value;
        }
#else
        if (VECTOR && row + 16 <= encode.rows && col + 64 <= encode.cols) {
            at += lane / 8 * encode.cols + lane % 8 * 8;
            for (int n = 0; n < 4; n++, at += 4 * encode.cols) {
                int down = 4 * n + lane / 8, piece = lane % 8 ^ (down & 7);
                copy_16(&into.base[down][piece], (const u16*)encode.base + at);
                copy_16(&into.target[down][piece], (const u16*)encode.target + at);
            }
            return;
        }
        for (int n = lane; n < 1024; n += 32) {
            int down = n / 64, right = n % 64, piece = right / 8 ^ (down & 7);
            bool inside = row + down < encode.rows && col + right < encode.cols;
            i64 element = at + down * encode.cols + right;
            ((u16*)&into.base[down][piece])[right % 8] = inside ? ((const u16*)encode.base)[element] : 0;
            ((u16*)&into.target[down][piece])[right % 8] = inside ? ((const u16*)encode.target)[element] : 0;
        }
#endif
    };

    Sums sums = {};
    take();
    if (next < count) fetch(stage[0]);
    asm volatile("cp.async.commit_group;");
    for (int turn = 0; next < count; turn ^= 1) {
        u32 down = next_down, strip = next_strip;
        take();
        if (next < count) fetch(stage[turn ^ 1]);
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncwarp();
        i64 patch = (i64)down * encode.across + strip * STRIP;
        int patches = min(STRIP, (int)encode.across - (int)strip * STRIP);
#if AFFINE
        u8* out = (u8*)encode.symbols + patch * 64 + lane;
#else
        int* activity = encode.activity + patch;
        u32* out = (u32*)encode.symbols + patch * 32 + lane % 2 * 16 + lane / 4 * 2 + lane % 4 / 2;
#endif
#pragma unroll 1
        for (int n = 0; n < patches; n += 2) {
            bool both = n + 1 < patches; // else the second is all zeros
            float delta[2][8], values[2][8];
#if AFFINE
            const u8* sizes = encode.alphabets + patch + n;
            int alphabets[2] = {__ldg(sizes), both ? __ldg(sizes + 1) : 1};
            for (int one = 0; one < 1 + both; one++)
                if (alphabets[one] < 2) {
                    ((u16*)encode.symbols)[(patch + n + one) * 32 + lane] = 0;
                    if (lane == 0) encode.minima[patch + n + one] = encode.steps[patch + n + one] = 0;
                }
            if (max(alphabets[0], alphabets[1]) < 2) continue;
#endif
            load_delta<true>(stage[turn], n, lane, delta[0]);
            load_delta<true>(stage[turn], n + 1, lane, delta[1]);
            float factor = transform(encode, tables, block.low, delta, values);
#if AFFINE
#pragma unroll
            for (int one = 0; one < 2; one++)
                if (alphabets[one] > 1)
                    quantise(encode, tables, values[one], factor, stage[turn], n + one, alphabets[one] - 1.0f, patch + n + one,
                        out + (n + one) * 64, (int)encode.rows - (int)down * 16, (int)encode.cols - (int)(strip * STRIP + n + one) * 16, lane, sums);
#else
            quantise(encode, block, values[0], factor, patch + n, out + n * 32, activity + n, lane, sums);
            if (both) quantise(encode, block, values[1], factor, patch + n + 1, out + n * 32 + 32, activity + n + 1, lane, sums);
#endif
        }
        __syncwarp();
    }

#if AFFINE
    float own[] = {sums.magnitude, sums.energy, sums.aligned};
    const int totals = 3;
#else
    float own[] = {sums.all, sums.one, sums.two, sums.three, sums.energy};
    const int totals = 5;
#endif
    for (int n = 0; n < totals; n++) {
        float total = warp_sum(own[n]);
        if (lane == 0) block.warps[threadIdx.x / 32][n] = total;
    }
    __syncthreads();
    if (threadIdx.x < totals) {
        double total = 0;
        for (int warp = 0; warp < WARPS; warp++) total += block.warps[warp][threadIdx.x];
        atomicAdd(encode.totals + (threadIdx.x == 4 ? LARGEST + 1 : threadIdx.x), total);
    }
#if !AFFINE
    for (int n = threadIdx.x; n <= LARGEST; n += THREADS)
        if (block.sums[n]) atomicAdd(encode.totals + n, (double)block.sums[n]);
    for (int n = threadIdx.x; n < BINS * KEPT; n += THREADS)
        if (int counted = (&block.counts[0][0])[n]) atomicAdd(encode.counts + n / KEPT * (LARGEST + 1) + n % KEPT, counted);
#endif
}

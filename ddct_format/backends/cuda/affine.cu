// Quantising each patch uniformly between its extremes, to at most four symbols, and measuring what is decoded then.
//
// The measurement needs the transform back: coefficients lie as an operand of its first product, the results of that as
// one of the second, which leaves the patch turned. Sums of products of two patches are the diagonal of a third product.
// That of decoded and delta is taken over coefficients, as if the integer basis were orthogonal: 1 in 1000 of a patch off.
// Decoded values are held as 2^-16 of themselves, so that they are as large as coefficients.

struct Inverse {
    u32 first[4], second[2][2], weights[2][2]; // squared norms of basis vectors, 2^-32 of them
};

__device__ __forceinline__ float reciprocal(float value)
{
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// The extremes of four patches, each where its eight lanes are: the minimum and the negated maximum.
__device__ __forceinline__ u32 find_extremes(const u32 (&values)[STRIP][2][2], int lane)
{
    u32 least[STRIP];
#pragma unroll
    for (int n = 0; n < STRIP; n++) {
        const u32(&four)[2][2] = values[n];
        u32 low = min_halves(min_halves(four[0][0], four[0][1]), min_halves(four[1][0], four[1][1]));
        u32 high = max_halves(max_halves(four[0][0], four[0][1]), max_halves(four[1][0], four[1][1])) ^ 0x80008000u;
        least[n] = min_halves(permute(low, high, 0x5410), permute(low, high, 0x7632));
    }
    bool upper = lane & 16;
    for (int n = 0; n < 2; n++)
        least[n] = min_halves(upper ? least[n + 2] : least[n], __shfl_xor_sync(ALL, upper ? least[n] : least[n + 2], 16));
    upper = lane & 8;
    u32 own = min_halves(upper ? least[1] : least[0], __shfl_xor_sync(ALL, upper ? least[0] : least[1], 8));
    for (int distance = 4; distance; distance /= 2) own = min_halves(own, __shfl_xor_sync(ALL, own, distance));
    return own;
}

// Of a product of two patches, the rows' squares: where row and column are the same.
__device__ __forceinline__ float diagonal(const float (&upper)[4], const float (&lower)[4], int lane)
{
    int g = lane / 4;
    if (lane % 4 != g / 2) return 0;
    return g % 2 ? upper[1] + lower[3] : upper[0] + lower[2];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) encode_strips(const __grid_constant__ Encode encode)
{
    __shared__ double block[WARPS][3];
    int lane = threadIdx.x % 32;
    Tables tables;
    load_tables(encode, lane, tables);
    Inverse inverse;
    for (int n = 0; n < 12; n++) ((u32*)&inverse)[n] = ((const u32*)encode.table)[(16 + n) * 32 + lane];
    float magnitudes[4] = {}, squares[2][4] = {}, products[2][4] = {};

    auto alphabet = [&](const Strip& strip) { // of the patch that these eight lanes see to
        u32 patch = strip.down * (u32)encode.across + strip.strip * STRIP + lane / 8;
        return lane / 8 < strip.patches ? encode.alphabets[patch] : 1u;
    };
    for_each_strip(encode, tables, lane, alphabet, [&](const u32(&values)[STRIP][2][2], const Strip& strip, u32 symbols_of) {
        u32 first = strip.down * (u32)encode.across + strip.strip * STRIP, own = first + lane / 8;
        float most = (float)symbols_of - 1.0f;
        u32 extremes = find_extremes(values, lane);
        u32 low = extremes & 0xFFFF, step = 0, cap = 0x64006400u, inverse_step = 0;
        if (most > 0) {
            float range = -from_half(low) - from_half(extremes >> 16);
            step = pair(range * reciprocal(most), 0);
            float width = from_half(step);
            inverse_step = width > 0 ? pair(fminf(reciprocal(width), 65504.0f), 0) * 0x10001u : 0;
            cap += (symbols_of - 1) * 0x10001u;
        } else {
            low = 0;
        }
        if (lane % 8 == 0 && lane / 8 < strip.patches) encode.minima[own] = (u16)low, encode.steps[own] = (u16)step;
        low *= 0x10001u, step *= 0x10001u;

        u8* out = (u8*)encode.symbols + (u64)first * 64 + lane;
        bool edge = (strip.down + 1) * 16ll > encode.rows || (strip.strip + 1) * (16ll * STRIP) > encode.cols;
#pragma unroll
        for (int n = 0; n < STRIP; n++) {
            if (n >= strip.patches) break;
            u32 minimum = __shfl_sync(ALL, low, 8 * n), width = __shfl_sync(ALL, step, 8 * n);
            u32 slope = __shfl_sync(ALL, inverse_step, 8 * n), limit = __shfl_sync(ALL, cap, 8 * n);
            u32 symbols[2][2], levels[2][2], weighted[2][2]; // 1024 + symbol
            for (int k = 0; k < 4; k++) {
                u32 value = values[n][k / 2][k % 2];
                u32& symbol = symbols[k / 2][k % 2];
                symbol = min_halves(fma_halves(subtract_halves(value, minimum), slope, 0x64006400u), limit);
                levels[k % 2][k / 2] = fma_halves(subtract_halves(symbol, 0x64006400u), width, minimum);
                weighted[k / 2][k % 2] = multiply_halves(value, inverse.weights[k / 2][k % 2]);
            }
            for (int h = 0; h < 2; h++)
                out[n * 64 + h * 32] = (u8)__dp4a(low_bytes(symbols[0][h], symbols[1][h]), 0x40041001u, 0u);

            u32 half_way[4], decoded[4]; // of column g + 8 * (n % 2) of the patch, rows 8 * (n / 2) + 2t and the next
            for (int h = 0; h < 2; h++) {
                u32 part[2];
                multiply_halves(part, inverse.first, levels[h][0], levels[h][1]);
                half_way[2 * h] = part[0], half_way[2 * h + 1] = part[1];
            }
            for (int h = 0; h < 2; h++) {
                u32 part[2];
                multiply_halves(part, half_way, inverse.second[h][0], inverse.second[h][1]);
                decoded[2 * h] = part[0], decoded[2 * h + 1] = part[1];
            }
            if (__builtin_expect(edge, 0)) {
                i64 rows = encode.rows - strip.down * 16ll, cols = encode.cols - strip.strip * (16ll * STRIP) - n * 16;
                for (int k = 0; k < 4; k++) {
                    int col = lane / 4 + k % 2 * 8, row = k / 2 * 8 + lane % 4 * 2;
                    if (row >= rows || col >= cols) decoded[k] = 0;
                    if (row + 1 >= rows) decoded[k] &= 0xFFFF;
                }
            }
            u32 absolute[4], coefficients[4] = {levels[0][0], levels[1][0], levels[0][1], levels[1][1]};
            for (int k = 0; k < 4; k++) absolute[k] = abs_halves(decoded[k]);
            multiply(magnitudes, absolute, 0x3C003C00u, 0x3C003C00u);
            for (int h = 0; h < 2; h++) multiply(squares[h], decoded, decoded[h], decoded[2 + h]);
            for (int h = 0; h < 2; h++) multiply(products[h], coefficients, weighted[0][h], weighted[1][h]);
        }
    });

    double own[] = {lane % 4 ? 0.0 : (double)magnitudes[0] + magnitudes[2], diagonal(squares[0], squares[1], lane),
                    diagonal(products[0], products[1], lane)};
    for (int n = 0; n < 3; n++) {
        for (int distance = 16; distance; distance /= 2) own[n] += __shfl_xor_sync(ALL, own[n], distance);
        if (lane == 0) block[threadIdx.x / 32][n] = own[n];
    }
    __syncthreads();
    if (threadIdx.x < 3) {
        double total = 0;
        for (int warp = 0; warp < WARPS; warp++) total += block[warp][threadIdx.x];
        atomicAdd(encode.totals + threadIdx.x, total);
    }
}

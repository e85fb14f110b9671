// Decoding where columns keep their order.

#define STRIP (8 / (int)sizeof(ResultBits)) // patches side by side whose rows are 128 bytes together
#define BLOCKS 3 // of one multiprocessor
#define STAGED (VECTOR && BASE && (BASE == 3) == (RESULT == 3))

__device__ __forceinline__ bool whole_strip(const Layer& layer, u32 strip, bool rows_inside)
{
    return STAGED && rows_inside && strip * (16ll * STRIP) >= layer.col_first &&
           (strip + 1) * (16ll * STRIP) <= layer.col_stop;
}

struct Stage { // a strip on its way through shared memory; the pieces of a row are swizzled, so that no banks clash
    uint4 rows[16][8];
    uint4 words[STRIP][4];
#if LIMBS && CHUNKS
    uint4 right[CHUNKS][STRIP * 16];
#endif
};

__device__ __forceinline__ int swizzle(int row)
{
    return sizeof(ResultBits) == 2 ? (row & 3) * 2 + (row >> 2 & 1) : (row & 1) * 4 + (row >> 1 & 3);
}

// No column order: a warp takes strips through shared memory, where whole lines become the pieces that lanes hold; the
// next strip is on its way meanwhile. Strips that are not whole are left to decode_edges.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) decode_rows(const __grid_constant__ Layer layer)
{
#if STAGED
    __shared__ Scaled table[AFFINE ? 1 : 255];
    extern __shared__ uint4 memory[]; // two stages a warp
    Classes classes(layer, table);
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 strips = (u32)((layer.across + STRIP - 1) / STRIP), run = (u32)layer.run, runs = (strips + run - 1) / run;
    u32 warp = blockIdx.x * WARPS + threadIdx.x / 32, down = warp / runs;
    u32 strip = (warp - down * runs) * run, stop = min(strip + run, strips);
    if (down >= layer.down) return;
    u32 rows[2];
    bool inside[2];
    find_rows(layer, down, g, rows, inside);
    if (!__all_sync(ALL, inside[0] && inside[1])) return;
    while (strip < stop && !whole_strip(layer, strip, true)) strip++;
    while (strip < stop && !whole_strip(layer, stop - 1, true)) stop--;
    if (strip >= stop) return;

    u32 lines[4]; // this lane moves 16 bytes of each
    for (int n = 0; n < 4; n++) {
        int row = 4 * n + lane / 8;
        lines[n] = __shfl_sync(ALL, rows[n / 2], row % 8 * 4) - (u32)layer.row_first;
    }
    u32 stride = (u32)layer.stride;
    i64 first = strip * (16ll * STRIP) - layer.col_first + lane % 8 * (16 / (int)sizeof(ResultBits));
    const BaseBits* base = (const BaseBits*)layer.base + first;
    ResultBits* result = (ResultBits*)layer.result + first;
    const uint2* place = layer.places + (u64)down * layer.across + strip * STRIP + lane % STRIP;
    [[maybe_unused]] bool finite = layer.finite;
    bool in_place = BASE == RESULT && !LIMBS && layer.base == layer.result;
    float gain = AFFINE ? __ldg(layer.scales) : 1.0f;
    Basis basis;
    load_basis(basis, layer.basis, lane);
#if LIMBS
    Left left;
    load_left(layer, rows, t, left);
    float low_rank_scale = __ldg(layer.low_rank_scale);
    const i8* right = layer.right_rows + (u64)strip * STRIP * 16 * layer.padded_rank; // of the strip to fetch
#endif
    Stage* stage = (Stage*)memory + threadIdx.x / 32 * 2;
    auto fetch = [&](Stage& into, uint2 mine) {
        u32 code = __shfl_sync(ALL, mine.x, lane / 4);
        if (lane < 4 * STRIP && (code & CODE_WIDTH) == 1)
            copy_16(&into.words[lane / 4][lane % 4], words_of(layer, make_uint2(code, 0)) + lane % 4 * 16);
#if LIMBS && CHUNKS
        for (int n = lane; n < STRIP * 16 * CHUNKS; n += 32)
            copy_16(&into.right[n % CHUNKS][n / CHUNKS], right + n * 16);
        right += STRIP * 16 * 16 * CHUNKS;
#endif
        if (in_place && !__any_sync(ALL, mine.x & CODE_WIDTH)) return; // nothing changes
        for (int n = 0; n < 4; n++) {
            int row = 4 * n + lane / 8;
            copy_16(&into.rows[row][lane % 8 ^ swizzle(row)], base + (u64)lines[n] * stride);
        }
    };
    uint2 now = __ldg(place), next = now, later = now;
    if (strip + 1 < stop) next = __ldg(place + STRIP);
    fetch(stage[0], now);
    asm volatile("cp.async.commit_group;");
    for (int turn = 0; strip < stop; strip++, turn ^= 1) {
        if (strip + 2 < stop) later = __ldg(place + 2 * STRIP);
        base += 16 * STRIP;
        if (strip + 1 < stop) fetch(stage[turn ^ 1], next);
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;");
        __syncwarp();
        Stage& here = stage[turn];
        if (!in_place || __any_sync(ALL, now.x & CODE_WIDTH)) {
#pragma unroll
            for (int n = 0; n < STRIP; n++) {
                Symbols symbols;
                symbols.place = make_uint2(__shfl_sync(ALL, now.x, n), __shfl_sync(ALL, now.y, n));
                if ((symbols.place.x & CODE_WIDTH) == 1) symbols.rows = here.words[n][t];
                float delta[8];
                decode_patch(layer, basis, classes, symbols, gain, g, t, delta);
#if LIMBS
                Right right_here;
#if CHUNKS
                for (int part = 0; part < 2; part++)
                    for (int chunk = 0; chunk < CHUNKS; chunk++)
                        right_here.chunks[chunk][part] =
                            ((const u32*)&here.right[chunk][16 * n + g / 2 * 4 + g % 2 + 2 * part])[t];
#else
                u32 cols[2];
                for (int part = 0; part < 2; part++)
                    cols[part] = (strip * STRIP + n) * 16 + g / 2 * 4 + g % 2 + 2 * part;
                load_right(layer, cols, t, right_here);
#endif
                add_low_rank(layer, left, right_here, low_rank_scale, t, delta);
#endif
                BaseFour* piece[2];
                for (int half = 0; half < 2; half++) {
                    int offset = (16 * n + 4 * t) * (int)sizeof(ResultBits), row = g + 8 * half;
                    piece[half] = (BaseFour*)((u8*)&here.rows[row][offset / 16 ^ swizzle(row)] + offset % 16);
                }
#if HAS_PLAIN
                BaseFour four[2] = {*piece[0], *piece[1]};
                add_eight(four, delta, finite);
                *piece[0] = four[0], *piece[1] = four[1];
#else
                for (int half = 0; half < 2; half++)
                    *(ResultFour*)piece[half] = add_four(*piece[half], delta + 4 * half);
#endif
            }
            __syncwarp();
            for (int n = 0; n < 4; n++) {
                int row = 4 * n + lane / 8;
                *(uint4*)(result + (u64)lines[n] * stride) = here.rows[row][lane % 8 ^ swizzle(row)];
            }
        }
        __syncwarp();
        result += 16 * STRIP, place += STRIP;
        now = next, next = later;
    }
#endif
}

// Element by element: where a strip leaves the view or the part that base and result hold, or they are not aligned.
extern "C" __global__ void __launch_bounds__(THREADS) decode_edges(const __grid_constant__ Layer layer)
{
    __shared__ Scaled table[AFFINE ? 1 : 255];
    Classes classes(layer, table);
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 across = (u32)layer.across, warp = blockIdx.x * WARPS + threadIdx.x / 32;
    u32 down = warp / across, patch = warp - down * across;
    if (down >= layer.down) return;
    u32 rows[2];
    bool inside[2];
    find_rows(layer, down, g, rows, inside);
    if (!__any_sync(ALL, inside[0] || inside[1]) || (i64)patch * 16 >= layer.col_stop || patch * 16ll + 16 <= layer.col_first)
        return;
    if (whole_strip(layer, patch / STRIP, __all_sync(ALL, inside[0] && inside[1]))) return;
    Basis basis;
    load_basis(basis, layer.basis, lane);
    Symbols symbols;
    symbols.place = __ldg(layer.places + (u64)down * across + patch);
    if ((symbols.place.x & CODE_WIDTH) == 1) symbols.rows = __ldg((const uint4*)words_of(layer, symbols.place) + t);
    float delta[8];
    decode_patch(layer, basis, classes, symbols, AFFINE ? __ldg(layer.scales) : 1.0f, g, t, delta);
#if LIMBS
    u32 cols[2];
    for (int n = 0; n < 2; n++) cols[n] = min((u32)layer.cols - 1, patch * 16 + g / 2 * 4 + g % 2 + 2 * n);
    Left left;
    load_left(layer, rows, t, left);
    Right right;
    load_right(layer, cols, t, right);
    add_low_rank(layer, left, right, __ldg(layer.low_rank_scale), t, delta);
#endif
    for (int n = 0; n < 8; n++) {
        i64 col = (i64)patch * 16 + 4 * t + n % 4;
        if (!inside[n / 4] || col < layer.col_first || col >= layer.col_stop) continue;
        i64 element = ((i64)rows[n / 4] - layer.row_first) * layer.stride + col - layer.col_first;
        u32 bits = BASE ? ((const BaseBits*)layer.base)[element] : 0;
        ((ResultBits*)layer.result)[element] = (ResultBits)add_one(bits, delta[n]);
    }
}

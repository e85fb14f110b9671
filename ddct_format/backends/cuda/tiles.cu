// Decoding where columns are reordered.

#define TILE_COLS (BASE == 3 || RESULT == 3 ? 512 : 1024)
#define TILE_PITCH (TILE_COLS + 16 / (int)sizeof(ResultBits)) // so that rows begin in different banks
#define MOST_ACROSS 65536
#define MOST_ITEMS 128

struct Tile { // what a block holds in shared memory
    ResultBits rows[16][TILE_PITCH];
#if LIMBS && CHUNKS
    uint4 right[CHUNKS][TILE_COLS + 1]; // factors of the tile's columns
#endif
    uint4 words[MOST_ITEMS][4];
    uint2 places[MOST_ITEMS];
    u16 cols[MOST_ITEMS][16]; // of the tile; TILE_COLS, beyond its end, for those that lie elsewhere
    u16 list[TILE_COLS];      // patches of the order that have columns in the tile
    u32 length;
    u32 wanted[1]; // a bit for each patch
};

// A column order: a block owns 16 rows of the order and TILE_COLS columns of the view. Neighbours in the order lie near
// each other in the view, for keys are few and the sort is stable, but not side by side.
extern "C" __global__ void __launch_bounds__(THREADS) decode_tiles(const __grid_constant__ Layer layer)
{
    extern __shared__ uint4 memory[];
    __shared__ Scaled classes[AFFINE ? 1 : 255];
    load_classes(layer, classes);
    Tile& tile = *(Tile*)memory;
    u32 words = (u32)((layer.across + 31) / 32);
    u32 tiles = (u32)((layer.cols + TILE_COLS - 1) / TILE_COLS), down = blockIdx.x / tiles;
    i64 first = (i64)(blockIdx.x % tiles) * TILE_COLS, stop = min(first + TILE_COLS, layer.cols);
    first = max(first, layer.col_first);
    stop = min(stop, layer.col_stop);
    if (first >= stop) return;
    u32 width = (u32)(stop - first);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
#if BASE
    for (int row = warp; row < 16; row += WARPS) { // the element types are equal here, see fused.py
        i64 place = (i64)down * 16 + row;
        if (place >= layer.rows) break;
        i64 view = layer.row_order ? layer.row_order[place] : place;
        if (view < layer.row_first || view >= layer.row_stop) continue;
        const BaseBits* source =
            (const BaseBits*)layer.base + (view - layer.row_first) * layer.stride + first - layer.col_first;
#if VECTOR
        for (int piece = lane; piece < width * (int)sizeof(BaseBits) / 16; piece += 32)
            copy_16((uint4*)tile.rows[row] + piece, (const uint4*)source + piece);
#else
        for (int n = lane; n < width; n += 32) tile.rows[row][n] = source[n];
#endif
    }
#endif
#if LIMBS && CHUNKS
    for (u32 n = threadIdx.x; n < width * CHUNKS; n += THREADS)
        copy_16(&tile.right[n % CHUNKS][n / CHUNKS], layer.right_rows + first * layer.padded_rank + n * 16);
#endif
    for (u32 word = threadIdx.x; word < words; word += THREADS) tile.wanted[word] = 0;
    if (threadIdx.x == 0) tile.length = 0;
    __syncthreads();
    for (i64 col = first + threadIdx.x; col < stop; col += THREADS) {
        u32 patch = __ldg(layer.col_place + col) / 16;
        atomicOr(tile.wanted + patch / 32, 1u << patch % 32);
    }
    __syncthreads();
    for (u32 word = threadIdx.x; word < words; word += THREADS) {
        u32 bits = tile.wanted[word];
        if (!bits) continue;
        u32 next = atomicAdd(&tile.length, __popc(bits));
        for (; bits; bits &= bits - 1) tile.list[next++] = (u16)(word * 32 + __ffs(bits) - 1);
    }
    u32 rows[2];
    bool inside[2];
    find_rows(layer, down, g, rows, inside);
    Basis basis;
    load_basis(basis, layer.basis, lane);
    float gain = AFFINE ? __ldg(layer.scales) : 1.0f;
#if LIMBS
    Left left;
    load_left(layer, rows, t, left);
    float low_rank_scale = __ldg(layer.low_rank_scale);
#endif
    __syncthreads();
    const uint2* places = layer.places + (u64)down * layer.across;
    u32 last = (u32)layer.cols - 1;
    [[maybe_unused]] bool finite = layer.finite;
    for (u32 begin = 0; begin < tile.length; begin += MOST_ITEMS) {
        u32 count = min(tile.length - begin, MOST_ITEMS);
        for (u32 item = threadIdx.x; item < count; item += THREADS)
            tile.places[item] = __ldg(places + tile.list[begin + item]);
        for (u32 n = threadIdx.x; n < count * 16; n += THREADS) {
            u32 place = tile.list[begin + n / 16] * 16 + n % 16;
            u32 col = (place <= last ? __ldg(layer.col_order + place) : ALL) - (u32)first;
            tile.cols[n / 16][n % 16] = (u16)(col < width ? col : TILE_COLS);
        }
        __syncthreads();
        for (u32 n = threadIdx.x; n < count * 4; n += THREADS) {
            uint2 place = tile.places[n / 4];
            if ((place.x & CODE_WIDTH) == 1) copy_16(&tile.words[n / 4][n % 4], words_of(layer, place) + n % 4 * 16);
        }
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_all;");
        __syncthreads();
        for (u32 item = warp; item < count; item += WARPS) {
            Symbols symbols;
            symbols.place = tile.places[item];
            if ((symbols.place.x & CODE_WIDTH) == 1) symbols.rows = tile.words[item][t];
            uint2 four_cols = *(const uint2*)&tile.cols[item][4 * t];
            u32 at[4] = {four_cols.x & 0xFFFF, four_cols.x >> 16, four_cols.y & 0xFFFF, four_cols.y >> 16};
            float delta[8];
            decode_patch(layer, basis, classes, symbols, gain, g, t, delta);
#if LIMBS
            Right right;
            u32 cols[2];
            for (int part = 0; part < 2; part++) {
                u32 col = tile.cols[item][g / 2 * 4 + g % 2 + 2 * part];
#if CHUNKS
                for (int chunk = 0; chunk < CHUNKS; chunk++)
                    right.chunks[chunk][part] = ((const u32*)&tile.right[chunk][col])[t];
#endif
                cols[part] = (u32)min((i64)last, first + col);
            }
            if (!CHUNKS) load_right(layer, cols, t, right);
            add_low_rank(layer, left, right, low_rank_scale, t, delta);
#endif
            ResultBits* upper = tile.rows[g];
            ResultBits* lower = tile.rows[g + 8];
#if HAS_PLAIN
            uint2 four[2] = {make_uint2(upper[at[0]] | upper[at[1]] << 16, upper[at[2]] | upper[at[3]] << 16),
                             make_uint2(lower[at[0]] | lower[at[1]] << 16, lower[at[2]] | lower[at[3]] << 16)};
            add_eight(four, delta, finite);
            upper[at[0]] = (u16)four[0].x, upper[at[1]] = (u16)(four[0].x >> 16);
            upper[at[2]] = (u16)four[0].y, upper[at[3]] = (u16)(four[0].y >> 16);
            lower[at[0]] = (u16)four[1].x, lower[at[1]] = (u16)(four[1].x >> 16);
            lower[at[2]] = (u16)four[1].y, lower[at[3]] = (u16)(four[1].y >> 16);
#else
            for (int k = 0; k < 4; k++) {
                upper[at[k]] = (ResultBits)add_one(upper[at[k]], delta[k]);
                lower[at[k]] = (ResultBits)add_one(lower[at[k]], delta[4 + k]);
            }
#endif
        }
        __syncthreads();
    }
    for (int row = warp; row < 16; row += WARPS) {
        i64 place = (i64)down * 16 + row;
        if (place >= layer.rows) break;
        i64 view = layer.row_order ? layer.row_order[place] : place;
        if (view < layer.row_first || view >= layer.row_stop) continue;
        ResultBits* target = (ResultBits*)layer.result + (view - layer.row_first) * layer.stride + first - layer.col_first;
#if VECTOR
        for (int piece = lane; piece < width * (int)sizeof(ResultBits) / 16; piece += 32)
            ((uint4*)target)[piece] = ((uint4*)tile.rows[row])[piece];
#else
        for (int n = lane; n < width; n += 32) target[n] = tile.rows[row][n];
#endif
    }
}

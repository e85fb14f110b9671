// Decoding where columns are reordered.

#define TILE_COLS (BASE == 3 || RESULT == 3 || CHUNKS == 2 ? 512 : 1024)
#define TILE_PITCH (TILE_COLS + 16 / (int)sizeof(ResultBits)) // so that rows begin in different banks
#define TILE_BLOCKS 3 // of one multiprocessor
#define MOST_ITEMS 128
#define SLOTS 128 // for words, 64 bytes each
#define NO_SLOT 255

struct Turn { // 16 rows of the order
    ResultBits rows[16][TILE_PITCH];
    uint4 words[SLOTS][4]; // of patches with symbols of two and four bits, in any order
    uint2 places[MOST_ITEMS];
    u8 slots[MOST_ITEMS];
#if LIMBS && CHUNKS
    uint4 left[LIMBS * CHUNKS][16];
#endif
    u32 views[16]; // the row of the view, ALL if it is not in the part
    u32 used;      // slots
    u32 unused[3];
};

struct Tile { // what a block holds in shared memory
    Turn turn;
#if LIMBS && CHUNKS
    uint4 right[CHUNKS][TILE_COLS + 1]; // factors of the tile's columns
#endif
    u16 cols[MOST_ITEMS][16]; // of the tile; TILE_COLS, beyond its end, for those that lie elsewhere
    u16 list[TILE_COLS];      // patches of the order that have columns in the tile
    u32 length;
    u32 wanted[1]; // a bit for each patch
};

// Columns [first, first + width) of the view, and the patches that have a part in them.
struct Columns {
    i64 first;
    u32 width, last; // of the whole view

    __device__ __forceinline__ void list(const Layer& layer, Tile& tile) const
    {
        u32 words = (u32)((layer.across + 31) / 32);
        for (u32 word = threadIdx.x; word < words; word += THREADS) tile.wanted[word] = 0;
        if (threadIdx.x == 0) tile.length = tile.turn.used = 0;
        __syncthreads();
        for (u32 n = threadIdx.x; n < width; n += THREADS) {
            u32 patch = __ldg(layer.col_place + first + n) / 16;
            atomicOr(tile.wanted + patch / 32, 1u << patch % 32);
        }
        __syncthreads();
        for (u32 word = threadIdx.x; word < words; word += THREADS) {
            u32 bits = tile.wanted[word];
            if (!bits) continue;
            u32 next = atomicAdd(&tile.length, __popc(bits));
            for (; bits; bits &= bits - 1) tile.list[next++] = (u16)(word * 32 + __ffs(bits) - 1);
        }
        __syncthreads();
    }

    __device__ __forceinline__ void find(const Layer& layer, Tile& tile, u32 begin, u32 count) const
    {
        for (u32 n = threadIdx.x; n < count * 16; n += THREADS) {
            u32 place = tile.list[begin + n / 16] * 16 + n % 16;
            u32 col = (place <= last ? __ldg(layer.col_order + place) : ALL) - (u32)first;
            tile.cols[n / 16][n % 16] = (u16)(col < width ? col : TILE_COLS);
        }
    }
};

// What a thread loads for the next rows while these are decoded: nothing else of them can be fetched before.
struct Ahead {
    uint2 place; // of item threadIdx.x
    u32 views[2];

    __device__ __forceinline__ void load(const Layer& layer, const Tile& tile, u32 down, u32 count)
    {
        if (down >= layer.down) return;
        if (threadIdx.x < count) place = __ldg(layer.places + (u64)down * layer.across + tile.list[threadIdx.x]);
        for (int n = 0; n < 2; n++) { // nothing is computed from what is loaded: that would wait for it
            u32 row = down * 16 + threadIdx.x / 32 + n * WARPS;
            views[n] = row >= layer.rows ? ALL : layer.row_order ? __ldg(layer.row_order + row) : row;
        }
    }
};

__device__ __forceinline__ void copy_words(const Layer& layer, Turn& turn, u32 item, uint2 place)
{
    turn.places[item] = place;
    u32 width = place.x & CODE_WIDTH, slot = NO_SLOT;
    if (width == 1 || width == 2) {
        slot = atomicAdd(&turn.used, width);
        if (slot + width > SLOTS) slot = NO_SLOT;
    }
    turn.slots[item] = (u8)slot;
    if (slot == NO_SLOT) return;
    for (int n = 0; n < 4; n++) copy_16(&turn.words[slot][n], words_of(layer, place) + n * 16);
    if (width == 2)
        for (int n = 0; n < 4; n++) copy_16(&turn.words[slot + 1][n], words_of(layer, place) + 64 + n * 16);
}

__device__ __forceinline__ i64 element_of(const Layer& layer, const Columns& columns, u32 view)
{
    return (view - layer.row_first) * layer.stride + columns.first - layer.col_first;
}

__device__ __forceinline__ void fetch_turn(
    const Layer& layer, Turn& turn, const Columns& columns, const Ahead& ahead, u32 count)
{
    int lane = threadIdx.x % 32;
    for (int n = 0; n < 2; n++) {
        int row = threadIdx.x / 32 + n * WARPS;
        u32 view = ahead.views[n];
        if (view < layer.row_first || view >= layer.row_stop) view = ALL;
        if (lane == 0) turn.views[row] = view;
        if (view == ALL) continue;
#if LIMBS && CHUNKS
        if (lane < LIMBS * CHUNKS)
            copy_16(&turn.left[lane][row], layer.left_limbs + lane % CHUNKS * 16 +
                                               ((u64)(lane / CHUNKS) * layer.rows + view) * layer.padded_rank);
#endif
#if BASE // the element types are equal here, see fused.py
        const BaseBits* source = (const BaseBits*)layer.base + element_of(layer, columns, view);
#if VECTOR
        for (int piece = lane; piece < columns.width * (int)sizeof(BaseBits) / 16; piece += 32)
            copy_16((uint4*)turn.rows[row] + piece, (const uint4*)source + piece);
#else
        for (int n = lane; n < columns.width; n += 32) turn.rows[row][n] = source[n];
#endif
#endif
    }
    if (threadIdx.x < count) copy_words(layer, turn, threadIdx.x, ahead.place);
}

struct Constants { // of all patches
    Basis basis;
    Classes classes;
    float gain, low_rank_scale;
};

__device__ __forceinline__ void decode_items(const Layer& layer, const Tile& tile, Turn& turn, const Columns& columns,
                                             u32 count, const Constants& constants)
{
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    [[maybe_unused]] bool finite = layer.finite;
#if LIMBS
    Left left;
    for (int n = 0; n < 2; n++) {
        left.rows[n] = turn.views[g + 8 * n] == ALL ? 0 : turn.views[g + 8 * n];
#if CHUNKS
        for (int limb = 0; limb < LIMBS; limb++)
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                left.limbs[limb][chunk][n] = ((const u32*)&turn.left[limb * CHUNKS + chunk][g + 8 * n])[t];
#endif
    }
#endif
    ResultBits* upper = turn.rows[g];
    ResultBits* lower = turn.rows[g + 8];
    for (u32 item = threadIdx.x / 32; item < count; item += WARPS) {
        Symbols symbols;
        symbols.place = turn.places[item];
        u32 slot = turn.slots[item];
        const u8* fours = (const u8*)turn.words[min(slot, SLOTS - 1)] + t * 32 + g;
        symbols.has_fours = true;
        if ((symbols.place.x & CODE_WIDTH) == 1)
            symbols.rows = slot == NO_SLOT ? __ldg((const uint4*)words_of(layer, symbols.place) + t) : turn.words[slot][t];
        if ((symbols.place.x & CODE_WIDTH) == 2)
            symbols.fours = slot == NO_SLOT ? load_fours(layer, symbols.place, g, t)
                                            : fours[0] | fours[8] << 8 | fours[16] << 16 | fours[24] << 24;
        uint2 four_cols = *(const uint2*)&tile.cols[item][4 * t];
        u32 at[4] = {four_cols.x & 0xFFFF, four_cols.x >> 16, four_cols.y & 0xFFFF, four_cols.y >> 16};
        float delta[8];
        decode_patch(layer, constants.basis, constants.classes, symbols, constants.gain, g, t, delta);
#if LIMBS
        Right right;
        u32 cols[2];
        for (int part = 0; part < 2; part++) {
            u32 col = tile.cols[item][g / 2 * 4 + g % 2 + 2 * part];
#if CHUNKS
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                right.chunks[chunk][part] = ((const u32*)&tile.right[chunk][col])[t];
#endif
            cols[part] = (u32)min((i64)columns.last, columns.first + col);
        }
        if (!CHUNKS) load_right(layer, cols, t, right);
        add_low_rank(layer, left, right, constants.low_rank_scale, t, delta);
#endif
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
}

__device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

// A column order: a block owns TILE_COLS columns of the view, and goes down the rows of the order, 16 at a time; while it
// waits for them, the other blocks of its multiprocessor decode theirs. Neighbours in the order lie near each other in the
// view, for keys are few and the sort is stable, but not side by side.
extern "C" __global__ void __launch_bounds__(THREADS, TILE_BLOCKS) decode_tiles(const __grid_constant__ Layer layer)
{
    extern __shared__ uint4 memory[];
    __shared__ Scaled table[AFFINE ? 1 : 255];
    Tile& tile = *(Tile*)memory;
    u32 tiles = (u32)((layer.cols + TILE_COLS - 1) / TILE_COLS), step = gridDim.x / tiles, down = blockIdx.x / tiles;
    i64 first = (i64)(blockIdx.x % tiles) * TILE_COLS, stop = min(first + TILE_COLS, layer.cols);
    first = max(first, layer.col_first);
    stop = min(stop, layer.col_stop);
    if (first >= stop) return;
    Columns columns = {first, (u32)(stop - first), (u32)layer.cols - 1};
#if LIMBS && CHUNKS
    for (u32 n = threadIdx.x; n < columns.width * CHUNKS; n += THREADS)
        copy_16(&tile.right[n % CHUNKS][n / CHUNKS], layer.right_rows + first * layer.padded_rank + n * 16);
#endif
    Constants constants = {{}, Classes(layer, table)};
    load_basis(constants.basis, layer.basis, threadIdx.x % 32);
    constants.gain = AFFINE ? __ldg(layer.scales) : 1.0f;
    constants.low_rank_scale = LIMBS ? __ldg(layer.low_rank_scale) : 0.0f;
    columns.list(layer, tile);
    u32 length = tile.length, count = min(length, MOST_ITEMS);
    columns.find(layer, tile, 0, count);
    Ahead ahead;
    ahead.load(layer, tile, down, count);
    Turn& turn = tile.turn;
    for (; down < layer.down; down += step) {
        __syncthreads();
        fetch_turn(layer, turn, columns, ahead, count);
        ahead.load(layer, tile, down + step, count);
        wait_for_copies();
        decode_items(layer, tile, turn, columns, count, constants);
        for (u32 begin = MOST_ITEMS; begin < length; begin += MOST_ITEMS) { // more keys than usual
            __syncthreads();
            if (threadIdx.x == 0) turn.used = 0;
            __syncthreads();
            u32 more = min(length - begin, MOST_ITEMS);
            columns.find(layer, tile, begin, more);
            for (u32 item = threadIdx.x; item < more; item += THREADS)
                copy_words(layer, turn, item, __ldg(layer.places + (u64)down * layer.across + tile.list[begin + item]));
            wait_for_copies();
            decode_items(layer, tile, turn, columns, more, constants);
        }
        __syncthreads();
        if (threadIdx.x == 0) turn.used = 0;
        if (length > MOST_ITEMS) columns.find(layer, tile, 0, count); // seen by others after the next barrier
        for (int row = threadIdx.x / 32; row < 16; row += WARPS) {
            if (turn.views[row] == ALL) continue;
            ResultBits* target = (ResultBits*)layer.result + element_of(layer, columns, turn.views[row]);
#if VECTOR
            for (int piece = threadIdx.x % 32; piece < columns.width * (int)sizeof(ResultBits) / 16; piece += 32)
                ((uint4*)target)[piece] = ((uint4*)turn.rows[row])[piece];
#else
            for (int n = threadIdx.x % 32; n < columns.width; n += 32) target[n] = turn.rows[row][n];
#endif
        }
    }
}

// Decoding where columns are reordered.

#define TILE_BLOCKS 3 // of one multiprocessor
#define GROUP 64      // columns of a strip, 16 rows of the order, that a warp adds to the base
#define ITEMS 6       // patches of a warp and strip that are fetched ahead
#define TERMS (LIMBS * CHUNKS) // pieces of 16 bytes that a row's factors are
#define BASE_WORDS (BASE == 3 ? 8 : 4) // of eight elements
#define RESULT_WORDS (RESULT == 3 ? 8 : 4)
#define BASIS_PIECES (AFFINE ? 4 : 2) // of 16 bytes a lane

struct Tile { // what a block holds in shared memory; the table of classes follows
    float4 deltas[TILE_COLS + 1][4]; // by column, see address_of, of four rows each; the last: columns that lie elsewhere
    uint4 words[WARPS][ITEMS][8];    // symbols of a warp's patches
    uint2 places[4][WARPS][ITEMS];   // of the patches of this strip and the next two
    uint2 targets[WARPS][ITEMS][8];  // addresses of their columns g and g + 8
    uint4 basis[BASIS_PIECES][32];   // this and the next would be registers, were there enough
#if TERMS
    uint4 right[CHUNKS][2][THREADS]; // factors of the columns that a thread brings
    uint4 left[2][TERMS][16];        // factors of the rows of this strip and the next, even ones first
#endif
    u32 patches[WARPS][ITEMS]; // of a row of the order, ALL if there is none
    u32 views[4][16];          // rows of the view, ALL beyond the last
    u32 lines[2][16];          // rows of base and result, ALL if not in the part
};

// A patch's place, and what a lane takes of its rows 2g and 2g + 1: of four bits, if it is such symbols. The transform is of
// the transposed patch, so that a lane gets four rows of a column, which is what shared memory takes in one piece.
struct RowPair {
    uint2 place;
    u32 even, odd;
};

// The levels of a lane: halves[0, 1] of columns 4t, 4t+1 and 4t+2, 4t+3 in row 2g, halves[2, 3] in row 2g+1.
__device__ __forceinline__ void unpack(
    const Layer& layer, const RowPair& rows, u32 low, u32 high, int g, int t, u32 (&halves)[4])
{
    u32 even, odd = 0;
    if ((rows.place.x & CODE_WIDTH) == 2) {
        even = permute(low, high, rows.even), odd = permute(low, high, rows.odd);
    } else {
        const u32* levels = (const u32*)words_of(layer, rows.place) + g * 8 + t;
#pragma unroll 1 // a branch, not instructions that most patches only step over
        for (int n = 0; n < 2; n++) even = odd, odd = __ldg(levels + 4 * n);
    }
    to_levels(rows.place, even, odd, halves);
}

// Shared memory by addresses that stay in registers: the compiler would find them anew for each patch.
__device__ __forceinline__ u32 shared_address(const void* place)
{
    u32 address = (u32)__cvta_generic_to_shared(place);
    asm volatile("" : "+r"(address));
    return address;
}

__device__ __forceinline__ void store_four(u32 address, float a, float b, float c, float d)
{
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

__device__ __forceinline__ uint2 load_two(u32 address)
{
    uint2 two;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(two.x), "=r"(two.y) : "r"(address) : "memory");
    return two;
}

__device__ __forceinline__ u32 load_half(u32 address)
{
    u32 half;
    asm volatile("{.reg .b16 a; ld.shared.b16 a, [%1]; cvt.u32.u16 %0, a;}" : "=r"(half) : "r"(address) : "memory");
    return half;
}

__device__ __forceinline__ void copy_to(u32 target, const void* source)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source));
}

// A lane's part of a group: eight columns from `first`, and eight that are 32 further on, in two rows. So eight lanes that
// follow one another touch two lines of memory, and not four, as with four rows a lane.
typedef u32 BasePart[2][2][BASE_WORDS]; // [far columns][row]
typedef u32 ResultPart[2][2][RESULT_WORDS];

// Whole: all columns and rows of the warp are in the part.
__device__ __forceinline__ void load_base(const Layer& layer, int first, uint2 lines, bool whole, BasePart& base)
{
#if BASE
    const BaseBits* upper = (const BaseBits*)layer.base + ((i64)lines.x * layer.stride + first);
    const BaseBits* lower = (const BaseBits*)layer.base + ((i64)lines.y * layer.stride + first);
#if VECTOR
    if (whole) {
        for (int n = 0; n < BASE_WORDS; n++)
            *(uint4*)&base[n % 2][n / 2 % 2][n / 4 * 4] =
                __ldcs((const uint4*)((n / 2 % 2 ? lower : upper) + n % 2 * 32) + n / 4);
        return;
    }
#endif
    int part = (int)(layer.col_stop - layer.col_first);
    for (int n = 0; n < 4 * BASE_WORDS; n++) base[n % 2][n / 2 % 2][n / 4] = 0;
    for (int n = 0; n < 32; n++) {
        int row = n / 16, far = n / 8 % 2, k = n % 8, col = first + 32 * far + k;
        if ((row ? lines.y : lines.x) != ALL && col >= 0 && col < part)
            base[far][row][k * BASE_WORDS / 8] |= (u32)(row ? lower : upper)[32 * far + k] << (BASE == 3 ? 0 : k % 2 * 16);
    }
#endif
}

__device__ __forceinline__ void store_result(
    const Layer& layer, int first, uint2 lines, bool whole, const ResultPart& result)
{
    ResultBits* upper = (ResultBits*)layer.result + ((i64)lines.x * layer.stride + first);
    ResultBits* lower = (ResultBits*)layer.result + ((i64)lines.y * layer.stride + first);
#if VECTOR
    if (whole) {
        for (int n = 0; n < RESULT_WORDS; n++)
            __stcs((uint4*)((n / 2 % 2 ? lower : upper) + n % 2 * 32) + n / 4,
                   *(const uint4*)&result[n % 2][n / 2 % 2][n / 4 * 4]);
        return;
    }
#endif
    int part = (int)(layer.col_stop - layer.col_first);
    for (int n = 0; n < 32; n++) {
        int row = n / 16, far = n / 8 % 2, k = n % 8, col = first + 32 * far + k;
        if ((row ? lines.y : lines.x) != ALL && col >= 0 && col < part)
            (row ? lower : upper)[32 * far + k] =
                (ResultBits)(result[far][row][k * RESULT_WORDS / 8] >> (RESULT == 3 ? 0 : k % 2 * 16));
    }
}

#if LIMBS
__device__ __forceinline__ const u32* col_terms(const Layer& layer, i64 col, int t)
{
    return (const u32*)(layer.right_rows + min(col, layer.cols - 1) * layer.padded_rank) + t;
}
#endif

// Where the delta of a column of the tile is. What half a warp reads at a time, eight rows of four columns that are eight
// apart, is made to lie in different banks: neighbours change places in every second eight, halves in every second sixteen.
__device__ __forceinline__ u32 address_of(u32 deltas, u32 col)
{
    return deltas + (col ^ (col >> 3 & 1)) * 64 + (col >> 4 & 1) * 32;
}

// A column order: a block owns TILE_COLS columns of the view, and goes down strips of 16 rows of the order. Patches that
// have columns there are decoded into shared memory, each delta to where the view has it; then they are added to the base,
// which only passes through registers. Neighbours in the order lie near each other in the view, for keys are few and the
// sort is stable, so that few patches are decoded for more than one tile. While a block waits, the others of its
// multiprocessor decode.
extern "C" __global__ void __launch_bounds__(THREADS, TILE_BLOCKS) decode_tiles(const __grid_constant__ Layer layer)
{
    extern __shared__ __align__(128) uint4 memory[];
    Tile& tile = *(Tile*)memory;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    u32 tiles = (u32)layer.tile_count, step = gridDim.x / tiles, number = (u32)layer.tile_first + blockIdx.x % tiles;
    u32 down = blockIdx.x / tiles + (layer.row_order ? 0 : (u32)(layer.row_first / 16));
    u32 stop = layer.row_order ? (u32)layer.down : (u32)((layer.row_stop + 15) / 16);
    if (down >= stop) return; // of a part with few rows
    u32 length = __ldg(layer.tile_lengths + number);
    const u32* patches = layer.tile_patches + (u64)number * layer.tile_most; // each warp has every eighth
    const u32* cols = layer.tile_cols + (u64)number * layer.tile_most * 8;
    u32 col = warp * GROUP + 8 * t; // of the tile, the first of this lane's
    int first = (int)((i64)number * TILE_COLS + col - layer.col_first);
    // The first column whose factors it brings; the others are two further on each, and 32.
    [[maybe_unused]] i64 term_col = (i64)number * TILE_COLS + warp * GROUP + 8 * (g / 2) + g % 2;
    bool inside = first >= 0 && first + 40 <= (int)(layer.col_stop - layer.col_first);

    for (u32 n = threadIdx.x; n < BASIS_PIECES * 32; n += THREADS)
        tile.basis[n / 32][n % 32] = ((const uint4*)layer.basis)[n % 32 * 4 + n / 32];
    Classes classes(layer, (Scaled*)(&tile + 1));
    float gain = AFFINE ? __ldg(layer.scales) : 1.0f;
#if LIMBS
    float low_rank_scale = __ldg(layer.low_rank_scale);
#endif
#if TERMS
    for (int n = 0; n < 2 * CHUNKS; n++) {
        u32 four[4];
        for (int k = 0; k < 4; k++)
            four[k] = __ldg(col_terms(layer, term_col + n % 2 * 32 + 2 * k, t) + n / 2 * 4);
        tile.right[n / 2][n % 2][threadIdx.x] = *(uint4*)four;
    }
#endif

    u32 deltas = shared_address(tile.deltas);
    for (u32 n = threadIdx.x; n < WARPS * ITEMS * 8; n += THREADS) {
        u32 item = n / 8 % ITEMS * WARPS + n / 8 / ITEMS, both = item < length ? __ldg(cols + item * 8 + n % 8) : 0;
        tile.targets[0][n / 8][n % 8] = make_uint2(address_of(deltas, both & 0xFFFF), address_of(deltas, both >> 16));
    }
    for (u32 n = threadIdx.x; n < WARPS * ITEMS; n += THREADS) {
        u32 item = n % ITEMS * WARPS + n / ITEMS;
        tile.patches[0][n] = item < length ? __ldg(patches + item) : ALL;
        for (int turn = 0; turn < 4; turn++) tile.places[turn][0][n] = make_uint2(0, 0);
    }
    u32 count = (length - min(length, (u32)warp) + WARPS - 1) / WARPS;
    auto ask = [&](u32 strip, u32 turn) { // where things of a strip are: one warp, two strips before
        for (u32 n = lane; n < WARPS * ITEMS; n += 32)
            if (tile.patches[0][n] != ALL)
                copy_small<8>(&tile.places[turn % 4][0][n],
                              layer.places + (strip * (u32)layer.across + tile.patches[0][n]));
        u32 at = strip * 16 + lane;
        if (lane >= 16) return;
        if (at < (u32)layer.rows && layer.row_order)
            copy_small<4>(&tile.views[turn % 4][lane], layer.row_order + at);
        else
            tile.views[turn % 4][lane] = at < (u32)layer.rows ? at : ALL;
    };
    u32 symbols_to = shared_address(tile.words[warp]) + lane * 16;
    const u8* symbols_from = layer.buffer + lane % 8 * 16;
    auto fetch = [&](u32 turn) { // what is there, one strip before; the rows' part by one warp
        for (int n = 0; n < ITEMS; n += 4) {
            if (n + 4 > ITEMS && lane / 8 >= ITEMS - n) break;
            u32 code = tile.places[turn % 4][warp][n + lane / 8].x;
            if ((code & CODE_WIDTH) == 2) copy_to(symbols_to + n * 128, symbols_from + ((u64)(code >> CODE_BITS) << 6));
        }
        if (warp != WARPS - 2) return;
        u32 view = tile.views[turn % 4][lane % 16], line = view - (u32)layer.row_first;
        if (line >= (u32)(layer.row_stop - layer.row_first)) line = ALL; // ALL is beyond, too
        tile.lines[turn % 2][lane % 16] = line;
#if TERMS
        for (int piece = lane / 16; piece < TERMS; piece += 2)
            if (line != ALL)
                copy_16(&tile.left[turn % 2][piece][lane % 16 / 2 + lane % 2 * 8],
                        layer.left_limbs + (piece / CHUNKS * layer.rows + view) * layer.padded_rank + piece % CHUNKS * 16);
#endif
    };
    auto wait = [&] { // for all that this warp asked for and fetched
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncwarp();
    };
    __syncthreads();
    if (warp == WARPS - 1) {
        ask(down, 0);
        if (down + step < stop) ask(down + step, 1);
    }
    wait();
    __syncthreads();
    fetch(0);
    __syncthreads();
    u32 words_at = shared_address(tile.words[warp]) + g * 16 + t * 2, places_at = shared_address(tile.places[0][warp]);
    u32 targets_at = shared_address(tile.targets[warp]) + g * 8, lane_rows = t * 16;
    u32 near = address_of(deltas, col) ^ g * 8, next = address_of(deltas, col + 1) ^ g * 8;
    for (u32 turn = 0; down < stop; down += step, turn++) {
        wait();
        if (warp == WARPS - 1 && down + 2 * step < stop) ask(down + 2 * step, turn + 2);
        Basis basis;
        for (int n = 0; n < BASIS_PIECES; n++) ((uint4*)&basis)[n] = tile.basis[n][lane];
        u32 word = words_at, target = targets_at, place = places_at + turn % 4 * (u32)sizeof(tile.places[0]);
        for (u32 last = place + min(count, ITEMS) * 8; place < last; place += 8, target += 64, word += 128) {
            RowPair rows;
            rows.place = load_two(place);
            uint2 targets = load_two(target);
            rows.even = load_half(word), rows.odd = load_half(word + 8);
            float delta[8];
            decode_patch(layer, basis, classes, rows, gain, g, t, delta);
            store_four(targets.x ^ lane_rows, delta[0], delta[1], delta[2], delta[3]);
            store_four(targets.y ^ lane_rows, delta[4], delta[5], delta[6], delta[7]);
        }
#pragma unroll 1
        for (u32 index = ITEMS; index < count; index++) { // more keys than usual
            u32 item = index * WARPS + warp, both = __ldg(cols + item * 8 + g);
            RowPair rows;
            rows.place = __ldg(layer.places + (down * (u32)layer.across + __ldg(patches + item)));
            if ((rows.place.x & CODE_WIDTH) == 2) {
                const u16* symbols = (const u16*)words_of(layer, rows.place) + g * 8 + t;
                rows.even = __ldg(symbols), rows.odd = __ldg(symbols + 4);
            }
            float delta[8];
            decode_patch(layer, basis, classes, rows, gain, g, t, delta);
            store_four(address_of(deltas, both & 0xFFFF) ^ lane_rows, delta[0], delta[1], delta[2], delta[3]);
            store_four(address_of(deltas, both >> 16) ^ lane_rows, delta[4], delta[5], delta[6], delta[7]);
        }

        uint2 lines = ((const uint2*)tile.lines[turn % 2])[g];
        bool whole = __all_sync(ALL, inside && (int)(lines.x | lines.y) >= 0);
        BasePart base;
        ResultPart result;
        load_base(layer, first, lines, whole, base);
        __syncthreads();
        if (down + step < stop) fetch(turn + 1);
#if LIMBS
#if TERMS
        u32 left[TERMS][2];
        for (int piece = 0; piece < TERMS; piece++)
            for (int n = 0; n < 2; n++) left[piece][n] = ((const u32*)&tile.left[turn % 2][piece][g + 8 * n])[t];
#else
        const i8* left[2];
        for (int n = 0; n < 2; n++) {
            u32 line = n ? lines.y : lines.x;
            left[n] = layer.left_limbs + (line == ALL ? 0 : line + layer.row_first) * layer.padded_rank + 4 * t;
        }
#endif
#endif
#pragma unroll
        for (int start = 0; start < 8; start += 2) {
            int far = start / 4;
            float delta[2][2][2]; // [pair of columns][row][column]
            for (int pair = 0; pair < 2; pair++) {
                int word = start % 4 + pair;
                for (int n = 0; n < 2; n++) {
                    uint2 rows = load_two((n ? next : near) + far * 32 * 64 + word * 128);
                    delta[pair][0][n] = __uint_as_float(rows.x), delta[pair][1][n] = __uint_as_float(rows.y);
                }
#if LIMBS
                int sums[LIMBS][4] = {};
                for (u32 chunk = 0; chunk < (CHUNKS ? CHUNKS : (u32)layer.padded_rank / 16); chunk++) {
#if TERMS
                    u32 terms = ((const u32*)&tile.right[chunk][far][threadIdx.x])[word];
#else
                    u32 terms = __ldg(col_terms(layer, term_col + far * 32 + 2 * word, t) + chunk * 4);
#endif
                    for (int limb = 0; limb < LIMBS; limb++) {
#if TERMS
                        u32 upper = left[limb * CHUNKS + chunk][0], lower = left[limb * CHUNKS + chunk][1];
#else
                        i64 at = limb * layer.rows * layer.padded_rank + chunk * 16;
                        u32 upper = __ldg((const u32*)(left[0] + at)), lower = __ldg((const u32*)(left[1] + at));
#endif
                        multiply_bytes(sums[limb], upper, lower, terms);
                    }
                }
                for (int n = 0; n < 4; n++) {
                    u32 sum = 0; // a polynomial in 256; what overflows on the way comes back
                    for (int limb = LIMBS - 1; limb >= 0; limb--) sum = sum * 256 + (u32)sums[limb][n];
                    delta[pair][n / 2][n % 2] = delta[pair][n / 2][n % 2] + __int2float_rn((int)sum) * low_rank_scale;
                }
#endif
            }
#if HAS_PLAIN
            u32 special = 0; // asked only now, as late as can be, for the base is still on its way
            for (int n = 0; n < 4; n++) special |= zero_or_nan(base[far][n % 2][start % 4 + n / 2]);
            bool plain = layer.finite && !__any_sync(ALL, special);
            if (plain)
                for (int n = 0; n < 4; n++) {
                    u32 bits = base[far][n % 2][start % 4 + n / 2];
                    result[far][n % 2][start % 4 + n / 2] = add_plain(bits, delta[n / 2][n % 2][0], delta[n / 2][n % 2][1]);
                }
            else
                for (int n = 0; n < 4; n++) {
                    u32 bits = base[far][n % 2][start % 4 + n / 2];
                    result[far][n % 2][start % 4 + n / 2] = add_two(bits, delta[n / 2][n % 2][0], delta[n / 2][n % 2][1]);
                }
#else
            for (int n = 0; n < 8; n++) {
                int pair = n / 4, row = n / 2 % 2, k = n % 2, element = 2 * (start % 4 + pair) + k;
                u32 bits = BASE ? base[far][row][element * BASE_WORDS / 8] : 0;
                bits = add_one(BASE == 3 ? bits : bits >> 16 * k & 0xFFFF, delta[pair][row][k]);
                u32& word = result[far][row][element * RESULT_WORDS / 8];
                word = RESULT_WORDS == 8 || k == 0 ? bits : word | bits << 16;
            }
#endif
        }
        store_result(layer, first, lines, whole, result);
        __syncthreads();
    }
}

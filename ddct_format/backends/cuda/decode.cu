// dctq.v1 with patches of 16 x 16 (spec section 7.2): three kernels that turn a payload and a base into a tensor.
//
// prepare, place: fixed-width symbols, where each patch's begin, factors and orders in the layout that decoding reads.
// decode_rows, decode_edges, decode_tiles: symbols -> levels -> inverse transform -> scale -> low rank -> add -> round.
//
// Compiled at run time with -fmad=false: a multiply and an add must round twice. Macros, all given on the command line:
// BASE, RESULT: 0 nothing (the result is the float32 delta), 1 BF16, 2 F16, 3 F32. AFFINE: the quantiser. LIMBS: bytes
// in which multiplier times left is held, 0 without a low-rank part. CHUNKS: how many times 16 terms that part has, 0
// if more than 2. VECTOR: rows may be read and written 16 bytes at a time.
//
// Tensor cores add exactly as long as every sum of integers stays below 2^24; the inverse transform needs two products.
// The accumulators of the first are, lane by lane, an operand of the second, so nothing passes through shared memory.
// Lane 4g + t holds the levels of rows 4t to 4t+3 and columns 2g and 2g+1 of a patch, and the results of rows g and g+8
// and columns 4t to 4t+3.

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct Class;
struct Stream;

struct Layer { // see fused.py, which fills it; all pointers are device addresses, 0 if there is no such section
    i64 rows, cols, down, across, patches;
    const u8* class_map;
    i64 classes;
    const Class* class_table;
    const Stream* streams;
    i64 stream_count, map_blocks;
    u32* counts; // [map_blocks][classes + 1], the last of them counts the patches that have symbols
    uint2* places;
    const u8* ranges;
    i64 coded;
    const u8 *multipliers, *left, *right;
    i64 rank, padded_rank;
    i8 *left_limbs, *right_rows; // [LIMBS][rows][padded_rank], [cols][padded_rank]
    const u8 *row_keys, *col_keys;
    u32 *row_order, *col_order, *col_place;
    const float *scales, *low_rank_scale;
    const u32* basis;
    const void* base;
    void* result;
    i64 stride, row_first, row_stop, col_first, col_stop; // the part of the view that base and result hold
    i64 split;  // affine only: whether levels are not shifted by CENTRE
    i64 finite; // whether no delta can be Inf or NaN
};

struct Class {
    u32 low_levels, high_levels; // a byte each, see CODE_HIGH
    float factor;                // what the levels were divided by
    u32 words;                   // where its symbols begin, in units of 64 bytes from `class_table`
    u32 code;                    // see CODE_
    u32 unused[3];
};

struct Stream { // symbols of a class; where they lie is told in bytes from `class_table`, 0 if there is no such part
    i64 packed, packed_size, runs, runs_size, words, words_size;
    i64 totals; // u64 [2][place_blocks]
    i64 levels; // u8 [alphabet], 128 above their values
    i64 alphabet, width, prepare_blocks, place_blocks;
};

#define THREADS 256
#define WARPS (THREADS / 32)
#define MAP_BLOCK 1024
#define RUN_BLOCK 4096
#define DENSE_BLOCK (THREADS * 16)
#define FILL_BLOCK (THREADS * 64)
#define CODE_WIDTH 3 // 0 no symbols, 1 two bits, 2 four bits, 3 eight bits
#define CODE_SPLIT 4 // the first product needs two parts
#define CODE_HIGH 8  // the bytes of levels are the high bytes of float16, whose low bytes are zero, not levels plus 128
#define CODE_BITS 4
#define CENTRE 2     // affine symbols are coded as levels -2 to 1, so that the first product needs no parts
#define ALL 0xFFFFFFFFu

// ---------------------------------------------------------------------------------------------- prepare and place

struct Ranks {
    u32 counts[WARPS][256];
    u32 sums[256];
};

// Calls emit(index, rank) for the keys of [first, stop), the ranks of a key counting up from start[key] in order.
// Scan: start is not given but the number of smaller keys, which makes it a stable sort.
template <bool SCAN, typename Emit>
__device__ void rank_keys(Ranks& shared, const u8* keys, i64 first, i64 stop, const u32* start, int kinds, Emit emit)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    i64 part = ((stop - first + WARPS - 1) / WARPS + 31) / 32 * 32;
    i64 begin = min(first + warp * part, stop), end = min(begin + part, stop);
    for (int kind = threadIdx.x; kind < WARPS * 256; kind += THREADS) shared.counts[0][kind] = 0;
    __syncthreads();
    for (i64 index = begin + lane; index < end; index += 32) atomicAdd(&shared.counts[warp][keys[index]], 1u);
    __syncthreads();
    if (SCAN) {
        u32 total = 0;
        for (int w = 0; w < WARPS; w++) total += shared.counts[w][threadIdx.x];
        shared.sums[threadIdx.x] = total;
        __syncthreads();
        for (int step = 1; step < 256; step *= 2) {
            u32 other = threadIdx.x >= step ? shared.sums[threadIdx.x - step] : 0;
            __syncthreads();
            shared.sums[threadIdx.x] += other;
            __syncthreads();
        }
        shared.sums[threadIdx.x] -= total;
        __syncthreads();
    }
    for (int kind = threadIdx.x; kind < kinds; kind += THREADS) {
        u32 next = SCAN ? shared.sums[kind] : start[kind];
        for (int w = 0; w < WARPS; w++) {
            u32 count = shared.counts[w][kind];
            shared.counts[w][kind] = next;
            next += count;
        }
    }
    __syncthreads();
    for (i64 index = begin + lane; index - lane < end; index += 32) {
        int key = index < end ? keys[index] : 256;
        u32 same = __match_any_sync(ALL, key);
        u32 before = __popc(same & ((1u << lane) - 1));
        u32 next = key < 256 ? shared.counts[warp][key] : 0;
        __syncwarp();
        if (key < 256) {
            emit(index, next + before);
            if (before == 0) shared.counts[warp][key] = next + __popc(same);
        }
        __syncwarp();
    }
}

__device__ __forceinline__ int symbols_per_byte(int alphabet)
{
    return alphabet == 2 ? 8 : alphabet == 3 ? 5 : alphabet == 4 ? 4 : alphabet <= 6 ? 3 : alphabet <= 16 ? 2 : 1;
}

struct Codes { // a stream, found
    const u8 *packed, *runs, *levels;
    i64 packed_size, runs_size, words_size;
    u8* words;
    u64* totals;
    int alphabet, width;
    u32 place_blocks;

    __device__ Codes(const Layer& layer, const Stream& stream)
    {
        u8* start = (u8*)layer.class_table;
        packed = start + stream.packed;
        runs = stream.runs ? start + stream.runs : nullptr;
        levels = start + stream.levels;
        words = start + stream.words;
        totals = (u64*)(start + stream.totals);
        packed_size = stream.packed_size, runs_size = stream.runs_size, words_size = stream.words_size;
        alphabet = (int)stream.alphabet, width = (int)stream.width, place_blocks = (u32)stream.place_blocks;
    }
};

// Dense symbols to fields of WIDTH bits: 16 bytes a thread.
template <int PER_BYTE, int WIDTH> __device__ void repack(const Codes& stream, u32 block, const u16* table)
{
    i64 group = (i64)block * THREADS + threadIdx.x;
    if (group * 16 >= stream.packed_size) return;
    uint4 packed = ((const uint4*)stream.packed)[group];
    u32 bytes[4] = {packed.x, packed.y, packed.z, packed.w};
    constexpr int WORDS = PER_BYTE * WIDTH / 2;
    u32 words[WORDS + 1];
    u64 fields = 0;
    int filled = 0, done = 0;
#pragma unroll
    for (int index = 0; index < 16; index++) {
        fields |= (u64)table[bytes[index / 4] >> (8 * (index % 4)) & 255] << filled;
        filled += PER_BYTE * WIDTH;
        if (filled >= 32) {
            words[done++] = (u32)fields;
            fields >>= 32;
            filled -= 32;
        }
    }
    u32* target = (u32*)stream.words + group * WORDS;
#pragma unroll
    for (int index = 0; index < WORDS; index++) target[index] = words[index];
}

__device__ void repack_block(const Codes& stream, u32 block, u16* table)
{
    int alphabet = stream.alphabet, per_byte = symbols_per_byte(alphabet), width = stream.width;
    u32 rest = threadIdx.x, fields = 0;
    for (int digit = 0; digit < per_byte; digit++) {
        u32 symbol = rest % alphabet;
        rest /= alphabet;
        fields |= (width == 8 ? stream.levels[symbol] : symbol) << (width * digit);
    }
    table[threadIdx.x] = (u16)fields;
    __syncthreads();
    switch (per_byte) {
    case 8: repack<8, 2>(stream, block, table); break;
    case 5: repack<5, 2>(stream, block, table); break;
    case 4: repack<4, 2>(stream, block, table); break;
    case 3: repack<3, 4>(stream, block, table); break;
    case 2: width == 4 ? repack<2, 4>(stream, block, table) : repack<2, 8>(stream, block, table); break;
    default: repack<1, 8>(stream, block, table);
    }
}

__device__ u64 block_sum(u64 value, u64* shared)
{
    for (int step = 16; step; step /= 2) value += __shfl_down_sync(ALL, value, step);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    u64 total = 0;
    for (int warp = 0; warp < WARPS; warp++) total += shared[warp];
    __syncthreads();
    return total;
}

__device__ void load_runs(const Codes& stream, i64 first, u8 (&runs)[16], int& count)
{
    count = (int)max(0ll, min(16ll, stream.runs_size - first));
    if (count > 0) *(uint4*)runs = *(const uint4*)(stream.runs + first);
}

__device__ void total_runs(const Codes& stream, u32 block, u64* shared)
{
    alignas(16) u8 runs[16];
    int count;
    load_runs(stream, (i64)block * RUN_BLOCK + threadIdx.x * 16, runs, count);
    u32 reach = 0, valued = 0;
#pragma unroll
    for (int index = 0; index < 16; index++)
        if (index < count) {
            reach += runs[index] + (runs[index] != 255);
            valued += runs[index] != 255;
        }
    u64 sum = block_sum(reach, shared), values = block_sum(valued, shared);
    if (threadIdx.x == 0) {
        stream.totals[block] = sum;
        stream.totals[stream.place_blocks + block] = values;
    }
}

__device__ void expand_runs(const Codes& stream, u32 block, u64* shared)
{
    u32 blocks = stream.place_blocks;
    u64 reach = 0, value = 0;
    for (u32 earlier = threadIdx.x; earlier < block; earlier += THREADS) {
        reach += stream.totals[earlier];
        value += stream.totals[blocks + earlier];
    }
    reach = block_sum(reach, shared);
    value = block_sum(value, shared);
    alignas(16) u8 runs[16];
    int count;
    load_runs(stream, (i64)block * RUN_BLOCK + threadIdx.x * 16, runs, count);
    u32 own_reach = 0, own_values = 0;
#pragma unroll
    for (int index = 0; index < 16; index++)
        if (index < count) {
            own_reach += runs[index] + (runs[index] != 255);
            own_values += runs[index] != 255;
        }
    u32 sums = own_reach, values = own_values; // within the block they fit: 4096 * 256
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int step = 1; step < 32; step *= 2) {
        u32 a = __shfl_up_sync(ALL, sums, step), b = __shfl_up_sync(ALL, values, step);
        if (lane >= step) sums += a, values += b;
    }
    if (lane == 31) shared[warp] = (u64)values << 32 | sums;
    __syncthreads();
    for (int earlier = 0; earlier < warp; earlier++) {
        reach += (u32)shared[earlier];
        value += shared[earlier] >> 32;
    }
    reach += sums - own_reach;
    value += values - own_values;
    int base = stream.alphabet - 1, per_byte = base > 1 ? symbols_per_byte(base) : 1, width = stream.width;
#pragma unroll
    for (int index = 0; index < 16; index++) {
        if (index >= count) break;
        reach += runs[index];
        if (runs[index] == 255) continue;
        u32 symbol = 1;
        if (base > 1) {
            u32 byte = stream.packed[value / per_byte];
            for (u32 digit = (u32)(value % per_byte); digit; digit--) byte /= base;
            symbol = byte % base + 1;
        }
        if (width == 8) {
            stream.words[reach] = stream.levels[symbol];
        } else {
            u64 bit = reach * width;
            atomicOr((u32*)stream.words + bit / 32, symbol << (bit % 32));
        }
        reach++;
        value++;
    }
}

__device__ void fill(const Codes& stream, u32 block)
{
    u32 word = stream.width == 8 ? 0x01010101u * stream.levels[0] : 0;
    uint4 words = {word, word, word, word};
    i64 groups = stream.words_size / 16;
    for (int index = 0; index < 4; index++) {
        i64 group = ((i64)block * 4 + index) * THREADS + threadIdx.x;
        if (group < groups) ((uint4*)stream.words)[group] = words;
    }
}

__device__ void weigh_left(const Layer& layer, u32 block)
{
    i64 row = (i64)block * THREADS + threadIdx.x;
    if (row >= layer.rows) return;
    for (int first = 0; first < layer.padded_rank; first += 4) {
        u32 limbs[3] = {0, 0, 0};
        for (int term = 0; term < 4; term++) {
            int k = first + term;
            if (k >= layer.rank) break;
            int multiplier = layer.multipliers[2 * k] | layer.multipliers[2 * k + 1] << 8;
            int weighted = multiplier * (i8)layer.left[k * layer.rows + row];
            for (int limb = 0; limb < 3; limb++) { // balanced digits of base 256; the last one fits for |left| <= 128
                int digit = (i8)weighted;
                weighted = (weighted - digit) >> 8;
                limbs[limb] |= (u32)(u8)digit << (8 * term);
            }
        }
        for (int limb = 0; limb < LIMBS; limb++)
            *(u32*)(layer.left_limbs + (limb * layer.rows + row) * layer.padded_rank + first) = limbs[limb];
    }
}

__device__ void turn_right(const Layer& layer, u32 block)
{
    i64 col = (i64)block * THREADS + threadIdx.x;
    if (col >= layer.cols) return;
    for (int first = 0; first < layer.padded_rank; first += 4) {
        u32 terms = 0;
        for (int k = first; k < min((i64)first + 4, layer.rank); k++)
            terms |= (u32)layer.right[k * layer.cols + col] << (8 * (k - first));
        *(u32*)(layer.right_rows + col * layer.padded_rank + first) = terms;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) prepare(const __grid_constant__ Layer layer)
{
    __shared__ union { Ranks ranks; u16 table[256]; u64 sums[WARPS]; u32 counts[257]; } shared;
    i64 block = blockIdx.x;
    if (layer.row_keys && block-- == 0) {
        rank_keys<true>(shared.ranks, layer.row_keys, 0, layer.rows, nullptr, 256,
                        [&](i64 row, u32 rank) { layer.row_order[rank] = (u32)row; });
        return;
    }
    if (layer.col_keys && block-- == 0) {
        rank_keys<true>(shared.ranks, layer.col_keys, 0, layer.cols, nullptr, 256, [&](i64 col, u32 rank) {
            layer.col_order[rank] = (u32)col;
            layer.col_place[col] = rank;
        });
        return;
    }
    if (layer.class_map) {
        if (block < layer.map_blocks) {
            int kinds = (int)layer.classes + 1;
            for (int kind = threadIdx.x; kind < kinds; kind += THREADS) shared.counts[kind] = 0;
            __syncthreads();
            for (int index = 0; index < MAP_BLOCK; index += THREADS) {
                i64 patch = block * MAP_BLOCK + index + threadIdx.x;
                if (patch < layer.patches) {
                    int number = layer.class_map[patch];
                    atomicAdd(&shared.counts[number], 1u);
                    if (AFFINE && layer.class_table[number].code & CODE_WIDTH)
                        atomicAdd(&shared.counts[layer.classes], 1u);
                }
            }
            __syncthreads();
            for (int kind = threadIdx.x; kind < kinds; kind += THREADS)
                layer.counts[block * kinds + kind] = shared.counts[kind];
            return;
        }
        block -= layer.map_blocks;
    }
    for (int number = 0; number < layer.stream_count; number++) {
        const Stream& stream = layer.streams[number];
        if (block < stream.prepare_blocks) {
            const Codes codes(layer, stream);
            if (!codes.runs)
                repack_block(codes, (u32)block, shared.table);
            else if (block < stream.place_blocks)
                total_runs(codes, (u32)block, shared.sums);
            else
                fill(codes, (u32)(block - stream.place_blocks));
            return;
        }
        block -= stream.prepare_blocks;
    }
#if LIMBS
    i64 left_blocks = (layer.rows + THREADS - 1) / THREADS;
    if (block < left_blocks)
        weigh_left(layer, (u32)block);
    else
        turn_right(layer, (u32)(block - left_blocks));
#endif
}

__device__ __forceinline__ u32 half_bits(const u8* planes, i64 plane, i64 index)
{
    return planes[index] | planes[plane + index] << 8;
}

__device__ void write_place(const Layer& layer, i64 patch, int number, u32 ordinal, u32 coded)
{
    const Class& entry = layer.class_table[number];
    u32 width = entry.code & CODE_WIDTH, extra = number;
    if (AFFINE)
        extra = width ? half_bits(layer.ranges, layer.coded, coded) |
                            half_bits(layer.ranges + 2 * layer.coded, layer.coded, coded) << 16
                      : 0;
    u32 unit = width ? entry.words + (ordinal << (width - 1)) : 0;
    layer.places[patch] = make_uint2(unit << CODE_BITS | entry.code, extra);
}

extern "C" __global__ void __launch_bounds__(THREADS) place(const __grid_constant__ Layer layer)
{
    __shared__ union { struct { Ranks ranks; u32 start[257]; u32 coded[MAP_BLOCK / 32], before[MAP_BLOCK / 32]; } map; u64 sums[WARPS]; } shared;
    i64 block = blockIdx.x;
    if (block < layer.map_blocks) {
        i64 first = block * MAP_BLOCK, stop = min(first + MAP_BLOCK, layer.patches);
        if (!layer.class_map) {
            for (i64 patch = first + threadIdx.x; patch < stop; patch += THREADS)
                write_place(layer, patch, 0, (u32)patch, (u32)patch);
            return;
        }
        int kinds = (int)layer.classes + 1;
        for (int kind = threadIdx.x; kind < kinds; kind += THREADS) shared.map.start[kind] = 0;
        __syncthreads();
        for (i64 index = threadIdx.x; index < block * kinds; index += THREADS)
            atomicAdd(&shared.map.start[index % kinds], layer.counts[index]);
        if (AFFINE) { // how many patches with symbols come before each group of 32
            for (int index = 0; index < MAP_BLOCK; index += THREADS) {
                i64 patch = first + index + threadIdx.x;
                bool coded = patch < stop && layer.class_table[layer.class_map[patch]].code & CODE_WIDTH;
                u32 votes = __ballot_sync(ALL, coded);
                if (threadIdx.x % 32 == 0) shared.map.coded[(index + threadIdx.x) / 32] = votes;
            }
        }
        __syncthreads();
        if (AFFINE && threadIdx.x < MAP_BLOCK / 32) {
            u32 before = shared.map.start[layer.classes];
            for (int group = 0; group < threadIdx.x; group++) before += __popc(shared.map.coded[group]);
            shared.map.before[threadIdx.x] = before;
        }
        __syncthreads();
        rank_keys<false>(shared.map.ranks, layer.class_map, first, stop, shared.map.start, (int)layer.classes,
                         [&](i64 patch, u32 rank) {
                             u32 coded = 0;
                             if (AFFINE) {
                                 int within = (int)(patch - first);
                                 coded = shared.map.before[within / 32] + __popc(
                                     shared.map.coded[within / 32] & ((1u << within % 32) - 1));
                             }
                             write_place(layer, patch, layer.class_map[patch], rank, coded);
                         });
        return;
    }
    block -= layer.map_blocks;
    for (int number = 0; number < layer.stream_count; number++) {
        const Stream& stream = layer.streams[number];
        if (block < stream.place_blocks) {
            expand_runs(Codes(layer, stream), (u32)block, shared.sums);
            return;
        }
        block -= stream.place_blocks;
    }
}

// ------------------------------------------------------------------------------------------------------- one patch

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

__device__ __forceinline__ u32 permute(u32 low, u32 high, u32 selector)
{
    u32 result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
    return result;
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

// A patch's place and, of symbols of two bits, the rows that this lane takes part in.
struct Symbols {
    uint2 place;
    uint4 rows;
};

__device__ __forceinline__ const u8* words_of(const Layer& layer, uint2 place)
{
    return (const u8*)layer.class_table + ((u64)(place.x >> CODE_BITS) << 6);
}

__device__ __forceinline__ void load_symbols(const Layer& layer, int t, Symbols& symbols)
{
    if ((symbols.place.x & CODE_WIDTH) == 1) symbols.rows = __ldg((const uint4*)words_of(layer, symbols.place) + t);
}

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
        const u8* place = words_of(layer, symbols.place) + t * 32 + g;
        u32 digits = __ldg(place) | __ldg(place + 8) << 8 | __ldg(place + 16) << 16 | __ldg(place + 24) << 24;
        u32 evens = digits & 0x07070707, odds = digits >> 4 & 0x07070707;
        even = permute(low, high, gather_nibbles(evens));
        odd = permute(low, high, gather_nibbles(odds));
    } else {
        const u16* place = (const u16*)words_of(layer, symbols.place) + t * 32 + g;
        u32 upper = __ldg(place) | __ldg(place + 8) << 16, lower = __ldg(place + 16) | __ldg(place + 24) << 16;
        even = permute(upper, lower, 0x6420);
        odd = permute(upper, lower, 0x7531);
    }
    if (symbols.place.x & CODE_HIGH) {
        halves[0] = permute(even, 0, 0x1404);
        halves[1] = permute(even, 0, 0x3424);
        halves[2] = permute(odd, 0, 0x1404);
        halves[3] = permute(odd, 0, 0x3424);
    } else {
        to_halves(even, halves[0], halves[1]);
        to_halves(odd, halves[2], halves[3]);
    }
}

__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 pair(float low, float high)
{
    u32 result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

__device__ __forceinline__ void pairs(const float (&left)[4], const float (&right)[4], u32 (&operand)[4])
{
    operand[0] = pair(left[0], left[1]);
    operand[1] = pair(left[2], left[3]);
    operand[2] = pair(right[0], right[1]);
    operand[3] = pair(right[2], right[3]);
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

struct Scaled { // what a class's integers are made of and multiplied with
    u32 low_levels, high_levels;
    float factor, scale;
};

__device__ __forceinline__ void load_classes(const Layer& layer, Scaled* classes)
{
    if (AFFINE) return;
    for (int number = threadIdx.x; number < layer.classes; number += THREADS) {
        uint4 entry = __ldg((const uint4*)(layer.class_table + number));
        classes[number] = {entry.x, entry.y, __uint_as_float(entry.z), __ldg(layer.scales + number)};
    }
    __syncthreads();
}

// The delta of a patch but for the low-rank part; laid out as `integers` of inverse.
__device__ __forceinline__ void decode_patch(const Layer& layer, const Basis& basis, const Scaled* classes,
                                             const Symbols& symbols, float gain, int g, int t, float (&delta)[8])
{
    uint2 place = symbols.place;
    for (int n = 0; n < 8; n++) delta[n] = 0.0f;
    if ((place.x & CODE_WIDTH) == 0) return;
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
    int sums[2][4] = {};
#pragma unroll
    for (int limb = LIMBS - 1; limb >= 0; limb--) { // a polynomial in 256; what overflows on the way comes back
        if (limb < LIMBS - 1)
            for (int n = 0; n < 8; n++) sums[n / 4][n % 4] = (int)((u32)sums[n / 4][n % 4] << 8);
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
    for (int n = 0; n < 8; n++) delta[n] = delta[n] + __int2float_rn(sums[n >> 1 & 1][(n & 1) + (n >> 2) * 2]) * scale;
}
#endif

// ------------------------------------------------------------------------------------------------ elements and rows

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

#define STRIP (8 / (int)sizeof(ResultBits)) // patches side by side whose rows are 128 bytes together
#ifndef RUN
#define RUN 4 // strips of a warp
#endif
#ifndef BLOCKS
#define BLOCKS 3
#endif
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

__device__ __forceinline__ void copy_16(void* target, const void* source)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(target)), "l"(source));
}

// No column order: a warp takes strips through shared memory, where whole lines become the pieces that lanes hold; the
// next strip is on its way meanwhile. Strips that are not whole are left to decode_edges.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) decode_rows(const __grid_constant__ Layer layer)
{
#if STAGED
    __shared__ Scaled classes[AFFINE ? 1 : 255];
    extern __shared__ uint4 memory[]; // two stages a warp
    load_classes(layer, classes);
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 strips = (u32)((layer.across + STRIP - 1) / STRIP), runs = (strips + RUN - 1) / RUN;
    u32 warp = blockIdx.x * WARPS + threadIdx.x / 32, down = warp / runs;
    u32 strip = (warp - down * runs) * RUN, stop = min(strip + RUN, strips);
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
    __shared__ Scaled classes[AFFINE ? 1 : 255];
    load_classes(layer, classes);
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
    load_symbols(layer, t, symbols);
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

#define TILE_COLS (BASE == 3 || RESULT == 3 ? 512 : 1024)
#define TILE_PITCH (TILE_COLS + 16 / (int)sizeof(ResultBits)) // so that rows begin in different banks
#define MOST_ACROSS 65536

// A column order: a block owns 16 rows of the order and TILE_COLS columns of the view, held in shared memory. Neighbours
// in the order lie near each other in the view, for keys are few and the sort is stable, but not side by side.
extern "C" __global__ void __launch_bounds__(THREADS) decode_tiles(const __grid_constant__ Layer layer)
{
    extern __shared__ uint4 memory[];
    __shared__ Scaled classes[AFFINE ? 1 : 255];
    load_classes(layer, classes);
    ResultBits(*tile)[TILE_PITCH] = (ResultBits(*)[TILE_PITCH])memory;
    u32* wanted = (u32*)(tile + 16);
    u32 words = (u32)((layer.across + 31) / 32);
    u16* list = (u16*)(wanted + words); // at most TILE_COLS
    __shared__ u32 length;
    u32 tiles = (u32)((layer.cols + TILE_COLS - 1) / TILE_COLS), down = blockIdx.x / tiles;
    i64 first = (i64)(blockIdx.x % tiles) * TILE_COLS, stop = min(first + TILE_COLS, layer.cols);
    first = max(first, layer.col_first);
    stop = min(stop, layer.col_stop);
    if (first >= stop) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    for (u32 word = threadIdx.x; word < words; word += THREADS) wanted[word] = 0;
    if (threadIdx.x == 0) length = 0;
    __syncthreads();
    for (i64 col = first + threadIdx.x; col < stop; col += THREADS) {
        u32 patch = layer.col_place[col] / 16;
        atomicOr(wanted + patch / 32, 1u << patch % 32);
    }
#if BASE
    // The base, converted to the result's type only when it is added to: BASE == RESULT here, see fused.py.
    for (int row = warp; row < 16; row += WARPS) {
        i64 place = (i64)down * 16 + row;
        if (place >= layer.rows) break;
        i64 view = layer.row_order ? layer.row_order[place] : place;
        if (view < layer.row_first || view >= layer.row_stop) continue;
        const BaseBits* source = (const BaseBits*)layer.base + (view - layer.row_first) * layer.stride + first - layer.col_first;
        int count = (int)(stop - first);
#if VECTOR
        for (int piece = lane; piece < count * (int)sizeof(BaseBits) / 16; piece += 32)
            copy_16((uint4*)tile[row] + piece, (const uint4*)source + piece);
#else
        for (int n = lane; n < count; n += 32) tile[row][n] = source[n];
#endif
    }
    asm volatile("cp.async.commit_group;");
#endif
    __syncthreads();
    for (u32 word = threadIdx.x; word < words; word += THREADS) {
        u32 bits = wanted[word];
        if (!bits) continue;
        u32 next = atomicAdd(&length, __popc(bits));
        for (; bits; bits &= bits - 1) list[next++] = (u16)(word * 32 + __ffs(bits) - 1);
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
#if BASE
    asm volatile("cp.async.wait_all;");
#endif
    __syncthreads();
    const uint2* places = layer.places + (u64)down * layer.across;
    u32 count = length, last = (u32)layer.cols - 1;
    u32 width = (u32)(stop - first);
    [[maybe_unused]] bool finite = layer.finite;
    for (u32 item = warp; item < count; item += WARPS) {
        u32 patch = list[item], begin = patch * 16;
        Symbols symbols;
        symbols.place = __ldg(places + patch);
        u32 at[4]; // columns of the tile; what is not in it is parked beyond its end
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 place = begin + 4 * t + k;
            at[k] = min((place <= last ? __ldg(layer.col_order + place) : ALL) - (u32)first, width);
        }
#if LIMBS
        u32 cols[2];
        for (int part = 0; part < 2; part++)
            cols[part] = __ldg(layer.col_order + min(last, begin + g / 2 * 4 + g % 2 + 2 * part));
        Right right;
        load_right(layer, cols, t, right);
#endif
        load_symbols(layer, t, symbols);
        float delta[8];
        decode_patch(layer, basis, classes, symbols, gain, g, t, delta);
#if LIMBS
        add_low_rank(layer, left, right, low_rank_scale, t, delta);
#endif
        ResultBits* upper = tile[g];
        ResultBits* lower = tile[g + 8];
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
    for (int row = warp; row < 16; row += WARPS) {
        i64 place = (i64)down * 16 + row;
        if (place >= layer.rows) break;
        i64 view = layer.row_order ? layer.row_order[place] : place;
        if (view < layer.row_first || view >= layer.row_stop) continue;
        ResultBits* target = (ResultBits*)layer.result + (view - layer.row_first) * layer.stride + first - layer.col_first;
        int count = (int)(stop - first);
#if VECTOR
        for (int piece = lane; piece < count * (int)sizeof(ResultBits) / 16; piece += 32)
            ((uint4*)target)[piece] = ((uint4*)tile[row])[piece];
#else
        for (int n = lane; n < count; n += 32) target[n] = tile[row][n];
#endif
    }
}

// Symbols of fixed width, where each patch's begin, factors and orders in the layout that decoding reads.

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
        u8* start = (u8*)layer.buffer;
        packed = start + stream.packed;
        runs = stream.runs ? start + stream.runs : nullptr;
        levels = start + stream.levels;
        words = start + stream.words;
        totals = (u64*)(start + stream.totals);
        packed_size = stream.packed_size, runs_size = stream.runs_size, words_size = stream.words_size;
        alphabet = (int)stream.alphabet, width = (int)stream.width, place_blocks = (u32)stream.place_blocks;
    }
};

// 16 bytes from any address; up to three more are read on either side.
__device__ __forceinline__ uint4 load_16(const u8* bytes)
{
    u32 shift = (u32)((u64)bytes & 3) * 8;
    const u32* words = (const u32*)((u64)bytes & ~3ull);
    u32 a = words[0], b = words[1], c = words[2], d = words[3], e = shift ? words[4] : 0;
    return make_uint4(__funnelshift_r(a, b, shift), __funnelshift_r(b, c, shift), __funnelshift_r(c, d, shift),
                      __funnelshift_r(d, e, shift));
}

// Dense symbols to fields of WIDTH bits: 16 bytes a thread.
template <int PER_BYTE, int WIDTH> __device__ void repack(const Codes& stream, u32 block, const u32* table)
{
    i64 group = (i64)block * THREADS + threadIdx.x;
    if (group * 16 >= stream.packed_size) return;
    uint4 packed = load_16(stream.packed + group * 16);
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

__device__ void repack_block(const Codes& stream, u32 block, u32* table)
{
    int alphabet = stream.alphabet, per_byte = symbols_per_byte(alphabet), width = stream.width;
    u32 rest = threadIdx.x, fields = 0;
    for (int digit = 0; digit < per_byte; digit++) {
        u32 symbol = rest % alphabet;
        rest /= alphabet;
        fields |= (width == 8 ? stream.levels[symbol] : symbol) << (width * digit);
    }
    table[threadIdx.x] = fields;
    __syncthreads();
    switch (per_byte) {
    case 8: width == 4 ? repack<8, 4>(stream, block, table) : repack<8, 2>(stream, block, table); break;
    case 5: width == 4 ? repack<5, 4>(stream, block, table) : repack<5, 2>(stream, block, table); break;
    case 4: width == 4 ? repack<4, 4>(stream, block, table) : repack<4, 2>(stream, block, table); break;
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
    if (count > 0) *(uint4*)runs = load_16(stream.runs + first);
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
    __shared__ union { Ranks ranks; u32 table[256]; u64 sums[WARPS]; u32 counts[257]; } shared;
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

struct TileList {
    u32 wanted[MOST_ACROSS / 32]; // a bit for each patch
    u32 length;
};

// Which patches of the order have columns in a tile of the view, in any order, and which columns of the tile those are:
// columns g and g + 8 of each patch in one word, TILE_COLS for those that lie elsewhere.
__device__ void list_tile(const Layer& layer, TileList& list, u32 tile)
{
    i64 first = (i64)tile * TILE_COLS;
    u32 width = (u32)min((i64)TILE_COLS, layer.cols - first), words = (u32)((layer.across + 31) / 32);
    u32* patches = layer.tile_patches + (u64)tile * layer.tile_most;
    u32* cols = layer.tile_cols + (u64)tile * layer.tile_most * 8;
    for (u32 word = threadIdx.x; word < words; word += THREADS) list.wanted[word] = 0;
    if (threadIdx.x == 0) list.length = 0;
    __syncthreads();
    for (u32 n = threadIdx.x; n < width; n += THREADS) {
        u32 patch = layer.col_place[first + n] / 16;
        atomicOr(list.wanted + patch / 32, 1u << patch % 32);
    }
    __syncthreads();
    for (u32 word = threadIdx.x; word < words; word += THREADS) {
        u32 bits = list.wanted[word];
        if (!bits) continue;
        u32 next = atomicAdd(&list.length, __popc(bits));
        for (; bits; bits &= bits - 1) patches[next++] = word * 32 + __ffs(bits) - 1;
    }
    __syncthreads();
    auto col_of = [&](u32 place) {
        u32 col = (place < layer.cols ? layer.col_order[place] : ALL) - (u32)first;
        return col < width ? col : TILE_COLS;
    };
    for (u32 n = threadIdx.x; n < list.length * 8; n += THREADS) {
        u32 place = patches[n / 8] * 16 + n % 8;
        cols[n] = col_of(place) | col_of(place + 8) << 16;
    }
    if (threadIdx.x == 0) layer.tile_lengths[tile] = list.length;
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
    __shared__ union {
        struct { Ranks ranks; u32 start[257]; u32 coded[MAP_BLOCK / 32], before[MAP_BLOCK / 32]; } map;
        u64 sums[WARPS];
        TileList tile;
    } shared;
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
    list_tile(layer, shared.tile, (u32)block);
}

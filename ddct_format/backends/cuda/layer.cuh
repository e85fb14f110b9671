// dctq.v1 with patches of 16 x 16 (spec section 7.2): three kernels that turn a payload and a base into a tensor.
//
// prepare, place: fixed-width symbols, where each patch's begin, factors and orders in the layout that decoding reads.
// decode_rows, decode_edges, decode_tiles: symbols -> levels -> inverse transform -> scale -> low rank -> add -> round.
//
// Compiled at run time with -fmad=false: a multiply and an add must round twice. Macros, all given on the command line:
// BASE, RESULT: 0 nothing (the result is the float32 delta), 1 BF16, 2 F16, 3 F32. AFFINE: the quantiser. LIMBS: bytes
// in which multiplier times left is held, 0 without a low-rank part. CHUNKS: how many times 16 terms that part has, 0
// if those are too many. VECTOR: rows may be read and written 16 bytes at a time.
//
// Tensor cores add exactly as long as every sum of integers stays below 2^24; the inverse transform needs two products.
// The accumulators of the first are, lane by lane, an operand of the second, so nothing passes through shared memory.
// Lane 4g + t holds the levels of rows 4t to 4t+3 and columns 2g and 2g+1 of a patch, and the results of rows g and g+8
// and columns 4t to 4t+3.

struct Class;
struct Stream;

struct Layer { // see fused.py, which fills it; all pointers are device addresses, 0 if there is no such section
    const u8* buffer; // the payload, and all that belongs to it
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
    u32 *tile_lengths, *tile_patches, *tile_cols; // [tiles], [tiles][tile_most], [tiles][tile_most][8], see prepare.cu
    i64 tile_most, tile_first, tile_count;        // patches of a tile, and which tiles base and result have a part in
    const float *scales, *low_rank_scale;
    const u32* basis;
    const void* base;
    void* result;
    i64 stride, row_first, row_stop, col_first, col_stop; // the part of the view that base and result hold
    i64 split;  // affine only: whether levels are not shifted by CENTRE
    i64 finite; // whether no delta can be Inf or NaN
    i64 run;    // strips of a warp
};

struct Class {
    u32 low_levels, high_levels; // a byte each, see CODE_HIGH
    float factor;                // what the levels were divided by
    u32 words;                   // where its symbols begin, in units of 64 bytes from `buffer`
    u32 code;                    // see CODE_
    u32 unused[3];
};

struct Stream { // symbols of a class; where they lie is told in bytes from `buffer`, 0 if there is no such part
    i64 packed, packed_size, runs, runs_size, words, words_size;
    i64 totals; // u64 [2][place_blocks]
    i64 levels; // u8 [alphabet], 128 above their values
    i64 alphabet, width, prepare_blocks, place_blocks;
};

#define MAP_BLOCK 1024
#define RUN_BLOCK 4096
#define DENSE_BLOCK (THREADS * 16)
#define FILL_BLOCK (THREADS * 64)
#define CODE_WIDTH 3 // 0 no symbols, 1 two bits, 2 four bits, 3 eight bits
#define CODE_SPLIT 4 // the first product needs two parts
#define CODE_HIGH 8  // the bytes of levels are the high bytes of float16, whose low bytes are zero, not levels plus 128
#define CODE_BITS 4
#define CENTRE 2     // affine symbols are coded as levels -2 to 1, so that the first product needs no parts
#define TILE_COLS 512     // of a block of decode_tiles, 64 for each warp
#define MOST_ACROSS 65536 // patches side by side, where columns are reordered

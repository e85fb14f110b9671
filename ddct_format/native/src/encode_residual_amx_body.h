/* The low-rank part of an encoder's delta by the processor's matrix unit (AMX): left factors in two parts of 8 bits each,
 * right ones, which are small whole numbers, as they are. Included by encode_residual_body.h for AVX-512. */
enum { FEWEST_TERMS = 16, MOST_TERMS = 64, TERMS_OF_TILE = 32, TILE_SHORTS = 512, TILES_AT_ONCE = 4 };

/* Right factors of 16 columns and 32 terms a tile, pairs of terms side by side. NULL if that would round them, or where
 * vectors are as fast. */
static const uint16_t *arrange_tiles(const quantise_plan *plan, size_t cols, size_t stride,
                                     const residual_columns *columns, uint16_t *tiles) {
    const size_t depth = (plan->rank + TERMS_OF_TILE - 1) / TERMS_OF_TILE;
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const uint16_t *begin = tiles;
    if (plan->rank < FEWEST_TERMS || plan->rank > MOST_TERMS || plan->patch % TILE_ROWS || !tiles_are_permitted())
        return NULL;
    __m512i lost = _mm512_setzero_si512();
    for (size_t c = 0; c < stride; c += WIDE) {
        const __mmask16 inside = cols > c + WIDE ? 0xFFFF : cols > c ? (__mmask16)((1u << (cols - c)) - 1) : 0;
        const __m512i place = columns->places == NULL ? _mm512_add_epi32(_mm512_set1_epi32((int)c), lanes)
                                                      : _mm512_maskz_loadu_epi32(inside, columns->places + c);
        for (uint32_t k = 0; k < depth * TERMS_OF_TILE; k += 2, tiles += 2 * WIDE) {
            __m512i pair[2];
            for (uint32_t i = 0; i < 2; i++)
                pair[i] = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), k + i < plan->rank ? inside : 0, place,
                                                      plan->right + (k + i < plan->rank ? k + i : 0) * cols, 4);
            lost = _mm512_or_si512(lost, _mm512_or_si512(pair[0], pair[1]));
            _mm512_storeu_si512(tiles, _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(pair[0], 16), pair[1]));
        }
    }
    return _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xFFFF)) ? NULL : begin;
}

/* What the left factors' signs turned round leave: the upper halves of their patterns, then those of what is left. */
static void split_left(const float *left, size_t height, uint32_t rank, uint16_t parts[2][TILE_ROWS][MOST_TERMS]) {
    memset(parts, 0, 2 * sizeof *parts);
    for (size_t r = 0; r < height; r++)
        for (uint32_t k = 0; k < rank; k++) {
            float whole = -left[r * rank + k];
            uint32_t bits;
            memcpy(&bits, &whole, sizeof bits);
            parts[0][r][k] = (uint16_t)(bits >> 16);
            float rest = whole - bits_to_float(bits & 0xFFFF0000u);
            memcpy(&bits, &rest, sizeof bits);
            parts[1][r][k] = (uint16_t)((bits + 0x8000) >> 16);
        }
}

#define FOR_TILES(STEP, COUNT)                                                                                      \
    STEP(0);                                                                                                        \
    if ((COUNT) > 1) {                                                                                              \
        STEP(1);                                                                                                    \
        STEP(2);                                                                                                    \
        STEP(3);                                                                                                    \
    }

/* 16 rows, all columns; several tiles at a time, because a product takes a while. */
static void subtract_tiles(const quantise_plan *plan, const float *left, size_t height, const uint16_t *tiles,
                           float *rows, size_t stride) {
    const size_t depth = (plan->rank + TERMS_OF_TILE - 1) / TERMS_OF_TILE;
    const size_t pitch = stride * sizeof *rows;
    uint16_t parts[2][TILE_ROWS][MOST_TERMS] __attribute__((aligned(64)));
    begin_tiles();
    for (size_t top = 0; top < height; top += TILE_ROWS, left += TILE_ROWS * plan->rank) {
        split_left(left, height - top < TILE_ROWS ? height - top : TILE_ROWS, plan->rank, parts);
        for (size_t c = 0, count; c < stride; c += count * WIDE) {
            count = c + TILES_AT_ONCE * WIDE <= stride ? TILES_AT_ONCE : 1;
            float *place = rows + top * stride + c;
            const uint16_t *right = tiles + c / WIDE * depth * TILE_SHORTS;
#define LOAD(N) TILE_LOAD(N, place + N * WIDE, pitch)
#define MULTIPLY(N)                                                                                                 \
    TILE_LOAD(6, right + (N * depth + part) * TILE_SHORTS, TILE_ROW_BYTES);                                         \
    TILE_PRODUCT(tdpbf16ps, N, 4, 6);                                                                               \
    TILE_PRODUCT(tdpbf16ps, N, 5, 6)
#define STORE(N) TILE_STORE(N, place + N * WIDE, pitch)
            FOR_TILES(LOAD, count)
            for (size_t part = 0; part < depth; part++) {
                TILE_LOAD(4, parts[0][0] + part * TERMS_OF_TILE, sizeof parts[0][0]);
                TILE_LOAD(5, parts[1][0] + part * TERMS_OF_TILE, sizeof parts[1][0]);
                FOR_TILES(MULTIPLY, count)
            }
            FOR_TILES(STORE, count)
        }
    }
    end_tiles();
}
#undef FOR_TILES
#undef LOAD
#undef MULTIPLY
#undef STORE

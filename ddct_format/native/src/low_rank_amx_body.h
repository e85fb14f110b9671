/* The low-rank part by the matrix unit: a factor's three bytes are multiplied apart, 64 terms by one instruction, exactly.
 * Included by kernels_body.h for AVX-512. */

/* Bytes of the factors of the rows [first, first + height) of the patches, all others being 0. */
static void prepare_factor_bytes(const dctq_layer *d, uint64_t first, uint32_t height) {
    uint8_t(*bytes)[MAX_PATCH][MAX_RANK] = d->scratch->factor_bytes;
    memset(bytes, 0, sizeof d->scratch->factor_bytes);
    for (uint32_t term = 0; term < d->rank; term++) {
        uint16_t multiplier;
        memcpy(&multiplier, d->multipliers + 2 * (size_t)term, sizeof multiplier);
        const int8_t *left = d->left + term * d->rows;
        for (uint32_t i = 0; i < height; i++) {
            uint32_t factor = (uint32_t)(multiplier * left[d->row_order == NULL ? first + i : d->row_order[first + i]]);
            for (int plane = 0; plane < 3; plane++)
                bytes[plane][i][term] = (uint8_t)(factor >> 8 * plane);
        }
    }
}

/* As add_low_rank(), whole tiles at a time; the lower two bytes have no sign. */
static void add_low_rank_tiles(const dctq_layer *d, uint64_t column, size_t count, float *delta) {
    int32_t sums[3][TILE_ROWS][16] __attribute__((aligned(64)));
    const size_t depth = (d->rank + TILE_ROW_BYTES - 1) / TILE_ROW_BYTES, tile = TILE_ROWS * TILE_ROW_BYTES;
    begin_tiles();
    for (uint32_t row = 0; row < d->patch; row += TILE_ROWS) {
        for (size_t c = 0; c < count; c += 16) {
            const uint8_t *right = d->right_tiles + (column + c) / 16 * depth * tile;
            TILE_CLEAR(0);
            TILE_CLEAR(1);
            TILE_CLEAR(2);
            for (size_t part = 0; part < depth; part++, right += tile) {
                if (depth > 1 || c == 0) { /* with up to 64 terms, left factors stay where they are */
                    TILE_LOAD(3, d->scratch->factor_bytes[0][row] + part * TILE_ROW_BYTES, MAX_RANK);
                    TILE_LOAD(4, d->scratch->factor_bytes[1][row] + part * TILE_ROW_BYTES, MAX_RANK);
                    TILE_LOAD(5, d->scratch->factor_bytes[2][row] + part * TILE_ROW_BYTES, MAX_RANK);
                }
                TILE_LOAD(6, right, TILE_ROW_BYTES);
                TILE_PRODUCT(tdpbusd, 0, 3, 6);
                TILE_PRODUCT(tdpbusd, 1, 4, 6);
                TILE_PRODUCT(tdpbssd, 2, 5, 6);
            }
            TILE_STORE(0, sums[0], TILE_ROW_BYTES);
            TILE_STORE(1, sums[1], TILE_ROW_BYTES);
            TILE_STORE(2, sums[2], TILE_ROW_BYTES);
            for (uint32_t r = 0; r < TILE_ROWS && row + r < d->patch; r++) {
                float *place = delta + (row + r) * d->delta_stride + c;
                i32x16 total = load_i32_wide(sums[0][r]) + (load_i32_wide(sums[1][r]) << 8) +
                               (load_i32_wide(sums[2][r]) << 16);
                f32x16 product = to_float16(total) * d->low_rank_scale;
                store_f32_wide(place, load_f32_wide(place) + product);
            }
        }
    }
    end_tiles();
}

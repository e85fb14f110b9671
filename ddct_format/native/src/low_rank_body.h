/* The low-rank part of section 7.2.3, step 4, in exact integers; included by kernels_body.h once per instruction set.
 *
 * A factor, multiplier times left, has up to 24 bits. Its low 16 bits, with their sign, and what is left above them are
 * multiplied apart, two terms by one instruction. Sums wrap, and are right because their total fits 32 bits. */

/* Factors of the rows [first, first + height) of the patches, the others up to `patch` being 0. */
static void prepare_factors(const dctq_layer *d, uint64_t first, uint32_t height) {
    for (uint32_t pair = 0; pair < (d->rank + 1) / 2; pair++) {
        int32_t *low = d->scratch->factors[0][pair], *high = d->scratch->factors[1][pair];
        for (uint32_t i = 0; i < d->patch; i++) {
            uint64_t row = i >= height ? 0 : d->row_order == NULL ? first + i : d->row_order[first + i];
            uint32_t parts[2][2] = {{0}};
            for (uint32_t half = 0; half < 2 && 2 * pair + half < d->rank && i < height; half++) {
                uint32_t term = 2 * pair + half;
                uint16_t multiplier;
                memcpy(&multiplier, d->multipliers + 2 * (size_t)term, sizeof multiplier);
                int32_t factor = multiplier * d->left[term * d->rows + row];
                int32_t rest = (factor & 0xFFFF) >= 0x8000 ? (factor & 0xFFFF) - 0x10000 : factor & 0xFFFF;
                parts[0][half] = (uint32_t)rest & 0xFFFF;
                parts[1][half] = (uint32_t)((factor - rest) / 0x10000) & 0xFFFF;
            }
            low[i] = (int32_t)(parts[0][0] | parts[0][1] << 16);
            high[i] = (int32_t)(parts[1][0] | parts[1][1] << 16);
        }
    }
}

enum { ROWS_AT_ONCE = 4, VECTORS_AT_ONCE = 2 };
typedef i32_wide low_rank_sums[ROWS_AT_ONCE][VECTORS_AT_ONCE];

INLINE void add_terms(low_rank_sums sums, const int32_t *factors, const int32_t *right) {
    i32_wide columns[VECTORS_AT_ONCE];
    for (int v = 0; v < VECTORS_AT_ONCE; v++)
        columns[v] = load_i32_wide(right + v * WIDE_LANES);
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
        i32_wide factor = OF_WIDTH(broadcast)(factors[r]);
        for (int v = 0; v < VECTORS_AT_ONCE; v++)
            sums[r][v] = OF_WIDTH(add_products)(sums[r][v], factor, columns[v]);
    }
}

/* delta += f(sum of terms) * scale for all rows of the patches and the columns [column, column + count) of them. Buffers
 * are padded so that whole blocks can be computed. */
INLINE void add_low_rank(const dctq_layer *d, uint64_t column, size_t count, float *delta) {
    const uint32_t pairs = (d->rank + 1) / 2;
    enum { BLOCK = VECTORS_AT_ONCE * WIDE_LANES };
    for (size_t c = 0; c < count; c += BLOCK)
        for (uint32_t row = 0; row < d->patch; row += ROWS_AT_ONCE) {
            low_rank_sums sums = {{{0}}};
            const int32_t *right = d->right + column + c;
            if (d->some_wide) {
                for (uint32_t pair = 0; pair < pairs; pair++)
                    if (d->wide[pair])
                        add_terms(sums, d->scratch->factors[1][pair] + row, right + pair * d->right_stride);
                for (int r = 0; r < ROWS_AT_ONCE; r++)
                    for (int v = 0; v < VECTORS_AT_ONCE; v++)
                        sums[r][v] <<= 16;
            }
            for (uint32_t pair = 0; pair < pairs; pair++)
                add_terms(sums, d->scratch->factors[0][pair] + row, right + pair * d->right_stride);
            for (int r = 0; r < ROWS_AT_ONCE; r++)
                for (int v = 0; v < VECTORS_AT_ONCE; v++) {
                    float *place = delta + (row + (uint32_t)r) * d->delta_stride + c + (size_t)v * WIDE_LANES;
                    f32_wide product = OF_WIDTH(to_float)(sums[r][v]) * d->low_rank_scale;
                    store_f32_wide(place, load_f32_wide(place) + product);
                }
        }
}

/* Rows of patches of a delta less its low-rank part, columns in the patches' order; included by encode_body.h, whose rules
 * for floating-point arithmetic it shares. */

/* Floats of a row of patches. */
ALWAYS_INLINE size_t row_stride(size_t cols, uint32_t patch) {
    size_t padded = (cols + patch - 1) / patch * patch;
    return (padded + WIDE - 1) / WIDE * WIDE;
}

#if defined(USE_AVX512)
enum { PIECES_AT_ONCE = 2 };
#else
enum { PIECES_AT_ONCE = 1 };
#endif

/* What a plan comes to for the columns of a tensor. */
typedef struct {
    const int32_t *places; /* the column of the tensor of each column of the patches; NULL for the identity */
    const float *right;    /* of 16 columns together, term by term: so they are read from end to end */
    const uint16_t *tiles; /* instead, for the matrix unit; NULL without */
    float *row;            /* memory for one */
} residual_columns;

ALWAYS_INLINE size_t column_of(const residual_columns *columns, size_t c) {
    return columns->places == NULL ? c : (size_t)columns->places[c];
}

static const float *arrange_right(const quantise_plan *plan, size_t cols, size_t stride,
                                  const residual_columns *columns, float *right) {
    memset(right, 0, stride * plan->rank * sizeof *right);
    for (uint32_t k = 0; k < plan->rank; k++)
        for (size_t c = 0; c < cols; c++)
            right[c / WIDE * WIDE * plan->rank + k * WIDE + c % WIDE] = plan->right[k * cols + column_of(columns, c)];
    return right;
}

/* Eight rows less their low-rank part, for `pieces` times 16 columns. */
ALWAYS_INLINE void subtract_terms(float *rows, size_t stride, int pieces, uint32_t rank, const float *left,
                                  const float *right) {
    floats sums[PIECES_AT_ONCE][8];
    for (int p = 0; p < pieces; p++)
        for (int r = 0; r < 8; r++)
            sums[p][r] = load_floats(rows + (size_t)r * stride + p * WIDE);
    for (uint32_t k = 0; k < rank; k++)
        for (int p = 0; p < pieces; p++) {
            floats factor = load_floats(right + ((uint32_t)p * rank + k) * WIDE);
            for (int r = 0; r < 8; r++)
                sums[p][r] -= left[(size_t)r * rank + k] * factor;
        }
    for (int p = 0; p < pieces; p++)
        for (int r = 0; r < 8; r++)
            store_floats(rows + (size_t)r * stride + p * WIDE, sums[p][r]);
}

static void subtract_low_rank(const quantise_plan *plan, const float *left, size_t height, const float *right,
                              float *rows, size_t stride) {
    const uint32_t rank = plan->rank;
    for (size_t top = 0; top < height; top += 8, left += 8 * rank) {
        float *of_rows = rows + top * stride;
        if (height - top < 8) {
            for (size_t r = 0; r < height - top; r++)
                for (size_t c = 0; c < stride; c++)
                    for (uint32_t k = 0; k < rank; k++)
                        of_rows[r * stride + c] -= left[r * rank + k] * right[c / WIDE * WIDE * rank + k * WIDE + c % WIDE];
            continue;
        }
        size_t c = 0;
        for (; c + PIECES_AT_ONCE * WIDE <= stride; c += PIECES_AT_ONCE * WIDE)
            subtract_terms(of_rows + c, stride, PIECES_AT_ONCE, rank, left, right + c * rank);
        for (; c < stride; c += WIDE)
            subtract_terms(of_rows + c, stride, 1, rank, left, right + c * rank);
    }
}

#if defined(USE_AVX512) && HAVE_AMX
#include "encode_residual_amx_body.h"
#endif

/* A row of patches of the scaled delta, less its low-rank part: patch rows of `stride` floats, padded with zeros. */
static void residual_rows(const encode_band *band, const quantise_plan *plan, size_t first,
                          const residual_columns *columns, float *rows, size_t stride) {
    for (uint32_t r = 0; r < plan->patch; r++) {
        float *values = rows + r * stride;
        size_t filled = first + r < band->rows ? band->cols : 0;
        if (filled && columns->places == NULL) {
            row_difference(band, first + r, plan->scale, values);
        } else if (filled) {
            row_difference(band, first + r, plan->scale, columns->row);
            size_t c = 0;
#if defined(USE_AVX512)
            for (; c + WIDE <= filled; c += WIDE)
                _mm512_storeu_ps(values + c,
                                 _mm512_i32gather_ps(_mm512_loadu_si512(columns->places + c), columns->row, 4));
#endif
            for (; c < filled; c++)
                values[c] = columns->row[columns->places[c]];
        }
        memset(values + filled, 0, (stride - filled) * sizeof(float));
    }
    if (!plan->rank)
        return;
    size_t height = band->rows - first < plan->patch ? band->rows - first : plan->patch;
#if defined(USE_AVX512) && HAVE_AMX
    if (columns->tiles != NULL) {
        subtract_tiles(plan, plan->left + first * plan->rank, height, columns->tiles, rows, stride);
        return;
    }
#endif
    subtract_low_rank(plan, plan->left + first * plan->rank, height, columns->right, rows, stride);
}

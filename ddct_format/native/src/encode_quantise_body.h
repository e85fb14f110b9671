/* Patches of a residual, transformed and quantised; included by encode_body.h, whose rules for floating-point arithmetic it
 * shares. */

/* matrix . in . matrix^T times a factor, of any size; rows of `in` are `pitch` floats apart. */
static void two_sided(const float *matrix, bool transposed, uint32_t size, float factor, const float *in, size_t pitch,
                      float *out) {
    float once[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
    size_t down = transposed ? 1 : size, along = transposed ? size : 1;
    for (uint32_t k = 0; k < size; k++) {
        float sums[ENCODE_MAX_PATCH] = {0};
        for (uint32_t n = 0; n < size; n++)
            for (uint32_t c = 0; c < size; c++)
                sums[c] += matrix[k * down + n * along] * in[n * pitch + c];
        memcpy(once + k * size, sums, size * sizeof(float));
    }
    for (uint32_t r = 0; r < size; r++) {
        float sums[ENCODE_MAX_PATCH] = {0};
        for (uint32_t n = 0; n < size; n++)
            for (uint32_t k = 0; k < size; k++)
                sums[k] += once[r * size + n] * matrix[k * down + n * along];
        for (uint32_t k = 0; k < size; k++)
            out[r * size + k] = sums[k] * factor;
    }
}

/* The same for the mirrored matrix of size 16: even and odd rows, and of the even ones again, need half the products
 * each. `turned` is the matrix transposed and times the factor. */
ALWAYS_INLINE void two_sided_16(const float *matrix, const floats *turned, const float *in, size_t pitch, float *out) {
    floats sum[8], gap[8], sum2[4], gap2[4];
    float once[16 * 16];
    for (int n = 0; n < 8; n++) {
        floats low = load_floats(in + (size_t)n * pitch), high = load_floats(in + (size_t)(15 - n) * pitch);
        sum[n] = low + high;
        gap[n] = low - high;
    }
    for (int n = 0; n < 4; n++) {
        sum2[n] = sum[n] + sum[7 - n];
        gap2[n] = sum[n] - sum[7 - n];
    }
    for (int k = 0; k < 4; k++) {
        floats even = {0}, odd = {0};
        for (int n = 0; n < 4; n++) {
            even += matrix[4 * k * 16 + n] * sum2[n];
            odd += matrix[(4 * k + 2) * 16 + n] * gap2[n];
        }
        store_floats(once + 4 * k * 16, even);
        store_floats(once + (4 * k + 2) * 16, odd);
    }
    for (int k = 1; k < 16; k += 2) {
        floats odd = {0};
        for (int n = 0; n < 8; n++)
            odd += matrix[k * 16 + n] * gap[n];
        store_floats(once + k * 16, odd);
    }
    for (int r = 0; r < 16; r += 2) {
        floats first = {0}, second = {0};
        for (int n = 0; n < 16; n++) {
            first += once[r * 16 + n] * turned[n];
            second += once[(r + 1) * 16 + n] * turned[n];
        }
        store_floats(out + r * 16, first);
        store_floats(out + (r + 1) * 16, second);
    }
}

/* Sums over the patches of a row of patches, in single precision. */
typedef struct {
    floats energy, small, few[3]; /* Σ |v| of magnitude 0, and of 1 to 3 */
} running_sums;

#include "encode_symbols_body.h"

ALWAYS_INLINE void transform_values(const quantise_plan *plan, const floats *turned, const float *in, size_t pitch,
                                    float *out) {
    if (plan->analysis == NULL)
        for (uint32_t r = 0; r < plan->patch; r++)
            for (uint32_t c = 0; c < plan->patch; c++)
                out[r * plan->patch + c] = in[r * pitch + c] * plan->unit;
    else if (plan->mirrored && plan->patch == 16)
        two_sided_16(plan->analysis, turned, in, pitch, out);
    else
        two_sided(plan->analysis, false, plan->patch, plan->unit, in, pitch, out);
}

ALWAYS_INLINE void turn_matrix(const quantise_plan *plan, floats *turned) {
    if (plan->analysis != NULL && plan->patch == 16)
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < 16; k++)
                turned[n][k] = plan->analysis[k * 16 + n] * plan->unit;
}

/* Columns [column, column + 2 * patch) of rows that are needed next: memory takes as long as a patch does. */
ALWAYS_INLINE void fetch_rows(const encode_band *band, size_t first, uint32_t count, size_t column) {
    const size_t base_width = element_size(band->base_type), width = element_size(band->target_type);
    for (size_t r = first; r < first + count && r < band->rows; r++) {
        size_t place = (band->row_order == NULL ? r : (size_t)band->row_order[r]) * band->cols + column;
        __builtin_prefetch(band->base + place * base_width);
        __builtin_prefetch(band->target + place * width);
    }
}

static void quantise_rows(const encode_band *band, const quantise_plan *plan, float *work, bool by_tiles,
                          quantise_result *result) {
    uint32_t patch = plan->patch, count = patch * patch;
    size_t across = (band->cols + patch - 1) / patch, stride = row_stride(band->cols, patch);
    float *right = work + patch * stride;
    int32_t *places = (int32_t *)(right + plan->rank * stride);
    residual_columns columns = {.places = plan->col_order == NULL ? NULL : places, .row = (float *)places + stride};
    floats turned[16];
    float values[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
    turn_matrix(plan, turned);
    for (size_t c = 0; plan->col_order != NULL && c < band->cols; c++)
        places[c] = (int32_t)plan->col_order[c];
#if defined(USE_AVX512) && HAVE_AMX
    if (by_tiles)
        columns.tiles = arrange_tiles(plan, band->cols, stride, &columns, (uint16_t *)right);
#endif
    (void)by_tiles;
    if (columns.tiles == NULL)
        columns.right = arrange_right(plan, band->cols, stride, &columns, right);
    result->energy = 0;
    memset(result->counts, 0, (size_t)plan->bins * MOST_MAGNITUDES * sizeof *result->counts);
    memset(result->sums, 0, MOST_MAGNITUDES * sizeof *result->sums);
    size_t number = 0;
    for (size_t first = 0; first < band->rows; first += patch) {
        residual_rows(band, plan, first, &columns, work, stride);
        running_sums sums = {{0}, {0}, {{0}, {0}, {0}}};
        for (size_t column = 0; column < across; column++, number++) {
            int32_t histogram[MOST_MAGNITUDES + 1];
            if (column % 2 == 0)
                fetch_rows(band, first + patch, patch, column * patch);
            transform_values(plan, turned, work + column * patch, stride, values);
            int32_t activity = quantise_patch(values, count, plan->rounding, result->symbols + number * count, &sums,
                                              histogram, result->sums);
            result->activity[number] = activity;
            uint32_t bin = 0;
            while (activity && bin + 1 < plan->bins && plan->bin_edges[bin] <= activity)
                bin++;
            int64_t *counts = result->counts + bin * MOST_MAGNITUDES;
            for (int32_t m = 0; m < 4 || m <= histogram[MOST_MAGNITUDES]; m++)
                counts[m] += histogram[m];
        }
        for (int m = 0; m < 3; m++)
            result->sums[m + 1] += sum_floats(sums.few[m]);
        result->energy += sum_floats(sums.energy);
        result->sums[0] += sum_floats(sums.small);
    }
}

static void encode_quantise(const encode_band *band, const quantise_plan *plan, float *work, quantise_result *result) {
    quantise_rows(band, plan, work, false, result);
}

#if defined(USE_AVX512) && HAVE_AMX
static void encode_quantise_amx(const encode_band *band, const quantise_plan *plan, float *work,
                                quantise_result *result) {
    quantise_rows(band, plan, work, true, result);
}
#endif

/* The loops of encode_kernels.h; included once per instruction set, by kernels_body.h. */
#include "encode_kernels.h"

#include <math.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed between inlined functions only */
#elif defined(__clang__)
#pragma clang fp contract(fast)
#endif

enum { WIDE = 16 };
typedef float floats __attribute__((vector_size(4 * WIDE)));
typedef int32_t integers __attribute__((vector_size(4 * WIDE)));
typedef uint8_t octets __attribute__((vector_size(WIDE)));
typedef double doubles __attribute__((vector_size(8 * WIDE)));

ALWAYS_INLINE floats load_floats(const float *from) {
    floats value;
    memcpy(&value, from, sizeof value);
    return value;
}

ALWAYS_INLINE void store_floats(float *to, floats value) { memcpy(to, &value, sizeof value); }

ALWAYS_INLINE floats every(float value) { return value - (floats){0}; }

ALWAYS_INLINE floats choose(integers where, floats yes, floats no) {
    return (floats)(((integers)yes & where) | ((integers)no & ~where));
}

ALWAYS_INLINE floats absolute(floats value) { return (floats)((integers)value & 0x7FFFFFFF); }

ALWAYS_INLINE double sum_doubles(doubles value) {
    double sum = 0, lanes[WIDE];
    memcpy(lanes, &value, sizeof lanes);
    for (int i = 0; i < WIDE; i++)
        sum += lanes[i];
    return sum;
}

ALWAYS_INLINE double sum_floats(floats value) {
    return sum_doubles(__builtin_convertvector(value, doubles));
}

ALWAYS_INLINE int32_t sum_integers(integers value) {
    int32_t sum = 0;
    for (int i = 0; i < WIDE; i++)
        sum += value[i];
    return sum;
}

ALWAYS_INLINE float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

ALWAYS_INLINE float element(element_type type, const uint8_t *data, size_t i) {
    if (type == ELEMENT_F32) {
        float value;
        memcpy(&value, data + 4 * i, sizeof value);
        return value;
    }
    uint16_t stored;
    memcpy(&stored, data + 2 * i, sizeof stored);
    if (type == ELEMENT_BF16)
        return bits_to_float((uint32_t)stored << 16);
    /* binary16: its exponent and fraction, moved, are the number times 2^-112. */
    float value = bits_to_float((uint32_t)(stored & 0x7FFF) << 13) * 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits |= (stored & 0x7C00) == 0x7C00 ? 0x7F800000u : 0u;
    return bits_to_float(bits | (uint32_t)(stored & 0x8000) << 16);
}

ALWAYS_INLINE size_t element_size(element_type type) { return type == ELEMENT_F32 ? 4 : 2; }

ALWAYS_INLINE void difference_of(element_type base_type, element_type type, const uint8_t *base, const uint8_t *target,
                                 size_t count, float *out) {
    for (size_t i = 0; i < count; i++)
        out[i] = element(type, target, i) - element(base_type, base, i);
}

/* target - base of a row; each pair of types a loop of its own. */
static void row_difference(const encode_band *band, size_t row, float *out) {
    row = band->row_order == NULL ? row : (size_t)band->row_order[row];
    const uint8_t *base = band->base + row * band->cols * element_size(band->base_type);
    const uint8_t *target = band->target + row * band->cols * element_size(band->target_type);
    switch (3 * (int)band->base_type + (int)band->target_type) {
#define PAIR(BASE, TARGET)                                                                                          \
    case 3 * BASE + TARGET:                                                                                         \
        difference_of(BASE, TARGET, base, target, band->cols, out);                                                 \
        break;
        PAIR(ELEMENT_BF16, ELEMENT_BF16)
        PAIR(ELEMENT_BF16, ELEMENT_F16)
        PAIR(ELEMENT_BF16, ELEMENT_F32)
        PAIR(ELEMENT_F16, ELEMENT_BF16)
        PAIR(ELEMENT_F16, ELEMENT_F16)
        PAIR(ELEMENT_F16, ELEMENT_F32)
        PAIR(ELEMENT_F32, ELEMENT_BF16)
        PAIR(ELEMENT_F32, ELEMENT_F16)
        PAIR(ELEMENT_F32, ELEMENT_F32)
#undef PAIR
    }
}

static void encode_difference(const encode_band *band, float scale, float *out, double *row_squares,
                              double *col_squares) {
    for (size_t row = 0; row < band->rows; row++) {
        float *values = out + row * band->cols;
        row_difference(band, row, values);
        if (scale != 1.0f)
            for (size_t c = 0; c < band->cols; c++)
                values[c] *= scale;
        if (row_squares == NULL)
            continue;
        double lanes[WIDE] = {0};
        size_t c = 0;
        for (; c + WIDE <= band->cols; c += WIDE)
            for (size_t l = 0; l < WIDE; l++) {
                double square = (double)values[c + l] * (double)values[c + l];
                lanes[l] += square;
                col_squares[c + l] += square;
            }
        double sum = 0;
        for (; c < band->cols; c++) {
            double square = (double)values[c] * (double)values[c];
            sum += square;
            col_squares[c] += square;
        }
        for (size_t l = 0; l < WIDE; l++)
            sum += lanes[l];
        row_squares[row] = sum;
    }
}

static encode_sums encode_delta_sums(const encode_band *band) {
    enum { PIECE = 1024 };
    float piece[PIECE];
    size_t count = band->rows * band->cols;
    encode_sums sums = {0, 0, 0, true};
    integers largest = {0};
    for (size_t start = 0; start < count; start += PIECE) {
        size_t length = count - start < PIECE ? count - start : PIECE;
        encode_band part = *band;
        part.base += start * element_size(band->base_type);
        part.target += start * element_size(band->target_type);
        part.rows = 1;
        part.cols = length;
        row_difference(&part, 0, piece);
        for (size_t i = length; i % WIDE; i++)
            piece[i] = 0;
        doubles energy = {0};
        floats magnitude = {0};
        for (size_t i = 0; i < length; i += WIDE) {
            floats size = absolute(load_floats(piece + i));
            integers larger = (integers)size > largest; /* as integers: a NaN is larger than infinity then */
            largest = ((integers)size & larger) | (largest & ~larger);
            doubles wide = __builtin_convertvector(size, doubles); /* squares of floats may be beyond their range */
            energy += wide * wide;
            magnitude += size * 0x1p-8f;
        }
        sums.energy += sum_doubles(energy);
        sums.magnitude += sum_floats(magnitude) * 0x1p8;
    }
    uint32_t top = 0;
    for (int l = 0; l < WIDE; l++)
        top = (uint32_t)largest[l] > top ? (uint32_t)largest[l] : top;
    sums.largest = bits_to_float(top);
    sums.finite = top < 0x7F800000u;
    return sums;
}

#include "encode_power_body.h"
#if defined(USE_AVX512) && HAVE_AMX
#include "encode_amx_body.h"
#endif

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

/* Eight rows less their low-rank part, for `pieces` times 16 columns. Right factors lie piece by piece. */
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

/* A row of patches of the scaled delta, less its low-rank part: patch rows of `stride` floats, padded with zeros.
 * `right` is what arrange_right() gave. */
static void residual_rows(const encode_band *band, const quantise_plan *plan, size_t first, const float *right,
                          float *rows, size_t stride) {
    const uint32_t patch = plan->patch, rank = plan->rank;
    for (uint32_t r = 0; r < patch; r++) {
        float *values = rows + r * stride;
        size_t filled = first + r < band->rows ? band->cols : 0;
        if (filled) {
            row_difference(band, first + r, values);
            if (plan->scale != 1.0f)
                for (size_t c = 0; c < filled; c++)
                    values[c] *= plan->scale;
        }
        memset(values + filled, 0, (stride - filled) * sizeof(float));
    }
    if (!rank)
        return;
    size_t height = band->rows - first < patch ? band->rows - first : patch;
    const float *left = plan->left + first * rank;
    for (size_t top = 0; top < height; top += 8, left += 8 * rank) {
        float *of_rows = rows + top * stride;
        if (height - top < 8) {
            for (size_t r = 0; r < height - top; r++)
                for (size_t c = 0; c < band->cols; c++)
                    for (uint32_t k = 0; k < rank; k++)
                        of_rows[r * stride + c] -= left[r * rank + k] * plan->right[k * band->cols + c];
            continue;
        }
        size_t c = 0;
        for (; c + PIECES_AT_ONCE * WIDE <= stride; c += PIECES_AT_ONCE * WIDE)
            subtract_terms(of_rows + c, stride, PIECES_AT_ONCE, rank, left, right + c * rank);
        for (; c < stride; c += WIDE)
            subtract_terms(of_rows + c, stride, 1, rank, left, right + c * rank);
    }
}

/* The right factors, those of 16 columns together: so they are read from end to end. */
static void arrange_right(const quantise_plan *plan, size_t cols, size_t stride, float *right) {
    memset(right, 0, stride * plan->rank * sizeof *right);
    for (uint32_t k = 0; k < plan->rank; k++)
        for (size_t c = 0; c < cols; c += WIDE)
            memcpy(right + c * plan->rank + k * WIDE, plan->right + k * cols + c,
                   (cols - c < WIDE ? cols - c : WIDE) * sizeof *right);
}

/* The columns of a patch, in their order: `places` holds it, if there is one. */
static void take_patch(const quantise_plan *plan, const int32_t *places, const float *rows, size_t stride, size_t cols,
                       size_t first, float *out) {
    uint32_t patch = plan->patch;
    for (uint32_t r = 0; r < patch; r++) {
        const float *row = rows + r * stride;
        if (plan->col_order == NULL) {
            memcpy(out + r * patch, row + first, patch * sizeof(float));
            continue;
        }
        uint32_t c = 0;
#if defined(USE_AVX512)
        for (; c + WIDE <= patch && first + c + WIDE <= cols; c += WIDE)
            _mm512_storeu_ps(out + r * patch + c, _mm512_i32gather_ps(_mm512_loadu_si512(places + first + c), row, 4));
#endif
        for (; c < patch; c++)
            out[r * patch + c] = first + c < cols ? row[places[first + c]] : 0.0f;
    }
}

/* matrix . in . matrix^T times a factor, of any size. */
static void two_sided(const float *matrix, bool transposed, uint32_t size, float factor, const float *in, float *out) {
    float once[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
    size_t down = transposed ? 1 : size, along = transposed ? size : 1;
    for (uint32_t k = 0; k < size; k++) {
        float sums[ENCODE_MAX_PATCH] = {0};
        for (uint32_t n = 0; n < size; n++)
            for (uint32_t c = 0; c < size; c++)
                sums[c] += matrix[k * down + n * along] * in[n * size + c];
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
ALWAYS_INLINE void two_sided_16(const float *matrix, const floats *turned, const float *in, float *out) {
    floats sum[8], gap[8], sum2[4], gap2[4];
    float once[16 * 16];
    for (int n = 0; n < 8; n++) {
        floats low = load_floats(in + n * 16), high = load_floats(in + (15 - n) * 16);
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

/* Which byte of memory the lowest bit set belongs to. */
ALWAYS_INLINE uint32_t place_of_bit(uint64_t word) {
    const uint32_t byte = (uint32_t)__builtin_ctzll(word) / 8;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return 7 - byte;
#else
    return byte;
#endif
}

/* Sums over the patches of a row of patches, in single precision. */
typedef struct {
    floats energy, small, few[3]; /* Σ |v| of magnitude 0, and of 1 to 3 */
} running_sums;

/* Quantise a patch's values; its activity. */
ALWAYS_INLINE int32_t quantise_patch(const float *values, uint32_t count, float rounding, uint8_t *symbols,
                                     running_sums *sums, int32_t *histogram, double *many) {
    integers activity = {0}, largest = {0}, found[3] = {{0}, {0}, {0}};
    for (uint32_t i = 0; i < count; i += WIDE) {
        floats value = load_floats(values + i), size = absolute(value);
        floats shifted = size + every(rounding);
        shifted = choose(shifted > every(127.0f), every(127.0f), shifted);
        integers magnitude = __builtin_convertvector(shifted, integers);
        integers above = (value > every(0.0f)) & (magnitude != 0);
        octets symbol = __builtin_convertvector(2 * magnitude + above, octets);
        memcpy(symbols + i, &symbol, sizeof symbol);
        activity += magnitude;
        integers larger = magnitude > largest;
        largest = (magnitude & larger) | (largest & ~larger);
        sums->energy += size * size;
        sums->small += (floats)((integers)size & (magnitude == 0));
        for (int m = 0; m < 3; m++) {
            integers here = magnitude == m + 1;
            found[m] -= here;
            sums->few[m] += (floats)((integers)size & here);
        }
    }
    int32_t top = 0, others = 0;
    for (int l = 0; l < WIDE; l++)
        top = largest[l] > top ? largest[l] : top;
    for (int m = 0; m < 3; m++) {
        histogram[m + 1] = sum_integers(found[m]);
        others += histogram[m + 1];
    }
    for (int32_t m = 4; m <= top; m++)
        histogram[m] = 0;
    if (top > 3)
        for (uint32_t i = 0; i < count; i += 8) {
            uint64_t word;
            memcpy(&word, symbols + i, sizeof word);
            /* The highest bit of each byte above 6. */
            word = (((word & 0x7F7F7F7F7F7F7F7Full) + 0x7979797979797979ull) | word) & 0x8080808080808080ull;
            for (; word; word &= word - 1) {
                uint32_t place = i + place_of_bit(word);
                int magnitude = (symbols[place] + 1) / 2;
                histogram[magnitude]++;
                many[magnitude] += (double)fabsf(values[place]);
                others++;
            }
        }
    histogram[0] = (int32_t)count - others;
    histogram[MOST_MAGNITUDES] = top;
    return sum_integers(activity);
}

ALWAYS_INLINE void transform_values(const quantise_plan *plan, const floats *turned, const float *in, float *out) {
    uint32_t count = plan->patch * plan->patch;
    if (plan->analysis == NULL)
        for (uint32_t i = 0; i < count; i++)
            out[i] = in[i] * plan->unit;
    else if (plan->mirrored && plan->patch == 16)
        two_sided_16(plan->analysis, turned, in, out);
    else
        two_sided(plan->analysis, false, plan->patch, plan->unit, in, out);
}

ALWAYS_INLINE void turn_matrix(const quantise_plan *plan, floats *turned) {
    if (plan->analysis != NULL && plan->patch == 16)
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < 16; k++)
                turned[n][k] = plan->analysis[k * 16 + n] * plan->unit;
}

static void encode_quantise(const encode_band *band, const quantise_plan *plan, float *work, quantise_result *result) {
    uint32_t patch = plan->patch, count = patch * patch;
    size_t across = (band->cols + patch - 1) / patch, stride = row_stride(band->cols, patch);
    float *right = work + patch * stride;
    int32_t *places = (int32_t *)(right + plan->rank * stride);
    floats turned[16];
    float taken[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH], values[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
    turn_matrix(plan, turned);
    arrange_right(plan, band->cols, stride, right);
    for (size_t c = 0; plan->col_order != NULL && c < band->cols; c++)
        places[c] = (int32_t)plan->col_order[c];
    result->energy = 0;
    memset(result->counts, 0, (size_t)plan->bins * MOST_MAGNITUDES * sizeof *result->counts);
    memset(result->sums, 0, MOST_MAGNITUDES * sizeof *result->sums);
    size_t number = 0;
    for (size_t first = 0; first < band->rows; first += patch) {
        residual_rows(band, plan, first, right, work, stride);
        running_sums sums = {{0}, {0}, {{0}, {0}, {0}}};
        for (size_t column = 0; column < across; column++, number++) {
            int32_t histogram[MOST_MAGNITUDES + 1];
            take_patch(plan, places, work, stride, band->cols, column * patch, taken);
            transform_values(plan, turned, taken, values);
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

static void encode_patch_energies(const encode_band *band, uint32_t patch, float *work, double *energies) {
    size_t across = (band->cols + patch - 1) / patch, stride = row_stride(band->cols, patch);
    const quantise_plan plan = {.patch = patch, .scale = 1.0f};
    for (size_t first = 0; first < band->rows; first += patch) {
        residual_rows(band, &plan, first, NULL, work, stride);
        for (size_t column = 0; column < across; column++) {
            doubles sums = {0}; /* squares of floats may be beyond their range */
            for (uint32_t r = 0; r < patch; r++) {
                const float *values = work + r * stride + column * patch;
                for (uint32_t c = 0; c + WIDE <= patch; c += WIDE) {
                    doubles value = __builtin_convertvector(load_floats(values + c), doubles);
                    sums += value * value;
                }
                for (uint32_t c = 0; patch < WIDE && c < patch; c++)
                    sums[c] += (double)values[c] * (double)values[c];
            }
            energies[first / patch * across + column] = sum_doubles(sums);
        }
    }
}

#include "encode_affine_body.h"

#define ENCODE_FUNCTIONS(POWER)                                                                                     \
    {                                                                                                               \
        .difference = encode_difference, .sums = encode_delta_sums, .power = POWER, .quantise = encode_quantise,    \
        .patch_energies = encode_patch_energies, .affine = encode_affine, .pack_flat = encode_pack_flat,            \
        .pack_dense = encode_pack_dense, .count_others = encode_count_others, .pack_runs = encode_pack_runs,        \
        .ulp_elements_16 = ulp_elements_16,                                                                         \
    }
static const encode_table encode_functions = ENCODE_FUNCTIONS(encode_power);
#if defined(USE_AVX512) && HAVE_AMX
static const encode_table encode_functions_amx = ENCODE_FUNCTIONS(encode_power_amx);
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

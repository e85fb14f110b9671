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
                                 size_t count, float scale, float *out) {
    for (size_t i = 0; i < count; i++)
        out[i] = (element(type, target, i) - element(base_type, base, i)) * scale;
}

/* target - base of a row, times a factor; each pair of types a loop of its own. */
static void row_difference(const encode_band *band, size_t row, float scale, float *out) {
    row = band->row_order == NULL ? row : (size_t)band->row_order[row];
    const uint8_t *base = band->base + row * band->cols * element_size(band->base_type);
    const uint8_t *target = band->target + row * band->cols * element_size(band->target_type);
    switch (3 * (int)band->base_type + (int)band->target_type) {
#define PAIR(BASE, TARGET)                                                                                          \
    case 3 * BASE + TARGET:                                                                                         \
        difference_of(BASE, TARGET, base, target, band->cols, scale, out);                                          \
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
        row_difference(band, row, scale, values);
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
        row_difference(&part, 0, 1.0f, piece);
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

#include "encode_residual_body.h"

#include "encode_quantise_body.h"

static void encode_patch_energies(const encode_band *band, uint32_t patch, float *work, double *energies) {
    size_t across = (band->cols + patch - 1) / patch, stride = row_stride(band->cols, patch);
    const quantise_plan plan = {.patch = patch, .scale = 1.0f};
    const residual_columns columns = {0};
    for (size_t first = 0; first < band->rows; first += patch) {
        residual_rows(band, &plan, first, &columns, work, stride);
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

#define ENCODE_FUNCTIONS(POWER, QUANTISE, RUNS, ELEMENTS)                                                           \
    {                                                                                                               \
        .difference = encode_difference, .sums = encode_delta_sums, .power = POWER, .quantise = QUANTISE,           \
        .patch_energies = encode_patch_energies, .affine = encode_affine, .pack_flat = encode_pack_flat,            \
        .pack_dense = encode_pack_dense, .pack_runs = RUNS, .ulp_elements_16 = ELEMENTS,                            \
    }
static const encode_table encode_functions =
    ENCODE_FUNCTIONS(encode_power, encode_quantise, encode_pack_runs, ulp_elements_16);
#if defined(USE_AVX512)
static const encode_table encode_functions_vbmi2 =
    ENCODE_FUNCTIONS(encode_power, encode_quantise, pack_runs_vbmi2, ulp_elements_16_vbmi2);
#endif
#if defined(USE_AVX512) && HAVE_AMX
static const encode_table encode_functions_amx =
    ENCODE_FUNCTIONS(encode_power_amx, encode_quantise_amx, pack_runs_vbmi2, ulp_elements_16_vbmi2);
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

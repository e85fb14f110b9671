/* The arithmetic of dctq.v1: see ddct_kernels.h. Loops run over fixed numbers of lanes so that compilers vectorise
 * them; on x86-64 a second version is compiled for AVX2, and chosen when the program starts. */
#include "ddct_kernels.h"

#include <string.h>

#if !defined(__GNUC__) || defined(__clang__)
#pragma STDC FP_CONTRACT OFF /* gcc has -ffp-contract=off instead */
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensors are little-endian: this machine needs loads and stores that swap bytes"
#endif
#if defined(__FAST_MATH__) || (defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0)
#error "results are defined bit for bit: compile without -ffast-math, for a machine that computes float as float"
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_THREAD__) && !defined(DDCT_PORTABLE)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* oddN[n][k] = round(90 cos(pi (2n + 1)(2k + 1) / 2N)): the odd rows of the basis of size N, for n < N / 2. Its even
 * rows are the basis of size N / 2, and columns mirror: B[k][N-1-n] = (-1)^k B[k][n]. */
static const int32_t odd4[2][2] = {
    {83, 34},
    {34, -83},
};
static const int32_t odd8[4][4] = {
    {88, 75, 50, 18},
    {75, -18, -88, -50},
    {50, -88, 18, 75},
    {18, -50, 75, -88},
};
static const int32_t odd16[8][8] = {
    {90, 86, 79, 70, 57, 42, 26, 9},
    {86, 57, 9, -42, -79, -90, -70, -26},
    {79, 9, -70, -86, -26, 57, 90, 42},
    {70, -42, -86, 9, 90, 26, -79, -57},
    {57, -79, -26, 90, -9, -86, 42, 70},
    {42, -90, 57, 26, -86, 70, 9, -79},
    {26, -70, 90, -79, 42, 9, -57, 86},
    {9, -26, 42, -57, 70, -79, 86, -90},
};
static const int32_t odd32[16][16] = {
    {90, 89, 87, 85, 81, 77, 72, 67, 60, 54, 46, 38, 30, 22, 13, 4},
    {89, 81, 67, 46, 22, -4, -30, -54, -72, -85, -90, -87, -77, -60, -38, -13},
    {87, 67, 30, -13, -54, -81, -90, -77, -46, -4, 38, 72, 89, 85, 60, 22},
    {85, 46, -13, -67, -90, -72, -22, 38, 81, 87, 54, -4, -60, -89, -77, -30},
    {81, 22, -54, -90, -60, 13, 77, 85, 30, -46, -89, -67, 4, 72, 87, 38},
    {77, -4, -81, -72, 13, 85, 67, -22, -87, -60, 30, 89, 54, -38, -90, -46},
    {72, -30, -90, -22, 77, 67, -38, -89, -13, 81, 60, -46, -87, -4, 85, 54},
    {67, -54, -77, 38, 85, -22, -89, 4, 90, 13, -87, -30, 81, 46, -72, -60},
    {60, -72, -46, 81, 30, -87, -13, 90, -4, -89, 22, 85, -38, -77, 54, 67},
    {54, -85, -4, 87, -46, -60, 81, 13, -89, 38, 67, -77, -22, 90, -30, -72},
    {46, -90, 38, 54, -89, 30, 60, -87, 22, 67, -85, 13, 72, -81, 4, 77},
    {38, -87, 72, -4, -67, 89, -46, -30, 85, -77, 13, 60, -90, 54, 22, -81},
    {30, -77, 89, -60, 4, 54, -87, 81, -38, -22, 72, -90, 67, -13, -46, 85},
    {22, -60, 85, -89, 72, -38, -4, 46, -77, 90, -81, 54, -13, -30, 67, -87},
    {13, -38, 60, -77, 87, -90, 85, -72, 54, -30, 4, 22, -46, 67, -81, 89},
    {4, -13, 22, -30, 38, -46, 54, -60, 67, -72, 77, -81, 85, -87, 89, -90},
};

enum { LANES = 8 };
typedef int32_t vector[LANES];

/* One dimension of the inverse DCT for LANES columns at once: row k of the input is x[k * step], row n of the
 * result is out[n]. Each size adds its odd rows to the result of half the size. */
INLINE void inverse_dct2(const int32_t *x, size_t step, vector *out) {
    for (int l = 0; l < LANES; l++) {
        int32_t a = 64 * x[l], b = 64 * x[step + (size_t)l];
        out[0][l] = a + b;
        out[1][l] = a - b;
    }
}

#define DEFINE_INVERSE_DCT(SIZE, HALF)                                                                              \
    INLINE void inverse_dct##SIZE(const int32_t *x, size_t step, vector *out) {                                     \
        vector even[HALF];                                                                                          \
        inverse_dct##HALF(x, 2 * step, even);                                                                       \
        for (int n = 0; n < HALF; n++) {                                                                            \
            vector odd = {0};                                                                                       \
            for (int k = 0; k < HALF; k++)                                                                          \
                for (int l = 0; l < LANES; l++)                                                                     \
                    odd[l] += odd##SIZE[n][k] * x[(size_t)(2 * k + 1) * step + (size_t)l];                          \
            for (int l = 0; l < LANES; l++) {                                                                       \
                out[n][l] = even[n][l] + odd[l];                                                                    \
                out[SIZE - 1 - n][l] = even[n][l] - odd[l];                                                         \
            }                                                                                                       \
        }                                                                                                           \
    }

DEFINE_INVERSE_DCT(4, 2)
DEFINE_INVERSE_DCT(8, 4)
DEFINE_INVERSE_DCT(16, 8)
DEFINE_INVERSE_DCT(32, 16)

INLINE void transpose_out(uint32_t patch, uint32_t column, vector *result, int32_t *out) {
    for (uint32_t l = 0; l < LANES; l++)
        for (uint32_t n = 0; n < patch; n++)
            out[(column + l) * patch + n] = result[n][l];
}

/* out = (B^T in)^T. Of two such passes over L, the first gives L^T B, and the second B^T L B. */
INLINE void dct_pass(uint32_t patch, const int32_t *in, int32_t *out) {
    for (uint32_t column = 0; column < patch; column += LANES) {
        vector result[DDCT_MAX_PATCH];
        if (patch == 8)
            inverse_dct8(in + column, 8, result);
        else if (patch == 16)
            inverse_dct16(in + column, 16, result);
        else
            inverse_dct32(in + column, 32, result);
        transpose_out(patch, column, result, out);
    }
}

/* The same for the Hadamard basis, by butterflies. */
INLINE void hadamard_pass(uint32_t patch, const int32_t *in, int32_t *out) {
    for (uint32_t column = 0; column < patch; column += LANES) {
        vector result[DDCT_MAX_PATCH];
        for (uint32_t n = 0; n < patch; n++)
            memcpy(result[n], in + n * patch + column, sizeof result[n]);
        for (uint32_t half = 1; half < patch; half *= 2)
            for (uint32_t n = 0; n < patch; n = ((n | half) + 1) & ~half)
                for (uint32_t l = 0; l < LANES; l++) {
                    int32_t a = result[n][l], b = result[n | half][l];
                    result[n][l] = a + b;
                    result[n | half][l] = a - b;
                }
        transpose_out(patch, column, result, out);
    }
}

INLINE void transform_patch(ddct_transform transform, uint32_t patch, const int8_t *levels, int32_t *values) {
    int32_t first[DDCT_MAX_PATCH * DDCT_MAX_PATCH], second[DDCT_MAX_PATCH * DDCT_MAX_PATCH];
    for (uint32_t i = 0; i < patch * patch; i++)
        first[i] = levels[i];
    if (transform == DDCT_TRANSFORM_DCT) {
        dct_pass(patch, first, second);
        dct_pass(patch, second, values);
    } else {
        hadamard_pass(patch, first, second);
        hadamard_pass(patch, second, values);
    }
}

VECTORISED void ddct_inverse_transform(ddct_transform transform, uint32_t patch, const int8_t *levels,
                                       int32_t *values) {
    if (transform == DDCT_TRANSFORM_NONE) {
        for (uint32_t i = 0; i < patch * patch; i++)
            values[i] = levels[i];
    } else if (patch == 8) {
        transform_patch(transform, 8, levels, values);
    } else if (patch == 16) {
        transform_patch(transform, 16, levels, values);
    } else {
        transform_patch(transform, 32, levels, values);
    }
}

void ddct_transform_of_ones(ddct_transform transform, uint32_t patch, float *values) {
    int8_t ones[DDCT_MAX_PATCH * DDCT_MAX_PATCH];
    int32_t sums[DDCT_MAX_PATCH * DDCT_MAX_PATCH];
    memset(ones, 1, sizeof ones);
    ddct_inverse_transform(transform, patch, ones, sums);
    for (uint32_t i = 0; i < patch * patch; i++)
        values[i] = (float)sums[i];
}

uint32_t ddct_symbols_per_byte(uint32_t alphabet) {
    uint32_t symbols = 0;
    for (uint32_t states = alphabet; alphabet > 1 && states <= 256; states *= alphabet)
        symbols++;
    return symbols;
}

uint64_t ddct_dense_size(uint64_t count, uint32_t alphabet) {
    uint32_t per_byte = ddct_symbols_per_byte(alphabet);
    return per_byte == 0 ? 0 : count / per_byte + (count % per_byte != 0);
}

VECTORISED bool ddct_dense_valid(const uint8_t *bytes, uint64_t count, uint32_t alphabet) {
    uint32_t per_byte = ddct_symbols_per_byte(alphabet), states = 1;
    if (per_byte == 0 || count == 0)
        return true;
    for (uint32_t i = 0; i < per_byte; i++)
        states *= alphabet;
    uint8_t largest = 0;
    for (uint64_t i = 0; i < count / per_byte; i++)
        largest = bytes[i] > largest ? bytes[i] : largest;
    uint32_t last_states = 1;
    for (uint32_t i = 0; i < count % per_byte; i++)
        last_states *= alphabet;
    return largest < states && (last_states == 1 || bytes[count / per_byte] < last_states);
}

void ddct_dense_table(const int8_t *levels, uint32_t alphabet, uint64_t table[256]) {
    uint32_t per_byte = ddct_symbols_per_byte(alphabet);
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t rest = byte;
        table[byte] = 0;
        for (uint32_t i = 0; i < per_byte; i++) {
            table[byte] |= (uint64_t)(uint8_t)levels[rest % alphabet] << (8 * i);
            rest /= alphabet;
        }
    }
}

INLINE int8_t table_level(uint64_t entry, uint32_t digit) { return (int8_t)(uint8_t)(entry >> (8 * digit)); }

/* Whole bytes; `per_byte` is a constant where this is inlined. Writes up to 7 levels too many. */
INLINE void unpack_bytes(const uint8_t *bytes, size_t count, uint32_t per_byte, const uint64_t *table, int8_t *levels) {
    for (size_t done = 0; done < count; done += per_byte)
        memcpy(levels + done, &table[*bytes++], 8);
}

void ddct_unpack_dense(const uint8_t *bytes, uint64_t first, size_t count, uint32_t per_byte, const uint64_t *table,
                       int8_t *levels) {
    bytes += first / per_byte;
    uint32_t digit = (uint32_t)(first % per_byte);
    if (digit > 0) {
        for (; digit < per_byte && count > 0; digit++, count--)
            *levels++ = table_level(table[*bytes], digit);
        bytes++;
    }
    switch (per_byte) {
    case 1: unpack_bytes(bytes, count, 1, table, levels); break;
    case 2: unpack_bytes(bytes, count, 2, table, levels); break;
    case 3: unpack_bytes(bytes, count, 3, table, levels); break;
    case 4: unpack_bytes(bytes, count, 4, table, levels); break;
    case 5: unpack_bytes(bytes, count, 5, table, levels); break;
    default: unpack_bytes(bytes, count, 8, table, levels); break;
    }
}

VECTORISED bool ddct_sparse_valid(const uint8_t *runs, uint64_t runs_size, uint64_t count, uint64_t *others) {
    uint64_t reached = 0, symbols = 0;
    for (uint64_t i = 0; i < runs_size; i++) {
        reached += runs[i];
        symbols += runs[i] != 255;
    }
    *others = symbols;
    return reached + symbols <= count;
}

void ddct_unpack_sparse(ddct_sparse_cursor *cursor, size_t count, uint32_t per_byte, const uint64_t *table, int8_t only,
                        int8_t *levels) {
    memset(levels, 0, count);
    for (size_t done = 0; done < count;) {
        if (cursor->zeros > 0) {
            size_t zeros = cursor->zeros < count - done ? (size_t)cursor->zeros : count - done;
            cursor->zeros -= zeros;
            done += zeros;
        } else if (cursor->symbol_follows) {
            cursor->symbol_follows = false;
            if (per_byte == 0) {
                levels[done++] = only;
                continue;
            }
            levels[done++] = table_level(table[*cursor->other], cursor->digit);
            if (++cursor->digit == per_byte) {
                cursor->digit = 0;
                cursor->other++;
            }
        } else if (cursor->runs < cursor->runs_end) {
            cursor->zeros = *cursor->runs++;
            cursor->symbol_follows = cursor->zeros < 255;
        } else {
            return;
        }
    }
}

VECTORISED void ddct_dequantise_levels(const int32_t *values, uint32_t patch, float scale, float *delta,
                                       size_t stride) {
    for (uint32_t row = 0; row < patch; row++, values += patch, delta += stride)
        for (uint32_t i = 0; i < patch; i++)
            delta[i] = (float)values[i] * scale;
}

VECTORISED void ddct_dequantise_affine(const int32_t *values, const float *ones, uint32_t patch, float step,
                                       float minimum, float gain, float *delta, size_t stride) {
    for (uint32_t row = 0; row < patch; row++, values += patch, ones += patch, delta += stride)
        for (uint32_t i = 0; i < patch; i++) {
            float varying = (float)values[i] * step;
            float constant = ones[i] * minimum;
            float sum = varying + constant;
            delta[i] = sum * gain;
        }
}

VECTORISED void ddct_add_low_rank(const int32_t *factors, const int8_t *right, uint64_t stride, uint32_t rank,
                                  size_t count, float scale, float *delta) {
    int32_t sums[DDCT_SEGMENT];
    memset(sums, 0, count * sizeof sums[0]);
    for (uint32_t k = 0; k < rank; k++) {
        const int32_t factor = factors[k];
        const int8_t *row = right + k * stride;
        for (size_t i = 0; i < count; i++)
            sums[i] += factor * row[i];
    }
    for (size_t i = 0; i < count; i++) {
        float product = (float)sums[i] * scale;
        delta[i] = delta[i] + product;
    }
}

INLINE uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE float widen_f16(uint16_t h) {
    /* The exponent and fraction moved in place, times 2^112, is the value: exact also for subnormals. */
    float magnitude = bits_float((uint32_t)(h & 0x7FFF) << 13) * bits_float(0x77800000);
    uint32_t bits = float_bits(magnitude);
    uint32_t special = (h & 0x7C00) == 0x7C00 ? 0x7F800000 | bits : bits;
    return bits_float(special | (uint32_t)(h & 0x8000) << 16);
}

float ddct_f16_to_f32(uint16_t bits) { return widen_f16(bits); }

/* Round to nearest even; NaN becomes the quiet NaN. */
INLINE uint16_t narrow_bf16(float x) {
    uint32_t bits = float_bits(x);
    uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

INLINE uint16_t narrow_f16(float x) {
    uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    /* Below 2^-14 the result is subnormal: adding 1/2 makes the adder round at the right place. */
    uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000;
    uint32_t normal = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    uint32_t result = magnitude < 0x38800000 ? subnormal : normal;
    result = magnitude >= 0x47800000 ? 0x7C00 : result; /* 2^16 and more; what rounds up to it got there by itself */
    result |= sign;
    return (uint16_t)(magnitude > 0x7F800000 ? 0x7E00 : result);
}

INLINE uint32_t narrow_f32(float x) {
    uint32_t bits = float_bits(x);
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC00000 : bits;
}

/* One pair of element types. WIDEN makes a float of an element, NARROW an element of a float; SAME tells whether
 * an element whose delta is zero keeps its own bits, NaN payloads included. */
#define DEFINE_APPLY(NAME, BASE, WIDEN, TARGET, NARROW, SAME)                                                       \
    VECTORISED static void NAME(const void *base, const float *delta, void *out, size_t count) {                    \
        const uint8_t *restrict b = base;                                                                           \
        uint8_t *restrict t = out;                                                                                  \
        for (size_t i = 0; i < count; i++) {                                                                        \
            BASE element;                                                                                           \
            memcpy(&element, b + i * sizeof element, sizeof element); /* of any alignment */                        \
            float before = WIDEN(element);                                                                          \
            float sum = before + delta[i];                                                                          \
            float after = delta[i] == 0.0f ? before : sum;                                                          \
            TARGET rounded = (TARGET)NARROW(after);                                                                 \
            rounded = SAME && delta[i] == 0.0f ? (TARGET)element : rounded;                                         \
            memcpy(t + i * sizeof rounded, &rounded, sizeof rounded);                                               \
        }                                                                                                           \
    }

INLINE float widen_bf16(uint16_t bits) { return bits_float((uint32_t)bits << 16); }

DEFINE_APPLY(apply_bf16_bf16, uint16_t, widen_bf16, uint16_t, narrow_bf16, true)
DEFINE_APPLY(apply_bf16_f16, uint16_t, widen_bf16, uint16_t, narrow_f16, false)
DEFINE_APPLY(apply_bf16_f32, uint16_t, widen_bf16, uint32_t, narrow_f32, false)
DEFINE_APPLY(apply_f16_bf16, uint16_t, widen_f16, uint16_t, narrow_bf16, false)
DEFINE_APPLY(apply_f16_f16, uint16_t, widen_f16, uint16_t, narrow_f16, true)
DEFINE_APPLY(apply_f16_f32, uint16_t, widen_f16, uint32_t, narrow_f32, false)
DEFINE_APPLY(apply_f32_bf16, uint32_t, bits_float, uint16_t, narrow_bf16, false)
DEFINE_APPLY(apply_f32_f16, uint32_t, bits_float, uint16_t, narrow_f16, false)
DEFINE_APPLY(apply_f32_f32, uint32_t, bits_float, uint32_t, narrow_f32, true)

void ddct_apply(ddct_dtype base_type, const void *base, const float *delta, ddct_dtype type, void *out, size_t count) {
    static void (*const kernels[3][3])(const void *, const float *, void *, size_t) = {
        {apply_bf16_bf16, apply_bf16_f16, apply_bf16_f32},
        {apply_f16_bf16, apply_f16_f16, apply_f16_f32},
        {apply_f32_bf16, apply_f32_f16, apply_f32_f32},
    };
    int from = base_type == DDCT_BF16 ? 0 : base_type == DDCT_F16 ? 1 : 2;
    int to = type == DDCT_BF16 ? 0 : type == DDCT_F16 ? 1 : 2;
    kernels[from][to](base, delta, out, count);
}

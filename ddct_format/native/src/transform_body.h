/* The inverse DCT of a patch in two dimensions, for levels so small that one dimension fits 16 bits; included by
 * kernels_body.h once per instruction set.
 *
 * Columns first: T[n][j] = sum over i of B[i][n] L[i][j], all columns j side by side in 16-bit lanes. Sums wrap, and are right
 * because the result fits. Then rows: I[n][m] = sum over j of T[n][j] B[j][m], lanes being m; products of two j are added
 * by one instruction. Columns of B mirror: B[j][p-1-m] = (-1)^j B[j][m], so sums over even and over odd j for half of the m give
 * all. */
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

typedef int8_t i8x8 __attribute__((vector_size(8)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
DEFINE_ACCESS(i8x8)
DEFINE_ACCESS(i8x16)
DEFINE_ACCESS(u16x8)
DEFINE_ACCESS(u16x16)

#define DEFINE_COLUMNS2(V)                                                                                          \
    INLINE void columns2_##V(const V *x, size_t step, V *out) {                                                     \
        V a = x[0] * 64, b = x[step] * 64;                                                                          \
        out[0] = a + b;                                                                                             \
        out[1] = a - b;                                                                                             \
    }
#define DEFINE_COLUMNS(SIZE, HALF, V)                                                                               \
    INLINE void columns##SIZE##_##V(const V *x, size_t step, V *out) {                                              \
        V even[HALF];                                                                                               \
        columns##HALF##_##V(x, 2 * step, even);                                                                     \
        for (int n = 0; n < HALF; n++) {                                                                            \
            V odd = x[step] * (uint16_t)odd##SIZE[n][0];                                                            \
            for (int k = 1; k < HALF; k++)                                                                          \
                odd += x[(size_t)(2 * k + 1) * step] * (uint16_t)odd##SIZE[n][k];                                   \
            out[n] = even[n] + odd;                                                                                 \
            out[SIZE - 1 - n] = even[n] - odd;                                                                      \
        }                                                                                                           \
    }
DEFINE_COLUMNS2(u16x8)
DEFINE_COLUMNS(4, 2, u16x8)
DEFINE_COLUMNS(8, 4, u16x8)
DEFINE_COLUMNS2(u16x16)
DEFINE_COLUMNS(4, 2, u16x16)
DEFINE_COLUMNS(8, 4, u16x16)
DEFINE_COLUMNS(16, 8, u16x16)
DEFINE_COLUMNS(32, 16, u16x16)

INLINE u16x8 widen_levels8(const int8_t *levels) {
    return (u16x8)__builtin_convertvector(load_i8x8(levels), i16x8);
}

INLINE u16x16 widen_levels16(const int8_t *levels) {
    return (u16x16)__builtin_convertvector(load_i8x16(levels), i16x16);
}

/* Lanes 0 1 2 3 -> 0 2 1 3 in each four: what the second dimension multiplies by even and by odd rows are pairs then. */
INLINE u16x8 pair_up8(u16x8 v) {
#if defined(USE_SSE2) || defined(USE_AVX2) || defined(USE_AVX512)
    return (u16x8)_mm_shufflehi_epi16(_mm_shufflelo_epi16((__m128i)v, 0xD8), 0xD8);
#else
    return (u16x8){v[0], v[2], v[1], v[3], v[4], v[6], v[5], v[7]};
#endif
}

INLINE void store_pairs16(uint16_t *to, u16x16 v) {
#if defined(USE_AVX2) || defined(USE_AVX512)
    store_u16x16(to, (u16x16)_mm256_shufflehi_epi16(_mm256_shufflelo_epi16((__m256i)v, 0xD8), 0xD8));
#else
    store_u16x16(to, v);
    store_u16x8(to, pair_up8(load_u16x8(to)));
    store_u16x8(to + 8, pair_up8(load_u16x8(to + 8)));
#endif
}

INLINE void transform_columns(uint32_t patch, const int8_t *levels, uint16_t *half) {
    if (patch == 8) {
        u16x8 in[8], out[8];
        for (uint32_t i = 0; i < 8; i++)
            in[i] = widen_levels8(levels + 8 * i);
        columns8_u16x8(in, 1, out);
        for (uint32_t n = 0; n < 8; n++)
            store_u16x8(half + 8 * n, pair_up8(out[n]));
        return;
    }
    for (uint32_t column = 0; column < patch; column += 16) {
        u16x16 in[MAX_PATCH], out[MAX_PATCH];
        for (uint32_t i = 0; i < patch; i++)
            in[i] = widen_levels16(levels + i * patch + column);
        if (patch == 16)
            columns16_u16x16(in, 1, out);
        else
            columns32_u16x16(in, 1, out);
        for (uint32_t n = 0; n < patch; n++)
            store_pairs16(half + n * patch + column, out[n]);
    }
}

/* How numbers become deltas: step 2 of section 7.2.3. */
typedef struct dequantiser {
    bool affine;
    float scale, step, minimum, gain;
    const float *ones;
} dequantiser;

/* The second dimension, for the first `height` rows. `pairs` are those that prepare_patches() makes. */
#define DEFINE_ROWS(LANES)                                                                                          \
    INLINE void dequantise##LANES(const dequantiser *how, i32x##LANES sums, size_t place, float *delta) {           \
        f32x##LANES values = to_float##LANES(sums);                                                                 \
        if (how->affine) {                                                                                          \
            f32x##LANES ones = load_f32x##LANES(how->ones + place);                                                 \
            values = values * how->step;                                                                            \
            ones = ones * how->minimum;                                                                             \
            values = values + ones;                                                                                 \
            values = values * how->gain;                                                                            \
        } else {                                                                                                    \
            values = values * how->scale;                                                                           \
        }                                                                                                           \
        store_f32x##LANES(delta, values);                                                                           \
    }                                                                                                               \
    INLINE void transform_rows##LANES(uint32_t patch, const uint16_t *half, const uint32_t *pairs, uint32_t height, \
                                      const dequantiser *how, float *delta, size_t stride) {                        \
        const uint32_t *odd_pairs = pairs + (patch / 4) * (patch / 2);                                              \
        for (uint32_t n = 0; n < height; n++, half += patch, delta += stride)                                       \
            for (uint32_t m = 0; m < patch / 2; m += LANES) {                                                       \
                i32x##LANES even = {0}, odd = {0}, factors;                                                         \
                for (uint32_t q = 0; q < patch / 4; q++) {                                                          \
                    int32_t levels;                                                                                 \
                    memcpy(&levels, half + 4 * q, sizeof levels);                                                   \
                    factors = load_i32x##LANES(pairs + q * (patch / 2) + m);                                        \
                    even = add_products##LANES(even, broadcast##LANES(levels), factors);                            \
                    memcpy(&levels, half + 4 * q + 2, sizeof levels);                                               \
                    factors = load_i32x##LANES(odd_pairs + q * (patch / 2) + m);                                    \
                    odd = add_products##LANES(odd, broadcast##LANES(levels), factors);                              \
                }                                                                                                   \
                uint32_t mirrored = patch - LANES - m;                                                              \
                dequantise##LANES(how, even + odd, (size_t)n * patch + m, delta + m);                               \
                dequantise##LANES(how, reverse##LANES(even - odd), (size_t)n * patch + mirrored, delta + mirrored); \
            }                                                                                                       \
    }
DEFINE_ROWS(4)
#if defined(USE_AVX2) || defined(USE_AVX512)
DEFINE_ROWS(8)
#define transform_rows_wide transform_rows8
#else
#define transform_rows_wide transform_rows4
#endif

INLINE u16x16 magnitudes16(const int8_t *levels) {
    i16x16 wide = __builtin_convertvector(load_i8x16(levels), i16x16), sign = wide >> 15;
    return (u16x16)((wide ^ sign) - sign);
}

/* Where a patch's levels are at most `largest` in magnitude: does one dimension fit 16 bits? */
INLINE bool fits_half(uint32_t patch, const int8_t *levels, uint32_t largest) {
    const uint32_t column_sum = patch == 8 ? 475 : patch == 16 ? 935 : 1855; /* at least max over n of sum |B[i][n]| */
    if (largest * column_sum <= INT16_MAX)
        return true;
    uint16_t sums[MAX_PATCH], most = 0; /* of the magnitudes in each column; with 8 columns, of every second row */
    for (uint32_t column = 0; column < patch; column += 16) {
        const uint32_t stride = patch == 8 ? 16 : patch;
        u16x16 sum = {0};
        for (uint32_t at = column; at < patch * patch; at += stride)
            sum += magnitudes16(levels + at);
        store_u16x16(sums + column, sum);
    }
    for (uint32_t j = 0; j < 8; j++)
        sums[j] = (uint16_t)(sums[j] + (patch == 8 ? sums[j + 8] : 0));
    for (uint32_t j = 0; j < patch; j++)
        most = sums[j] > most ? sums[j] : most;
    return most * 90u <= INT16_MAX; /* no entry of B is above 90 */
}

/* The inverse DCT of levels for which fits_half(), and their deltas. */
INLINE void small_dct(uint32_t patch, const int8_t *levels, uint16_t *half, const uint32_t *pairs, uint32_t height,
                      const dequantiser *how, float *delta, size_t stride) {
    transform_columns(patch, levels, half);
    if (patch == 8)
        transform_rows4(8, half, pairs, height, how, delta, stride);
    else
        transform_rows_wide(patch, half, pairs, height, how, delta, stride);
}

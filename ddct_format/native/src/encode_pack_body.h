/* Symbols into the sections of a payload (spec section 7.2.4 and 7.2.5); included once per instruction set, by
 * kernels_body.h. */
#include "encode_kernels.h"

#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE void pack_bytes(const uint8_t *symbols, size_t bytes, uint32_t alphabet, uint32_t per_byte,
                              uint8_t *out) {
    for (size_t i = 0; i < bytes; i++) {
        uint32_t packed = 0;
        for (uint32_t position = per_byte; position-- > 0;)
            packed = packed * alphabet + symbols[i * per_byte + position];
        out[i] = (uint8_t)packed;
    }
}

static size_t encode_pack_flat(const uint8_t *symbols, size_t count, uint32_t alphabet, uint32_t per_byte,
                               uint8_t *out) {
    size_t whole = count / per_byte, rest = count % per_byte;
    switch (per_byte) {
    case 1:
        memcpy(out, symbols, count);
        break;
    case 2:
        pack_bytes(symbols, whole, alphabet, 2, out);
        break;
    case 3:
        pack_bytes(symbols, whole, alphabet, 3, out);
        break;
    case 4:
        pack_bytes(symbols, whole, 4, 4, out);
        break;
    case 5:
        pack_bytes(symbols, whole, 3, 5, out);
        break;
    default:
        pack_bytes(symbols, whole, 2, 8, out);
    }
    if (rest)
        pack_bytes(symbols + whole * per_byte, 1, alphabet, (uint32_t)rest, out + whole);
    return whole + (rest > 0);
}

static size_t encode_pack_dense(const uint8_t *symbols, size_t values, const uint8_t *class_map, size_t patches,
                                int number, uint32_t alphabet, uint32_t per_byte, uint8_t *out) {
    /* As many patches as a byte holds symbols end on a byte. */
    uint8_t staged[8 * ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
    size_t held = 0, written = 0;
    for (size_t i = 0; i < patches; i++) {
        if (class_map[i] != number)
            continue;
        memcpy(staged + held, symbols + i * values, values);
        held += values;
        if (held == per_byte * values) {
            written += encode_pack_flat(staged, held, alphabet, per_byte, out + written);
            held = 0;
        }
    }
    return written + encode_pack_flat(staged, held, alphabet, per_byte, out + written);
}

/* Bit n: whether symbol n of at most 64 is another than 0. */
ALWAYS_INLINE uint64_t others_mask(const uint8_t *symbols, size_t length) {
#if defined(USE_AVX512)
    if (length == 64) {
        __m512i all = _mm512_loadu_si512(symbols);
        return _mm512_test_epi8_mask(all, all);
    }
#endif
    uint64_t mask = 0;
    for (size_t n = 0; n < length; n += 8) {
        uint64_t bits = 0;
        for (size_t l = 0; l < 8; l++)
            bits |= (uint64_t)(symbols[n + l] != 0) << l;
        mask |= bits << n;
    }
    return mask;
}

static size_t encode_pack_runs(const uint8_t *symbols, size_t values, const uint8_t *class_map, size_t patches,
                               int number, uint8_t *runs, uint8_t *others) {
    uint8_t *run = runs;
    size_t position = 0, next = 0; /* of the class's symbols: where the patch begins, and what no run has reached yet */
    for (size_t i = 0; i < patches; i++) {
        if (class_map[i] != number)
            continue;
        const uint8_t *patch = symbols + i * values;
        for (size_t v = 0; v < values; v += 64) {
            size_t length = values - v < 64 ? values - v : 64;
            for (uint64_t mask = others_mask(patch + v, length); mask; mask &= mask - 1) {
                size_t place = v + (size_t)__builtin_ctzll(mask), gap = position + place - next;
                next = position + place + 1;
                for (; gap >= 255; gap -= 255)
                    *run++ = 255;
                *run++ = (uint8_t)gap;
                *others++ = patch[place] - 1;
            }
        }
        position += values;
    }
    return (size_t)(run - runs);
}

/* Symbols, contexts and extra bits of ulp.v1 for types of 16 bits, element by element in loops that become vectors;
 * included by kernels_body.h, once per instruction set. */
#include "encode_kernels.h"

#include <string.h>

INLINE int32_t pattern_16(const uint8_t *data, size_t i) {
    uint16_t value;
    memcpy(&value, data + 2 * i, sizeof value);
    return value;
}

static void ulp_elements_16(const ulp_pair *pair, size_t first, size_t count, int32_t row_key, const uint8_t *col_keys,
                            ulp_piece *piece) {
    const uint8_t *before = pair->before + 2 * first, *target = pair->target + 2 * first;
    const int32_t half = 1 << (pair->width - 1), largest = (int32_t)pair->largest_exponent;
    const uint32_t fraction = pair->fraction, shift = pair->shift;
    const int32_t mantissa = (int32_t)pair->mantissa;
    for (size_t i = 0; i < count; i++) {
        int32_t p = pattern_16(before, i), q = pattern_16(target, i);
        int32_t exponent = p >> fraction & largest;
        exponent = exponent > 1 ? exponent : 1;
        int32_t low = p >> shift, high = q >> shift, negative = low >= half ? -1 : 0;
        int32_t from = low >= half ? half - 1 - low : low, to = high >= half ? half - 1 - high : high;
        int32_t residual = ((to - from) ^ negative) - negative, sign = residual >> 31;
        int32_t magnitude = (residual ^ sign) - sign;
        float as_float = (float)magnitude; /* exact below 2^24: its exponent is that of the highest bit */
        int32_t bits;
        memcpy(&bits, &as_float, sizeof bits);
        int32_t extra_bits = (bits >> 23) - 127 - mantissa;
        extra_bits = extra_bits > 0 ? extra_bits : 0;
        int32_t code = (magnitude >> extra_bits) + (extra_bits << mantissa);
        piece->context[i] = (uint16_t)(ULP_KEYS_PER_OCTAVE * (largest - exponent) + row_key);
        piece->symbol[i] = (uint8_t)(2 * code + sign);
        piece->extra[i] = (uint32_t)(magnitude & ((1 << extra_bits) - 1));
        piece->extra_bits[i] = (uint8_t)extra_bits;
    }
    if (col_keys != NULL)
        for (size_t i = 0; i < count; i++)
            piece->context[i] = (uint16_t)(piece->context[i] + col_keys[i]);
}

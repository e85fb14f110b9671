/* The arithmetic of ulp.v1: see ddct_ulp_kernels.h. */
#include "ddct_ulp_kernels.h"

#include <string.h>

/* The code of the largest magnitude, 2^width - 1: k = width - 1 - m, whose top m + 1 bits are ones. */
static uint32_t largest_code(uint32_t width, uint32_t m) { return (2u << m) - 1 + ((width - 1 - m) << m); }

void ddct_ulp_make_code(ddct_dtype type, uint32_t shift, ddct_ulp_code *code) {
    memset(code, 0, sizeof *code);
    code->fraction = type == DDCT_BF16 ? 7 : type == DDCT_F16 ? 10 : 23;
    code->exponent_mask = type == DDCT_F16 ? 31 : 255;
    code->shift = shift;
    code->width = (type == DDCT_F32 ? 32 : 16) - shift;
    uint32_t m = code->width <= 16 ? 3 : 2;
    code->alphabet = 2 * largest_code(code->width, m) + 1;
    for (uint32_t symbol = 0; symbol < code->alphabet; symbol++) {
        uint32_t f = (symbol + 1) / 2, k = f >> m > 1 ? (f >> m) - 1 : 0;
        code->extra_bits[symbol] = (uint8_t)k;
        code->first[symbol] = (f - (k << m)) << k;
    }
}

void ddct_ulp_groups(const ddct_ulp_code *code, const uint32_t *patterns, size_t count, uint32_t row_key,
                     const uint8_t *column_keys, const uint8_t group_of[DDCT_ULP_CONTEXTS], uint8_t *groups) {
    /* Copies, for bytes that are stored could be part of *code for all that a compiler knows. */
    const uint32_t fraction = code->fraction, largest = code->exponent_mask;
    for (size_t i = 0; i < count; i++) {
        uint32_t exponent = patterns[i] >> fraction & largest;
        uint32_t context = 4 * (largest - (exponent == 0 ? 1 : exponent)) + row_key;
        groups[i] = group_of[context + (column_keys == NULL ? 0 : column_keys[i])];
    }
}

bool ddct_ulp_measure(const ddct_ulp_code *code, const uint8_t *bytes, uint64_t count, uint32_t first_symbol,
                      uint64_t *extra_bits) {
    const uint32_t mantissa = code->width <= 16 ? 3 : 2;
    uint64_t bits = 0;
    uint8_t largest = 0;
    for (uint64_t i = 0; i < count; i++) { /* the extra bits by arithmetic: a loop without branches and tables */
        uint32_t octave = (bytes[i] + first_symbol + 1) / 2 >> mantissa;
        bits += octave > 1 ? octave - 1 : 0;
        largest = bytes[i] > largest ? bytes[i] : largest;
    }
    *extra_bits += bits;
    return count == 0 || largest < code->alphabet - first_symbol;
}

static uint32_t next_symbol(ddct_ulp_cursor *cursor) {
    if (!cursor->sparse)
        return *cursor->symbols++;
    for (;;) {
        if (cursor->zeros > 0) {
            cursor->zeros--;
            return 0;
        }
        if (cursor->symbol_follows) {
            cursor->symbol_follows = false;
            return *cursor->symbols++ + 1u;
        }
        if (cursor->runs == cursor->runs_end)
            return 0;
        cursor->zeros = *cursor->runs++;
        cursor->symbol_follows = cursor->zeros < 255;
    }
}

static uint32_t next_bits(ddct_ulp_cursor *cursor, const uint8_t *extra, uint32_t count) {
    uint64_t window;
    memcpy(&window, extra + (cursor->bit >> 3), sizeof window);
    window >>= cursor->bit & 7;
    cursor->bit += count;
    return (uint32_t)(window & (((uint64_t)1 << count) - 1));
}

bool ddct_ulp_apply(const ddct_ulp_code *code, ddct_ulp_cursor *cursors, const uint8_t *extra, const uint8_t *groups,
                    uint32_t *patterns, size_t count) {
    const int64_t half = (int64_t)1 << (code->width - 1);
    bool in_range = true;
    for (size_t i = 0; i < count; i++) {
        ddct_ulp_cursor *cursor = &cursors[groups[i]];
        uint32_t symbol = next_symbol(cursor), bits = code->extra_bits[symbol];
        int64_t residual = code->first[symbol];
        if (bits > 0)
            residual += next_bits(cursor, extra, bits);
        int64_t place = patterns[i] >> code->shift;
        bool negative = place >= half;
        if (negative)
            place = half - 1 - place;
        int64_t target = (symbol & 1) != negative ? place - residual : place + residual;
        in_range = in_range && target >= -half && target < half;
        uint64_t pattern = (uint64_t)(target >= 0 ? target : half - 1 - target);
        patterns[i] = (uint32_t)(pattern << code->shift);
    }
    return in_range;
}

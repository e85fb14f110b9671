/* The arithmetic of ulp.v1 (section 7.3) over plain buffers. No allocation, no state, no floating point; callers check
 * sizes and symbols first. Elements are bit patterns, widened to 32 bits. */
#ifndef DDCT_ULP_KERNELS_H
#define DDCT_ULP_KERNELS_H

#include "ddct_kernels.h"

enum { DDCT_ULP_GROUPS = 255, DDCT_ULP_CONTEXTS = 1527 };

/* The symbols of an element type with a shift, and the magnitudes that they stand for. */
typedef struct ddct_ulp_code {
    uint32_t fraction, exponent_mask; /* F and X of section 7.3 */
    uint32_t shift, width;            /* s and W */
    uint32_t alphabet;                /* A */
    uint8_t extra_bits[256];          /* of each symbol: k */
    uint32_t first[256];              /* of each symbol: the least magnitude */
} ddct_ulp_code;

/* `type` is BF16, F16 or F32; `shift` is at most its bits less 8. */
DDCT_KERNEL void ddct_ulp_make_code(ddct_dtype type, uint32_t shift, ddct_ulp_code *code);

/* Where the symbols and the extra bits of a group have been read up to. Of a sparse group the symbols are those other
 * than 0, each less one; its alphabet is so large that each has a byte of its own. */
typedef struct ddct_ulp_cursor {
    const uint8_t *symbols;
    const uint8_t *runs, *runs_end;
    uint32_t zeros;      /* that the current run has left */
    bool symbol_follows; /* a symbol other than 0 ends the current run */
    bool sparse;
    uint64_t bit; /* of the extra bits */
} ddct_ulp_cursor;

/* Section 7.3.1, steps 2 to 4: the group of each element of one row. `group_of` has the group of each context;
 * `column_keys` may be NULL. */
DDCT_KERNEL void ddct_ulp_groups(const ddct_ulp_code *code, const uint32_t *patterns, size_t count, uint32_t row_key,
                     const uint8_t *column_keys, const uint8_t group_of[DDCT_ULP_CONTEXTS], uint8_t *groups);

/* Are these symbols below `alphabet`? Adds up their extra bits; `first_symbol` is what a byte of 0 stands for. */
DDCT_KERNEL bool ddct_ulp_measure(const ddct_ulp_code *code, const uint8_t *bytes, uint64_t count, uint32_t first_symbol,
                      uint64_t *extra_bits);

/* Section 7.3.3, in place; false if a target lies out of range. Eight bytes can be read from wherever an extra bit is. */
DDCT_KERNEL bool ddct_ulp_apply(const ddct_ulp_code *code, ddct_ulp_cursor *cursors, const uint8_t *extra, const uint8_t *groups,
                    uint32_t *patterns, size_t count);

#endif

/* The arithmetic of dctq.v1 (sections 7.2.3 to 7.2.5) over plain buffers. No allocation, no state, no errors: callers
 * check sizes first. Every function gives the same bits on every machine, provided that the compiler
 * keeps to IEEE 754 binary32 without contraction and that the floating-point environment is the default one. */
#ifndef DDCT_KERNELS_H
#define DDCT_KERNELS_H

#include "ddct.h"

/* Linkage. A program that compiles ddct_kernels.c once per instruction set includes it with `static inline` here. */
#ifndef DDCT_KERNEL
#define DDCT_KERNEL
#endif

enum { DDCT_MAX_PATCH = 32 };

typedef enum ddct_transform { DDCT_TRANSFORM_DCT, DDCT_TRANSFORM_HADAMARD, DDCT_TRANSFORM_NONE } ddct_transform;

/* values = B^T levels B, exactly. `patch` is 8, 16 or 32; both buffers hold patch x patch items row by row. */
DDCT_KERNEL void ddct_inverse_transform(ddct_transform transform, uint32_t patch, const int8_t *levels, int32_t *values);

/* The f32 of B^T 1 B, with 1 the matrix of ones: what a patch of constant levels becomes. */
DDCT_KERNEL void ddct_transform_of_ones(ddct_transform transform, uint32_t patch, float *values);

/* Symbols in a byte: the largest n with alphabet^n <= 256; 0 for an alphabet of 1, which has no bytes. */
DDCT_KERNEL uint32_t ddct_symbols_per_byte(uint32_t alphabet);

/* Bytes that `count` dense symbols take: `dense(m, A)` of section 7.2.4. */
DDCT_KERNEL uint64_t ddct_dense_size(uint64_t count, uint32_t alphabet);

/* Are these ddct_dense_size(count, alphabet) bytes a sequence of symbols? */
DDCT_KERNEL bool ddct_dense_valid(const uint8_t *bytes, uint64_t count, uint32_t alphabet);

/* The level of each symbol of each byte, the first symbol in lowest 8 bits. */
DDCT_KERNEL void ddct_dense_table(const int8_t *levels, uint32_t alphabet, uint64_t table[256]);

/* Levels of the symbols [first, first + count). `bytes` is valid and holds them. `levels` has room for `count` + 7. */
DDCT_KERNEL void ddct_unpack_dense(const uint8_t *bytes, uint64_t first, size_t count, uint32_t per_byte, const uint64_t *table,
                       int8_t *levels);

/* Where a sequence of runs (section 7.2.5) has been read up to. Begin with {runs, runs_end, other, 0, 0, false}. */
typedef struct ddct_sparse_cursor {
    const uint8_t *runs, *runs_end;
    const uint8_t *other; /* the byte of the next symbol other than 0; unused with an alphabet of 2 */
    uint32_t digit;       /* its place in that byte */
    uint64_t zeros;       /* zeros that the current run has left */
    bool symbol_follows;  /* a symbol other than 0 ends the current run */
} ddct_sparse_cursor;

/* Do `runs` stay within `count` symbols? Counts the symbols other than 0. */
DDCT_KERNEL bool ddct_sparse_valid(const uint8_t *runs, uint64_t runs_size, uint64_t count, uint64_t *others);

/* Levels of the next `count` symbols. `per_byte` and `table` are those of the symbols other than 0, that is of the
 * levels 1 ... A-1; for A = 2, per_byte is 0 and `only` is level 1. */
DDCT_KERNEL void ddct_unpack_sparse(ddct_sparse_cursor *cursor, size_t count, uint32_t per_byte, const uint64_t *table, int8_t only,
                        int8_t *levels);

/* For a patch x patch matrix of values: delta = f(value) * scale, into rows that lie `stride` floats apart. */
DDCT_KERNEL void ddct_dequantise_levels(const int32_t *values, uint32_t patch, float scale, float *delta, size_t stride);

/* delta = (f(value) * step + f(J) * minimum) * gain, rounded after each operation; `ones` is f(J). */
DDCT_KERNEL void ddct_dequantise_affine(const int32_t *values, const float *ones, uint32_t patch, float step, float minimum,
                            float gain, float *delta, size_t stride);

/* delta[c] += f(sum over k of factors[k] * right[k * stride + c]) * scale, for c < count <= DDCT_SEGMENT; a factor is
 * multiplier[k] * left[k][r]. */
enum { DDCT_SEGMENT = 512 };
DDCT_KERNEL void ddct_add_low_rank(const int32_t *factors, const int8_t *right, uint64_t stride, uint32_t rank, size_t count,
                       float scale, float *delta);

/* Step 5: out = base + delta, rounded to `type`; Types are F16, BF16 or F32. The buffers do
 * not overlap. */
DDCT_KERNEL void ddct_apply(ddct_dtype base_type, const void *base, const float *delta, ddct_dtype type, void *out, size_t count);

DDCT_KERNEL float ddct_f16_to_f32(uint16_t bits);

#endif

/* Loops that are compiled once per instruction set (kernels_*.c, each of which includes kernels_body.h), and found
 * through a table. All versions give the same bytes. */
#ifndef DDCT_NATIVE_KERNELS_H
#define DDCT_NATIVE_KERNELS_H

#include "encode_kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dctq_layer.h"
#include "ulp_layer.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_X86_LEVELS 1
#else
#define HAVE_X86_LEVELS 0
#endif
/* Compilers whose assembler knows the matrix unit. */
#if HAVE_X86_LEVELS && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAVE_AMX 1
#else
#define HAVE_AMX 0
#endif

typedef struct kernel_table {
    /* Do `runs` stay within `count` symbols (section 7.2.5)? Counts the symbols other than 0. */
    bool (*sparse_valid)(const uint8_t *runs, uint64_t runs_size, uint64_t count, uint64_t *others);
    void (*dense_table)(const int8_t *levels, uint32_t alphabet, uint64_t table[256]);
    /* Fill the scratch memory of a layer that is about to be decoded. */
    void (*prepare_patches)(dctq_layer *layer);
    /* Decode until about `budget` elements are finished; true when all are. The floating-point environment is the
     * default one. */
    bool (*decode_some)(dctq_layer *layer, const dctq_target *target, uint64_t budget);
    void (*ulp_make_code)(ddct_dtype type, uint32_t shift, ddct_ulp_code *code);
    /* Are these symbols below the alphabet? Adds up their extra bits. */
    bool (*ulp_measure)(const ddct_ulp_code *code, const uint8_t *bytes, uint64_t count, uint32_t first_symbol,
                        uint64_t *extra_bits);
    /* Elements of each group. The floating-point environment is the default one, here and below. */
    void (*ulp_count_groups)(const ulp_grouping *grouping, uint64_t counts[256]);
    /* Decode until about `budget` elements are finished; false if a target lies out of range. */
    bool (*ulp_decode_some)(ulp_layer *layer, uint8_t *out, uint64_t budget);
    const encode_table *encode;
    /* Of each row the weighted sum of |target - base|, as far as it is finite, at most 2^60. `work` holds a row. */
    void (*ulp_row_sizes)(const encode_band *band, const float *weights, float *work, float *sizes);
    /* SHA-256 of `count` leaves of `size` bytes, a multiple of 64; NULL where the library is as fast. */
    void (*leaf_digests)(const uint8_t *data, size_t size, size_t count, uint8_t *digests);
    const group_vectors *group_vectors; /* NULL where the instruction set has none */
    bool tiles; /* decode_some() takes `right_tiles` */
} kernel_table;

extern const kernel_table kernels_portable;
#if HAVE_X86_LEVELS
extern const kernel_table kernels_avx2, kernels_avx512, kernels_vbmi2;
#endif
#if HAVE_AMX
extern const kernel_table kernels_amx;

/* May this process use the matrix unit? Asks the operating system, once, when tiles are first needed. */
bool tiles_are_permitted(void);
#endif

/* The table for the instruction set in use: the best of this processor, unless a test has chosen another. */
const kernel_table *kernels(void);

#endif

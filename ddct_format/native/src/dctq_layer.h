/* A layer of dctq.v1 that is being decoded: where its sections lie, and how far its cursors have come. */
#ifndef DDCT_NATIVE_DCTQ_LAYER_H
#define DDCT_NATIVE_DCTQ_LAYER_H

#include "ddct_kernels.h"

enum {
    MAX_PATCH = 32,
    MAX_RANK = 256,
    TILE = 256,      /* columns that are decoded together: 16 rows of them, as floats, leave room in a first-level cache */
    COLUMN_PAD = 16, /* buffers over columns are this much longer, for loops over whole vectors */
};

typedef struct dctq_class {
    uint32_t alphabet;
    uint32_t per_byte; /* symbols in a byte; of a sparse class, of those other than 0 (0: it has only one such level) */
    bool sparse;
    int8_t levels[256];
    uint32_t largest; /* magnitude of a level */
    float scale;
    uint64_t table[256]; /* levels of the symbols of each byte */
    const uint8_t *packed, *packed_end;
    uint64_t symbols; /* that are left */
    uint64_t next;    /* dense: the next symbol */
    const uint8_t *runs, *runs_end;
    uint64_t gap;    /* sparse: zeros before the next other symbol, UINT64_MAX if there is none */
    uint64_t window; /* sparse: levels of the byte that is being taken apart */
    uint32_t digits; /* and how many of them are left */
} dctq_class;

/* Working memory of a row of patches. */
typedef struct dctq_scratch {
    float ones[MAX_PATCH * MAX_PATCH] __attribute__((aligned(64)));
    int32_t values[MAX_PATCH * MAX_PATCH] __attribute__((aligned(64)));
    int8_t levels[MAX_PATCH * MAX_PATCH + 64] __attribute__((aligned(64)));
    uint16_t half[MAX_PATCH * MAX_PATCH] __attribute__((aligned(64))); /* after one dimension of the transform */
    uint32_t pairs[MAX_PATCH * MAX_PATCH / 4] __attribute__((aligned(64))); /* of the basis, for the other dimension */
    float row[TILE] __attribute__((aligned(64)));                      /* of the view, in its order of columns */
    int32_t factors[2][MAX_RANK / 2][MAX_PATCH] __attribute__((aligned(64)));
    uint8_t factor_bytes[3][MAX_PATCH][MAX_RANK] __attribute__((aligned(64))); /* instead, with `right_tiles` */
} dctq_scratch;

typedef struct dctq_layer {
    uint64_t rows, cols, down, across; /* of the view; of its patches */
    uint32_t patch, class_count, rank;
    ddct_transform transform;
    bool affine;
    float gain, low_rank_scale;
    const uint8_t *class_map;  /* NULL with one class */
    const uint8_t *ranges;     /* affine: four planes */
    uint64_t coded, all_coded; /* affine: patches with ranges, so far and in all */
    const uint8_t *multipliers;
    const int8_t *left;
    int32_t *right;      /* [pairs of terms][right_stride]: int16 of both, in the patches' order of columns */
    size_t right_stride; /* a multiple of 16 */
    uint8_t *right_tiles; /* NULL, or instead of `right`: of each 16 columns and 64 terms [term / 4][column][term % 4] */
    bool wide[MAX_RANK / 2]; /* pairs of terms whose factors need more than 16 bits */
    bool some_wide;
    size_t *row_order;       /* row of the view of each row of the patches; NULL: the identity */
    uint32_t *column_place;  /* column of the patches of each column of the view; NULL: the identity */
    float *delta;            /* [patch][delta_stride]: a tile, or with column_place a whole row of patches */
    size_t delta_stride;
    dctq_scratch *scratch;
    dctq_class *classes;
    uint64_t next_row, next_column; /* of patches */
    double error; /* squares of what the rows that are finished differ from `wanted` by; infinite if one is not finite */
} dctq_layer;

/* What the layer is applied to. */
typedef struct dctq_target {
    const uint8_t *base; /* NULL: only the delta is wanted, as float */
    uint8_t *out;
    ddct_dtype base_dtype, dtype;
    size_t base_width, width; /* bytes of an element */
    const uint8_t *wanted;    /* what `out` is compared with while it is in the caches; NULL for nothing */
} dctq_target;

/* Allocate and fill what decoding needs, the sizes, `classes`, `multipliers` and `left` being set; false if there is not
 * enough memory. Keys are NULL where there are none. */
bool dctq_prepare(dctq_layer *layer, const uint8_t *row_keys, const uint8_t *column_keys, const int8_t *right);

/* The same for one class, whose levels, symbols and bytes are set. */
void dctq_prepare_class(dctq_class *class);

/* Free the layer and all that belongs to it. */
void dctq_release(dctq_layer *layer);

#endif

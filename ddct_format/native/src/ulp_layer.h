/* A layer of ulp.v1 that is being decoded. */
#ifndef DDCT_NATIVE_ULP_LAYER_H
#define DDCT_NATIVE_ULP_LAYER_H

#include "ddct_ulp_kernels.h"
#include "group_vectors.h"

enum { ULP_TILE = GROUP_TILE, ULP_READ = ULP_TILE + GROUP_SLACK, ULP_WINDOW = 4 * ULP_TILE };

/* Where the symbols and the extra bits of a group have been read up to. Nothing is ever read beyond the ends, even if the
 * payload or the prediction changes under our eyes: the last symbols of a group, and those that runs stand for, are read
 * from a window, in which zeros follow. */
typedef struct ulp_cursor {
    const uint8_t *end;  /* of the symbols that lie at the layer's `next` */
    const uint8_t *last; /* a place from which ULP_READ bytes can still be read */
    uint64_t bit;        /* of the extra bits */
    bool sparse;
    const uint8_t *values, *values_end; /* of a sparse group: symbols other than 0, each less one */
    const uint8_t *runs, *runs_end;
    uint32_t zeros;   /* that the current run has left */
    bool value_waits; /* a symbol other than 0 ends the current run */
} ulp_cursor;

/* The tensor so far, and how its elements fall into groups. */
typedef struct ulp_grouping {
    const uint8_t *before;
    ddct_dtype before_type, type;
    size_t before_width, width;
    uint64_t rows, cols;
    const uint8_t *row_keys, *column_keys; /* NULL where there are none */
    const uint8_t *group_of;               /* [DDCT_ULP_CONTEXTS] */
    ddct_ulp_code code;
    const group_vectors *vectors; /* NULL where elements are taken one by one */
    narrow_groups narrow;
    bool in_place; /* the prediction's patterns are read where they lie: they are of 16 bits, and there are `vectors` */
} ulp_grouping;

typedef struct ulp_layer {
    ulp_grouping grouping;
    uint8_t group_of[DDCT_ULP_CONTEXTS];
    uint32_t groups;
    uint32_t first_long; /* the first symbol with extra bits; more than there are if none has */
    ulp_cursor cursors[DDCT_ULP_GROUPS];
    const uint8_t *next[DDCT_ULP_GROUPS + 1]; /* the next symbol of each group */
    uint8_t *windows;                         /* [groups][ULP_WINDOW] */
    size_t readable;                          /* symbols that may be read of each group before its window is filled again */
    const uint8_t *extra;
    uint64_t extra_size; /* bytes */
    uint64_t row, column;
} ulp_layer;

#endif

/* Getting a layer ready: memory, tables, orders. No Python here. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

enum { FEWEST_TILE_TERMS = 12 }; /* with fewer, vectors are as fast */

static void *allocate(uint64_t count, size_t size) {
    if (count > (SIZE_MAX - 128) / size)
        return NULL;
    return aligned_alloc(64, ((size_t)count * size + 128) / 64 * 64);
}

/* Step 3 of section 7.2.3: the indices ordered by their key, equal keys in ascending order. */
#define DEFINE_ORDER(NAME, INDEX, STATEMENT)                                                                        \
    static void NAME(const uint8_t *keys, uint64_t count, INDEX *result) {                                          \
        uint64_t next[257] = {0};                                                                                   \
        for (uint64_t i = 0; i < count; i++)                                                                        \
            next[keys[i] + 1]++;                                                                                    \
        for (uint32_t key = 1; key < 257; key++)                                                                    \
            next[key] += next[key - 1];                                                                             \
        for (uint64_t i = 0; i < count; i++) {                                                                      \
            uint64_t place = next[keys[i]]++;                                                                       \
            STATEMENT;                                                                                              \
        }                                                                                                           \
    }
DEFINE_ORDER(order_by_key, size_t, result[place] = (size_t)i)
DEFINE_ORDER(places_by_key, uint32_t, result[i] = (uint32_t)place)

static bool prepare_columns(dctq_layer *d, const uint8_t *column_keys) {
    d->delta_stride = TILE + COLUMN_PAD;
    if (column_keys == NULL)
        return true;
    if (d->cols > INT32_MAX)
        return false;
    d->column_place = allocate(d->cols, sizeof *d->column_place);
    if (d->column_place == NULL)
        return false;
    places_by_key(column_keys, d->cols, d->column_place);
    d->delta_stride = (size_t)(d->across * d->patch + 2 * COLUMN_PAD) / COLUMN_PAD * COLUMN_PAD;
    return true;
}

#if HAVE_AMX
/* For the matrix unit. */
static bool prepare_tiles(dctq_layer *d, const int8_t *right) {
    const size_t depth = (d->rank + 63) / 64;
    const uint64_t size = (d->across * d->patch + 15) / 16 * depth * 1024;
    d->right_tiles = allocate(size, 1);
    if (d->right_tiles == NULL)
        return false;
    memset(d->right_tiles, 0, size);
    for (uint32_t term = 0; term < d->rank; term++)
        for (uint64_t c = 0; c < d->cols; c++) {
            uint64_t place = d->column_place == NULL ? c : d->column_place[c];
            uint8_t *tile = d->right_tiles + (place / 16 * depth + term / 64) * 1024;
            tile[term % 64 / 4 * 64 + place % 16 * 4 + term % 4] = (uint8_t)right[term * d->cols + c];
        }
    return true;
}
#endif

/* Terms in pairs, columns in the order of the patches. */
static bool prepare_low_rank(dctq_layer *d, const int8_t *right) {
    const uint32_t pairs = (d->rank + 1) / 2;
#if HAVE_AMX
    if (kernels()->tiles && d->rank >= FEWEST_TILE_TERMS && tiles_are_permitted())
        return prepare_tiles(d, right);
#endif
    d->right_stride = (size_t)(d->across * d->patch + 2 * COLUMN_PAD + 31) / 32 * 32;
    d->right = pairs == 0 ? NULL : allocate(d->right_stride * pairs, sizeof *d->right);
    if (pairs > 0 && d->right == NULL)
        return false;
    for (uint32_t pair = 0; pair < pairs; pair++) {
        int32_t *to = d->right + pair * d->right_stride;
        const int8_t *first = right + 2 * pair * d->cols;
        const int8_t *second = 2 * pair + 1 < d->rank ? first + d->cols : NULL;
        memset(to, 0, d->right_stride * sizeof *to);
        for (uint64_t c = 0; c < d->cols; c++) {
            uint32_t both = (uint16_t)(int16_t)first[c] | (uint32_t)(second == NULL ? 0 : (uint16_t)(int16_t)second[c]) << 16;
            to[d->column_place == NULL ? c : d->column_place[c]] = (int32_t)both;
        }
        for (uint32_t term = 2 * pair; term < 2 * pair + 2 && term < d->rank; term++)
            d->wide[pair] = d->wide[pair] || d->multipliers[2 * term + 1] != 0; /* 255 * 128 fits 16 bits */
        d->some_wide = d->some_wide || d->wide[pair];
    }
    return true;
}

bool dctq_prepare(dctq_layer *d, const uint8_t *row_keys, const uint8_t *column_keys, const int8_t *right) {
    d->down = d->rows / d->patch + (d->rows % d->patch != 0);
    d->across = d->cols / d->patch + (d->cols % d->patch != 0);
    if (!prepare_columns(d, column_keys) || !prepare_low_rank(d, right))
        return false;
    if (row_keys != NULL) {
        d->row_order = allocate(d->rows, sizeof *d->row_order);
        if (d->row_order == NULL)
            return false;
        order_by_key(row_keys, d->rows, d->row_order);
    }
    d->scratch = allocate(1, sizeof *d->scratch);
    d->delta = allocate(d->patch * (uint64_t)d->delta_stride, sizeof *d->delta);
    if (d->scratch == NULL || d->delta == NULL)
        return false;
    memset(d->delta, 0, d->patch * d->delta_stride * sizeof *d->delta);
    kernels()->prepare_patches(d);
    return true;
}

void dctq_prepare_class(dctq_class *class) {
    uint32_t stored = class->alphabet - class->sparse;
    for (uint32_t states = stored; stored > 1 && states <= 256; states *= stored)
        class->per_byte++;
    if (stored > 1)
        kernels()->dense_table(class->levels + class->sparse, stored, class->table);
    for (uint32_t i = 0; i < class->alphabet; i++) {
        uint32_t magnitude = (uint32_t)(class->levels[i] < 0 ? -class->levels[i] : class->levels[i]);
        class->largest = magnitude > class->largest ? magnitude : class->largest;
    }
    if (class->sparse) { /* up to the first symbol other than 0 */
        for (;;) {
            if (class->runs == class->runs_end) {
                class->gap = UINT64_MAX;
                break;
            }
            uint8_t run = *class->runs++;
            class->gap += run;
            if (run < 255)
                break;
        }
    }
}

void dctq_release(dctq_layer *d) {
    free(d->right);
    free(d->right_tiles);
    free(d->row_order);
    free(d->column_place);
    free(d->delta);
    free(d->scratch);
    free(d->classes);
    free(d);
}

/* `dctq.v1` (section 7.2): the payload, checked section by section, and its patches, decoded onto the base. */
#include "ddct_dctq.h"

#include <fenv.h>
#include <string.h>

/* Part of a payload that was read by itself; its bytes follow. */
typedef struct piece {
    struct piece *next;
} piece;

typedef struct class_state {
    uint32_t alphabet, per_byte; /* per_byte: of the codes, which for a sparse class are the symbols other than 0 */
    bool sparse;
    int8_t levels[256];
    float scale;
    const uint64_t *table;
    const uint8_t *codes;
    uint64_t next; /* symbol */
    ddct_sparse_cursor cursor;
    uint64_t before, inside, patches; /* patches before the part that is decoded, inside it, and in all */
} class_state;

/* Working memory for one tile: a row of patches, at most DDCT_SEGMENT columns wide. */
typedef struct tile {
    float delta[DDCT_MAX_PATCH * DDCT_SEGMENT];
    float ones[DDCT_MAX_PATCH * DDCT_MAX_PATCH];
    int32_t values[DDCT_MAX_PATCH * DDCT_MAX_PATCH];
    int8_t levels[DDCT_MAX_PATCH * DDCT_MAX_PATCH + 8];
    uint32_t base[DDCT_SEGMENT], out[DDCT_SEGMENT]; /* a row of the tile; elements of 2 or 4 bytes */
    int32_t factors[256]; /* of the low-rank terms, for one row */
    int8_t right[]; /* with column keys: [rank][DDCT_SEGMENT] */
} tile;

typedef struct decoder {
    const ddct_dctq *params;
    const ddct_json *json;
    ddct_memory *memory;
    ddct_error *error;
    ddct_chunks chunks;
    uint8_t *payload; /* all of it, or NULL: then pieces are read as they are needed */
    piece *pieces;
    uint64_t size;
    ddct_rows rows;
    uint64_t first_patch_row, end_patch_row;
    ddct_sections at;
    const uint8_t *head; /* the sections up to `at.end` */
    float low_rank_scale, gain;
    class_state *classes;
    uint64_t *tables;
    const uint8_t *affine[4]; /* the planes of minima and steps, for the next patch with two levels or more */
    uint64_t *row_order, *column_order;
    tile *tile;
} decoder;

static ddct_status refuse(decoder *d, const char *what) {
    return ddct_fail(d->error, DDCT_INVALID, "payload: %s", what);
}

/* Get bytes [offset, offset + size) of the payload. */
static ddct_status fetch(decoder *d, uint64_t offset, uint64_t size, const uint8_t **bytes) {
    if (offset > d->size || size > d->size - offset)
        return refuse(d, "its sections are larger than its size");
    if (d->payload != NULL) {
        *bytes = d->payload + offset;
        return DDCT_OK;
    }
    piece *new_piece = ddct_allocate(d->memory, size + sizeof *new_piece, 1, d->error);
    if (new_piece == NULL)
        return DDCT_BUDGET;
    new_piece->next = d->pieces;
    d->pieces = new_piece;
    *bytes = (const uint8_t *)(new_piece + 1);
    return ddct_read_range(&d->chunks, offset, size, (uint8_t *)(new_piece + 1), d->error);
}

static uint16_t load_u16(const uint8_t *low, const uint8_t *high) { return (uint16_t)(*low | *high << 8); }

static uint16_t multiplier(const decoder *d, uint32_t term) {
    const uint8_t *bytes = d->head + d->at.multipliers + 2 * (size_t)term;
    return load_u16(bytes, bytes + 1);
}

static float load_f32(const uint8_t *bytes) {
    float value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static bool scale_is_good(float scale) { return scale >= 0.0f && scale <= 3.402823466e38f; }

static ddct_status read_scales(decoder *d) {
    const ddct_dctq *params = d->params;
    uint64_t count = d->at.multipliers / 4;
    for (uint64_t i = 0; i < count; i++)
        if (!scale_is_good(load_f32(d->head + 4 * i)))
            return refuse(d, "a scale is negative or not finite");
    for (uint32_t c = 0; !params->affine && c < params->class_count; c++)
        d->classes[c].scale = load_f32(d->head + 4 * c);
    if (params->affine)
        d->gain = load_f32(d->head);
    if (params->rank > 0)
        d->low_rank_scale = load_f32(d->head + 4 * (count - 1));
    uint32_t sum = 0;
    for (uint32_t k = 0; k < params->rank; k++)
        sum += multiplier(d, k);
    return sum < 1 << 17 ? DDCT_OK : refuse(d, "the sum of the multipliers exceeds 2^17 - 1");
}

static ddct_status count_classes(decoder *d) {
    const ddct_dctq *params = d->params;
    uint64_t first = d->first_patch_row * params->patch_columns, end = d->end_patch_row * params->patch_columns;
    if (params->class_count == 1) {
        d->classes[0].before = first;
        d->classes[0].inside = end - first;
        d->classes[0].patches = params->patches;
        return DDCT_OK;
    }
    const uint8_t *map = d->head + d->at.class_map;
    uint64_t counts[3][256] = {{0}};
    for (uint64_t i = 0; i < params->patches; i++)
        counts[(i >= first) + (i >= end)][map[i]]++;
    for (uint32_t c = 0; c < 256; c++) {
        uint64_t patches = counts[0][c] + counts[1][c] + counts[2][c];
        if (c >= params->class_count && patches > 0)
            return refuse(d, "the class map names a class that is not there");
        if (c < params->class_count) {
            d->classes[c].before = counts[0][c];
            d->classes[c].inside = counts[1][c];
            d->classes[c].patches = patches;
        }
    }
    return DDCT_OK;
}

/* Move `offset` past the minima and steps. */
static ddct_status read_affine(decoder *d, uint64_t *offset) {
    uint64_t before = 0, inside = 0, all = 0;
    for (uint32_t c = 0; c < d->params->class_count; c++) {
        const class_state *class = &d->classes[c];
        before += class->alphabet > 1 ? class->before : 0;
        inside += class->alphabet > 1 ? class->inside : 0;
        all += class->alphabet > 1 ? class->patches : 0;
    }
    for (uint32_t plane = 0; plane < 4; plane++) {
        ddct_status status = fetch(d, *offset + plane * all + before, inside, &d->affine[plane]);
        if (status != DDCT_OK)
            return status;
    }
    for (uint64_t i = 0; i < inside; i++) {
        uint16_t minimum = load_u16(d->affine[0] + i, d->affine[1] + i);
        uint16_t step = load_u16(d->affine[2] + i, d->affine[3] + i);
        if ((minimum & 0x7C00) == 0x7C00)
            return refuse(d, "a minimum is not finite");
        if ((step & 0x7C00) == 0x7C00 || step > 0x8000)
            return refuse(d, "a step is negative or not finite");
    }
    *offset += 4 * all;
    return DDCT_OK;
}

static ddct_status read_dense_class(decoder *d, class_state *class, uint64_t *offset) {
    uint64_t in_patch = (uint64_t)d->params->patch * d->params->patch;
    uint64_t symbols = class->patches * in_patch, first = class->before * in_patch;
    uint64_t end = first + class->inside * in_patch;
    uint64_t first_byte = first / class->per_byte, end_byte = ddct_dense_size(end, class->alphabet);
    if (first == end)
        end_byte = first_byte;
    ddct_status status = fetch(d, *offset + first_byte, end_byte - first_byte, &class->codes);
    if (status != DDCT_OK)
        return status;
    uint64_t skipped = first_byte * class->per_byte, held = (end_byte - first_byte) * class->per_byte;
    if (!ddct_dense_valid(class->codes, held < symbols - skipped ? held : symbols - skipped, class->alphabet))
        return refuse(d, "a byte of symbols is out of range");
    class->next = first - skipped;
    *offset += ddct_dense_size(symbols, class->alphabet);
    return DDCT_OK;
}

static ddct_status read_sparse_class(decoder *d, class_state *class, uint32_t run_bytes, uint64_t *offset) {
    uint64_t in_patch = (uint64_t)d->params->patch * d->params->patch, others;
    const uint8_t *runs, *codes;
    ddct_status status = fetch(d, *offset, run_bytes, &runs);
    if (status != DDCT_OK)
        return status;
    if (!ddct_sparse_valid(runs, run_bytes, class->patches * in_patch, &others))
        return refuse(d, "runs reach beyond the symbols of their class");
    uint64_t size = ddct_dense_size(others, class->alphabet - 1);
    status = fetch(d, *offset + run_bytes, size, &codes);
    if (status != DDCT_OK)
        return status;
    if (!ddct_dense_valid(codes, others, class->alphabet - 1))
        return refuse(d, "a byte of symbols is out of range");
    class->cursor = (ddct_sparse_cursor){.runs = runs, .runs_end = runs + run_bytes, .other = codes};
    for (uint64_t i = 0; i < class->before && class->inside > 0; i++)
        ddct_unpack_sparse(&class->cursor, (size_t)in_patch, class->per_byte, class->table, class->levels[1],
                           d->tile->levels);
    *offset += run_bytes + size;
    return DDCT_OK;
}

/* Levels and tables, from the parameters. */
static ddct_status prepare_classes(decoder *d) {
    const ddct_dctq *params = d->params;
    d->classes = ddct_allocate_zeroed(d->memory, params->class_count, sizeof *d->classes, d->error);
    d->tables = d->classes == NULL
                    ? NULL
                    : ddct_allocate(d->memory, params->class_count, 256 * sizeof *d->tables, d->error);
    if (d->tables == NULL)
        return DDCT_BUDGET;
    uint32_t node = params->sparse + 1;
    for (uint32_t i = 0; i < params->sparse_count; i++, node = d->json->nodes[node].end)
        d->classes[ddct_json_integer(d->json, node)].sparse = true;
    node = params->classes + 1;
    for (uint32_t c = 0; c < params->class_count; c++, node = d->json->nodes[node].end) {
        class_state *class = &d->classes[c];
        class->alphabet = ddct_class_levels(d->json, node, class->levels);
        uint32_t stored = class->sparse ? class->alphabet - 1 : class->alphabet;
        class->per_byte = ddct_symbols_per_byte(stored);
        class->table = d->tables + 256 * (size_t)c;
        if (class->per_byte > 0)
            ddct_dense_table(class->levels + class->sparse, stored, d->tables + 256 * (size_t)c);
    }
    return DDCT_OK;
}

static ddct_status read_sections(decoder *d) {
    const ddct_dctq *params = d->params;
    d->at = ddct_locate_sections(params);
    ddct_status status = fetch(d, 0, d->at.end, &d->head);
    if (status == DDCT_OK)
        status = read_scales(d);
    if (status == DDCT_OK)
        status = count_classes(d);
    uint64_t offset = d->at.end;
    if (status == DDCT_OK && params->affine)
        status = read_affine(d, &offset);
    const uint8_t *run_counts = d->head + d->at.run_counts;
    for (uint32_t c = 0; c < params->class_count && status == DDCT_OK; c++) {
        class_state *class = &d->classes[c];
        if (class->sparse) {
            uint32_t count = (uint32_t)load_u16(run_counts, run_counts + 1) |
                             (uint32_t)load_u16(run_counts + 2, run_counts + 3) << 16;
            run_counts += 4;
            status = read_sparse_class(d, class, count, &offset);
        } else if (class->alphabet > 1) {
            status = read_dense_class(d, class, &offset);
        }
    }
    if (status == DDCT_OK && offset != d->size)
        status = refuse(d, "its sections are smaller than its size");
    return status;
}

/* Step 3: the indices ordered by their key, equal keys in ascending order. */
static ddct_status order_by_key(decoder *d, const uint8_t *keys, uint64_t count, uint64_t **order) {
    *order = ddct_allocate(d->memory, count, sizeof **order, d->error);
    if (*order == NULL)
        return DDCT_BUDGET;
    uint64_t next[257] = {0};
    for (uint64_t i = 0; i < count; i++)
        next[keys[i] + 1]++;
    for (uint32_t key = 1; key < 257; key++)
        next[key] += next[key - 1];
    for (uint64_t i = 0; i < count; i++)
        (*order)[next[keys[i]]++] = i;
    return DDCT_OK;
}

/* Steps 1 and 2 for the next patch: its delta, in rows DDCT_SEGMENT apart. */
static void decode_patch(decoder *d, uint64_t patch, float *delta) {
    const ddct_dctq *params = d->params;
    tile *t = d->tile;
    uint32_t p = params->patch;
    class_state *class = &d->classes[params->class_count > 1 ? d->head[d->at.class_map + patch] : 0];
    if (class->alphabet == 1) {
        for (uint32_t row = 0; row < p; row++)
            memset(delta + row * DDCT_SEGMENT, 0, p * sizeof *delta);
        return;
    }
    if (class->sparse)
        ddct_unpack_sparse(&class->cursor, (size_t)p * p, class->per_byte, class->table, class->levels[1], t->levels);
    else
        ddct_unpack_dense(class->codes, class->next, (size_t)p * p, class->per_byte, class->table, t->levels);
    class->next += (uint64_t)p * p;
    ddct_inverse_transform(params->transform, p, t->levels, t->values);
    if (!params->affine) {
        ddct_dequantise_levels(t->values, p, class->scale, delta, DDCT_SEGMENT);
        return;
    }
    float minimum = ddct_f16_to_f32(load_u16(d->affine[0]++, d->affine[1]++));
    float step = ddct_f16_to_f32(load_u16(d->affine[2]++, d->affine[3]++));
    ddct_dequantise_affine(t->values, t->ones, p, step, minimum, d->gain, delta, DDCT_SEGMENT);
}

/* out[i] = in[order[i]] */
static void gather(const uint8_t *in, const uint64_t *order, uint32_t size, size_t count, void *out) {
    for (size_t i = 0; i < count; i++)
        memcpy((uint8_t *)out + i * size, in + order[i] * size, size);
}

/* out[order[i]] = in[i] */
static void scatter(const void *in, const uint64_t *order, uint32_t size, size_t count, uint8_t *out) {
    for (size_t i = 0; i < count; i++)
        memcpy(out + order[i] * size, (const uint8_t *)in + i * size, size);
}

typedef struct target {
    const uint8_t *base;
    uint8_t *out;
    ddct_dtype base_dtype, dtype;
} target;

/* Steps 3 to 5 for row `row` of the view, columns [column, column + count) of P. */
static void apply_row(decoder *d, const target *to, uint64_t row, uint64_t column, size_t count, float *delta) {
    const ddct_dctq *params = d->params;
    tile *t = d->tile;
    const uint64_t *order = d->column_order == NULL ? NULL : d->column_order + column;
    if (params->rank > 0) {
        const int8_t *left = (const int8_t *)d->head + d->at.left + row;
        for (uint32_t k = 0; k < params->rank; k++)
            t->factors[k] = multiplier(d, k) * left[k * params->rows];
        const int8_t *right = order != NULL ? t->right : (const int8_t *)d->head + d->at.right + column;
        ddct_add_low_rank(t->factors, right, order != NULL ? DDCT_SEGMENT : params->columns, params->rank,
                          count, d->low_rank_scale, delta);
    }
    uint32_t base_size = ddct_dtype_size(to->base_dtype), size = ddct_dtype_size(to->dtype);
    uint64_t start = (row - d->rows.first) * params->columns;
    if (order != NULL) {
        gather(to->base + start * base_size, order, base_size, count, t->base);
        ddct_apply(to->base_dtype, t->base, delta, to->dtype, t->out, count);
        scatter(t->out, order, size, count, to->out + start * size);
    } else {
        /* Tensors in memory need not be aligned. */
        memcpy(t->base, to->base + (start + column) * base_size, count * base_size);
        ddct_apply(to->base_dtype, t->base, delta, to->dtype, t->out, count);
        memcpy(to->out + (start + column) * size, t->out, count * size);
    }
}

static void decode_tile(decoder *d, const target *to, uint64_t patch_row, uint64_t first_patch, uint64_t end_patch) {
    const ddct_dctq *params = d->params;
    uint64_t column = first_patch * params->patch, left = params->columns - column;
    uint64_t width = (end_patch - first_patch) * params->patch;
    size_t count = (size_t)(width < left ? width : left);
    for (uint64_t i = first_patch; i < end_patch; i++)
        decode_patch(d, patch_row * params->patch_columns + i, d->tile->delta + (i - first_patch) * params->patch);
    if (d->column_order != NULL)
        for (uint32_t k = 0; k < params->rank; k++)
            gather(d->head + d->at.right + k * params->columns, d->column_order + column, 1, count,
                   d->tile->right + (size_t)k * DDCT_SEGMENT);
    for (uint32_t i = 0; i < params->patch; i++) {
        uint64_t row = patch_row * params->patch + i;
        if (row >= params->rows)
            break;
        if (d->row_order != NULL)
            row = d->row_order[row];
        if (row >= d->rows.first && row - d->rows.first < d->rows.count)
            apply_row(d, to, row, column, count, d->tile->delta + i * DDCT_SEGMENT);
    }
}

static ddct_status decode_patches(decoder *d, const target *to) {
    const ddct_dctq *params = d->params;
    ddct_status status = DDCT_OK;
    if (params->row_keys)
        status = order_by_key(d, d->head + d->at.row_keys, params->rows, &d->row_order);
    if (status == DDCT_OK && params->column_keys)
        status = order_by_key(d, d->head + d->at.column_keys, params->columns, &d->column_order);
    if (status != DDCT_OK)
        return status;
    /* The caller's rounding mode, or its flushing of subnormals, must not change results. */
    fenv_t environment;
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);
    ddct_transform_of_ones(params->transform, params->patch, d->tile->ones);
    uint64_t patches_in_tile = DDCT_SEGMENT / params->patch;
    for (uint64_t row = d->first_patch_row; row < d->end_patch_row; row++)
        for (uint64_t first = 0; first < params->patch_columns; first += patches_in_tile) {
            uint64_t end = first + patches_in_tile;
            decode_tile(d, to, row, first, end < params->patch_columns ? end : params->patch_columns);
        }
    fesetenv(&environment);
    return DDCT_OK;
}

static ddct_status load_payload(decoder *d) {
    if (!d->rows.all)
        return DDCT_OK;
    d->payload = ddct_allocate(d->memory, d->size, 1, d->error);
    return d->payload == NULL ? DDCT_BUDGET : ddct_read_payload(&d->chunks, d->payload, d->error);
}

static void release(decoder *d) {
    ddct_end_chunks(&d->chunks);
    while (d->pieces != NULL) {
        piece *next = d->pieces->next;
        ddct_release(d->memory, d->pieces);
        d->pieces = next;
    }
    ddct_release(d->memory, d->payload);
    ddct_release(d->memory, d->classes);
    ddct_release(d->memory, d->tables);
    ddct_release(d->memory, d->row_order);
    ddct_release(d->memory, d->column_order);
    ddct_release(d->memory, d->tile);
}

/* Only checks the payload if `out` is NULL. */
ddct_status ddct_decode_dctq(const ddct_dctq *params, const ddct_archive *archive, const ddct_layer *layer,
                             ddct_rows rows, const void *base, ddct_dtype base_dtype, void *out, ddct_dtype dtype,
                             ddct_memory *memory, ddct_error *error) {
    decoder d = {.params = params, .json = &archive->json, .memory = memory, .error = error,
                 .size = layer->payload.size, .rows = rows};
    if (rows.all)
        d.rows.count = params->rows;
    d.first_patch_row = d.rows.first / params->patch;
    d.end_patch_row = (d.rows.first + d.rows.count + params->patch - 1) / params->patch;
    ddct_status status = ddct_begin_chunks(&d.chunks, archive, &layer->payload, memory, error);
    if (status == DDCT_OK)
        status = load_payload(&d);
    if (status == DDCT_OK) {
        size_t right = params->column_keys ? (size_t)params->rank * DDCT_SEGMENT : 0;
        d.tile = ddct_allocate(memory, sizeof(tile) + right, 1, error);
        status = d.tile == NULL ? DDCT_BUDGET : prepare_classes(&d);
    }
    if (status == DDCT_OK)
        status = read_sections(&d);
    target to = {.base = base, .out = out, .base_dtype = base_dtype, .dtype = dtype};
    if (status == DDCT_OK && out != NULL)
        status = decode_patches(&d, &to);
    release(&d);
    return status;
}

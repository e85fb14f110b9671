/* `ulp.v1` (section 7.3): parameters, payload and decoding. The arithmetic is in ddct_ulp_kernels.c. */
#include "ddct_ulp_kernels.h"

#include "ddct_internal.h"

#include <fenv.h>
#include <string.h>

enum { MAX_BOUND = DDCT_ULP_CONTEXTS - 1, PADDING = 8 };

/* Working memory for a part of a row. */
typedef struct segment {
    float zeros[DDCT_SEGMENT];
    uint32_t base[DDCT_SEGMENT], prediction[DDCT_SEGMENT]; /* elements of 2 or 4 bytes */
    uint32_t patterns[DDCT_SEGMENT];
    uint8_t groups[DDCT_SEGMENT];
} segment;

typedef struct decoder {
    const ddct_ulp *params;
    ddct_error *error;
    ddct_ulp_code code;
    const uint8_t *base;
    uint8_t *out;
    ddct_dtype base_dtype, dtype;
    uint64_t size;
    uint8_t *payload;
    const uint8_t *row_keys, *column_keys, *extra; /* the keys are NULL where there are none */
    uint8_t group_of[DDCT_ULP_CONTEXTS];
    uint64_t counts[DDCT_ULP_GROUPS]; /* elements of each group */
    ddct_ulp_cursor cursors[DDCT_ULP_GROUPS];
    segment work;
} decoder;

static bool is_float(ddct_dtype dtype) { return dtype == DDCT_BF16 || dtype == DDCT_F16 || dtype == DDCT_F32; }

static bool read_flag(ddct_schema *schema, uint32_t node) {
    if (node != 0 && schema->json->nodes[node].type != DDCT_JSON_TRUE)
        ddct_breach(schema, node, DDCT_INVALID, "row_keys and col_keys are true or absent");
    return node != 0;
}

/* A list of strictly ascending integers. Returns how many there are. */
static uint32_t read_ascending(ddct_schema *schema, uint32_t node, const char *what, uint32_t least_count,
                               uint32_t most_count, uint32_t least, uint32_t most, uint16_t *values) {
    if (!ddct_read_array(schema, node, what, least_count, most_count))
        return 0;
    uint32_t count = schema->json->nodes[node].length, value = node + 1;
    for (uint32_t i = 0; i < count; i++, value = schema->json->nodes[value].end) {
        values[i] = (uint16_t)ddct_read_integer(schema, value, what, least, most);
        if (i > 0 && values[i] <= values[i - 1])
            ddct_breach(schema, value, DDCT_INVALID, "%s: not in ascending order", what);
    }
    return count;
}

/* Bytes of the sections down to the run counts. */
static uint64_t fixed_size(const ddct_ulp *params) {
    return (params->row_keys ? params->rows : 0) + (params->column_keys ? params->columns : 0) +
           4 * (uint64_t)params->sparse_count;
}

/* `size` against the bounds of section 7.3.2. */
static bool size_is_possible(const ddct_ulp *params, uint64_t elements, uint32_t width, uint64_t size) {
    uint64_t fixed = fixed_size(params), bits = elements * (width - 1 - (width <= 16 ? 3 : 2));
    uint64_t least = params->sparse_count > 0 ? 0 : elements;
    uint64_t most = params->sparse_count > 0 ? 2 * elements : elements;
    return size >= fixed + least && size <= fixed + most + bits / 8 + (bits % 8 != 0);
}

ddct_status ddct_read_ulp(const ddct_archive *archive, const ddct_entry *tensor, uint32_t index, ddct_ulp *params,
                          ddct_error *error) {
    static const char *const names[] = {"cols", "bounds", "shift", "sparse", "row_keys", "col_keys"};
    const ddct_tensor *info = &tensor->info;
    const ddct_layer *layer = &tensor->layers[index];
    ddct_schema reader = {.json = &archive->json, .error = error, .tensor = info->name}, *schema = &reader;
    uint32_t values[6];
    memset(params, 0, sizeof *params);
    if (!is_float(info->dtype) || (index == 0 && !is_float(info->base_dtype)))
        return ddct_fail(error, DDCT_INVALID, "ulp.v1 is for BF16, F16 and F32");
    uint32_t bits = 8 * ddct_dtype_size(info->dtype);
    ddct_read_object(schema, layer->params, "params", names, 6, values);
    params->columns = ddct_read_integer(schema, values[0], "cols", 1, (uint64_t)1 << 48);
    if (values[0] != 0 && (info->elements == 0 || info->elements % params->columns != 0))
        ddct_breach(schema, values[0], DDCT_INVALID, "cols does not divide the number of elements");
    params->rows = info->elements / params->columns;
    params->bound_count =
        read_ascending(schema, values[1], "bounds", 0, DDCT_ULP_GROUPS - 1, 1, MAX_BOUND, params->bounds);
    params->shift = (uint32_t)ddct_read_integer(schema, values[2], "shift", 0, bits - 8);
    params->sparse_count = read_ascending(schema, values[3], "sparse groups", 1, DDCT_ULP_GROUPS, 0,
                                          params->bound_count, params->sparse);
    params->row_keys = read_flag(schema, values[4]);
    params->column_keys = read_flag(schema, values[5]);
    ddct_require(schema, layer->params, "params", names, 2, values);
    if (schema->status != DDCT_OK)
        return schema->status;
    if (!size_is_possible(params, info->elements, bits - params->shift, layer->payload.size))
        return ddct_fail(error, DDCT_INVALID, "the size of the layer is not possible with its params");
    return DDCT_OK;
}

static ddct_status refuse(decoder *d, const char *what) {
    return ddct_fail(d->error, DDCT_INVALID, "payload: %s", what);
}

/* The prediction's patterns and their groups, for columns [column, column + count) of a row. */
static void load_segment(decoder *d, uint64_t row, uint64_t column, size_t count) {
    segment *work = &d->work;
    uint64_t start = row * d->params->columns + column;
    const uint32_t *prediction = work->base;
    uint32_t base_size = ddct_dtype_size(d->base_dtype);
    memcpy(work->base, d->base + start * base_size, count * base_size);
    if (d->base_dtype != d->dtype) {
        /* A delta of zero is the base, rounded to the target's element type. */
        ddct_apply(d->base_dtype, work->base, work->zeros, d->dtype, work->prediction, count);
        prediction = work->prediction;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, (const uint8_t *)prediction + 2 * i, sizeof half);
        work->patterns[i] = d->dtype == DDCT_F32 ? prediction[i] : half;
    }
    ddct_ulp_groups(&d->code, work->patterns, count, d->row_keys == NULL ? 0 : d->row_keys[row],
                    d->column_keys == NULL ? NULL : d->column_keys + column, d->group_of, work->groups);
}

static void store_segment(decoder *d, uint64_t row, uint64_t column, size_t count) {
    uint32_t size = ddct_dtype_size(d->dtype);
    uint8_t *out = d->out + (row * d->params->columns + column) * size;
    for (size_t i = 0; i < count; i++)
        memcpy(out + i * size, &d->work.patterns[i], size); /* little-endian: the low bytes come first */
}

/* Once to count the elements of each group, and once to decode them. */
static ddct_status for_all_elements(decoder *d, bool decode) {
    const ddct_ulp *params = d->params;
    for (uint64_t row = 0; row < params->rows; row++)
        for (uint64_t column = 0; column < params->columns; column += DDCT_SEGMENT) {
            uint64_t left = params->columns - column;
            size_t count = left < DDCT_SEGMENT ? (size_t)left : DDCT_SEGMENT;
            load_segment(d, row, column, count);
            for (size_t i = 0; i < count && !decode; i++)
                d->counts[d->work.groups[i]]++;
            if (!decode)
                continue;
            if (!ddct_ulp_apply(&d->code, d->cursors, d->extra, d->work.groups, d->work.patterns, count))
                return refuse(d, "a residual leads out of range");
            store_segment(d, row, column, count);
        }
    return DDCT_OK;
}

static void prepare(decoder *d) {
    const ddct_ulp *params = d->params;
    uint32_t group = 0;
    for (uint32_t context = 0; context < DDCT_ULP_CONTEXTS; context++) {
        while (group < params->bound_count && params->bounds[group] <= context)
            group++;
        d->group_of[context] = (uint8_t)group;
    }
    for (uint32_t i = 0; i < params->sparse_count; i++)
        d->cursors[params->sparse[i]].sparse = true;
    if (params->row_keys)
        d->row_keys = d->payload;
    if (params->column_keys)
        d->column_keys = d->payload + (params->row_keys ? params->rows : 0);
}

/* The symbols of one group, which begin at `offset`; moves it behind them, and adds up their extra bits. */
static ddct_status read_group(decoder *d, uint32_t group, uint64_t run_bytes, uint64_t *offset, uint64_t *bits) {
    ddct_ulp_cursor *cursor = &d->cursors[group];
    uint64_t symbols = d->counts[group];
    cursor->bit = *bits;
    if (cursor->sparse) {
        if (run_bytes > d->size - *offset)
            return refuse(d, "its sections are larger than its size");
        cursor->runs = d->payload + *offset;
        cursor->runs_end = cursor->runs + run_bytes;
        if (!ddct_sparse_valid(cursor->runs, run_bytes, d->counts[group], &symbols))
            return refuse(d, "runs reach beyond the symbols of their group");
        *offset += run_bytes;
    }
    if (symbols > d->size - *offset)
        return refuse(d, "its sections are larger than its size");
    cursor->symbols = d->payload + *offset;
    *offset += symbols;
    return ddct_ulp_measure(&d->code, cursor->symbols, symbols, cursor->sparse, bits)
               ? DDCT_OK
               : refuse(d, "a symbol is out of range");
}

static ddct_status read_sections(decoder *d) {
    const ddct_ulp *params = d->params;
    uint64_t offset = fixed_size(params), bits = 0;
    const uint8_t *run_count = d->payload + offset - 4 * (uint64_t)params->sparse_count;
    for (uint32_t group = 0; group <= params->bound_count; group++) {
        uint32_t run_bytes = 0;
        if (d->cursors[group].sparse) {
            memcpy(&run_bytes, run_count, sizeof run_bytes);
            run_count += sizeof run_bytes;
        }
        ddct_status status = read_group(d, group, run_bytes, &offset, &bits);
        if (status != DDCT_OK)
            return status;
    }
    d->extra = d->payload + offset;
    if (bits / 8 + (bits % 8 != 0) != d->size - offset)
        return refuse(d, "its sections do not make up its size");
    if (bits % 8 != 0 && d->payload[d->size - 1] >> (bits % 8) != 0)
        return refuse(d, "bits are left over");
    return DDCT_OK;
}

ddct_status ddct_decode_ulp(const ddct_ulp *params, const ddct_archive *archive, const ddct_layer *layer,
                            const void *base, ddct_dtype base_dtype, void *out, ddct_dtype dtype, ddct_memory *memory,
                            ddct_error *error) {
    ddct_chunks chunks;
    decoder *d = ddct_allocate_zeroed(memory, 1, sizeof *d, error);
    if (d == NULL)
        return DDCT_BUDGET;
    d->params = params;
    d->error = error;
    d->base = base;
    d->out = out;
    d->base_dtype = base_dtype;
    d->dtype = dtype;
    d->size = layer->payload.size;
    ddct_ulp_make_code(dtype, params->shift, &d->code);
    ddct_status status = ddct_begin_chunks(&chunks, archive, &layer->payload, memory, error);
    if (status == DDCT_OK) {
        d->payload = ddct_allocate(memory, d->size + PADDING, 1, error);
        status = d->payload == NULL ? DDCT_BUDGET : ddct_read_payload(&chunks, d->payload, error);
    }
    if (status == DDCT_OK) {
        memset(d->payload + d->size, 0, PADDING);
        prepare(d);
        fenv_t environment; /* rounding the base to another type must not depend on the caller's */
        fegetenv(&environment);
        fesetenv(FE_DFL_ENV);
        status = for_all_elements(d, false);
        if (status == DDCT_OK)
            status = read_sections(d);
        if (status == DDCT_OK)
            status = for_all_elements(d, true);
        fesetenv(&environment);
    }
    ddct_end_chunks(&chunks);
    ddct_release(memory, d->payload);
    ddct_release(memory, d);
    return status;
}

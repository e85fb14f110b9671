/* `dctq.v1` (section 7.2): parameters, payload and decoding. The arithmetic is in ddct_kernels.c. */
#include "ddct_dctq.h"

#include <string.h>

static uint32_t choose(ddct_schema *schema, uint32_t node, const char *what, const char *const *names,
                       uint32_t count) {
    if (ddct_read_text(schema, node, what, UINT32_MAX) == NULL)
        return 0;
    for (uint32_t i = 0; i < count; i++)
        if (ddct_json_equals(schema->json, node, names[i]))
            return i;
    ddct_breach(schema, node, DDCT_INVALID, "unknown %s", what);
    return 0;
}

static bool read_flag(ddct_schema *schema, uint32_t node) {
    if (node != 0 && schema->json->nodes[node].type != DDCT_JSON_TRUE)
        ddct_breach(schema, node, DDCT_INVALID, "row_keys and col_keys are true or absent");
    return node != 0;
}

uint32_t ddct_class_levels(const ddct_json *json, uint32_t node, int8_t levels[256]) {
    uint32_t alphabet = 0;
    if (json->nodes[node].type == DDCT_JSON_ARRAY) {
        for (uint32_t value = node + 1; value < json->nodes[node].end; value = json->nodes[value].end)
            levels[alphabet++] = (int8_t)ddct_json_integer(json, value);
    } else {
        for (uint32_t most = (uint32_t)ddct_json_integer(json, node); alphabet < most; alphabet++)
            levels[alphabet] = (int8_t)alphabet;
    }
    return alphabet;
}

/* Check one class; return its alphabet. */
static uint32_t check_class(ddct_schema *schema, uint32_t node, bool affine) {
    if (affine)
        return (uint32_t)ddct_read_integer(schema, node, "the number of symbols of a class", 1, 127);
    if (!ddct_read_array(schema, node, "a class", 1, 255))
        return 1;
    uint32_t count = schema->json->nodes[node].length;
    for (uint32_t value = node + 1; value < schema->json->nodes[node].end; value = schema->json->nodes[value].end)
        ddct_read_level(schema, value, count == 1 ? 0 : -127, count == 1 ? 0 : 127);
    return count;
}

static void check_sparse(ddct_schema *schema, const ddct_dctq *params, const uint32_t *class_nodes) {
    int64_t before = -1;
    uint32_t node = params->sparse + 1;
    for (uint32_t i = 0; i < params->sparse_count; i++, node = schema->json->nodes[node].end) {
        uint32_t number =
            (uint32_t)ddct_read_integer(schema, node, "the number of a sparse class", 0, params->class_count - 1);
        if (schema->status != DDCT_OK)
            return;
        int8_t levels[256];
        uint32_t alphabet = ddct_class_levels(schema->json, class_nodes[number], levels);
        if ((int64_t)number <= before)
            ddct_breach(schema, node, DDCT_INVALID, "sparse classes are not in ascending order");
        else if (alphabet < 2 || levels[0] != 0)
            ddct_breach(schema, node, DDCT_INVALID, "a sparse class whose first level of several is not 0");
        before = number;
    }
}

static bool is_float(ddct_dtype dtype) { return dtype == DDCT_BF16 || dtype == DDCT_F16 || dtype == DDCT_F32; }

static void count_patches(ddct_dctq *params, uint64_t elements) {
    params->rows = elements / params->columns;
    params->patch_rows = params->rows / params->patch + (params->rows % params->patch != 0);
    params->patch_columns = params->columns / params->patch + (params->columns % params->patch != 0);
    params->patches = params->patch_rows * params->patch_columns;
}

ddct_sections ddct_locate_sections(const ddct_dctq *params) {
    ddct_sections at;
    uint64_t scales = (params->affine ? 1 : params->class_count) + (params->rank > 0 ? 1 : 0);
    at.multipliers = 4 * scales;
    at.row_keys = at.multipliers + 2 * (uint64_t)params->rank;
    at.column_keys = at.row_keys + (params->row_keys ? params->rows : 0);
    at.left = at.column_keys + (params->column_keys ? params->columns : 0);
    at.right = at.left + params->rows * params->rank;
    at.class_map = at.right + params->columns * params->rank;
    at.run_counts = at.class_map + (params->class_count > 1 ? params->patches : 0);
    at.end = at.run_counts + 4 * (uint64_t)params->sparse_count;
    return at;
}

/* `size` against the bounds of section 7.2.2. */
static bool size_is_possible(const ddct_dctq *params, uint64_t size, uint64_t largest_dense) {
    uint64_t symbols = params->patches * params->patch * params->patch;
    uint64_t fixed = ddct_locate_sections(params).end;
    uint64_t affine = params->affine ? 4 * params->patches : 0;
    uint64_t codes = params->sparse_count > 0 ? 2 * symbols : largest_dense + params->class_count;
    return size >= fixed && size <= fixed + affine + codes;
}

ddct_status ddct_read_dctq(const ddct_archive *archive, const ddct_entry *tensor, const ddct_layer *layer,
                           ddct_dctq *params, ddct_error *error) {
    static const char *const names[] = {"cols",   "patch", "transform", "quantiser", "classes",
                                        "sparse", "rank",  "row_keys",  "col_keys"};
    static const char *const transforms[] = {"dct", "hadamard", "none"}, *const quantisers[] = {"levels", "affine"};
    const ddct_tensor *info = &tensor->info;
    ddct_schema reader = {.json = &archive->json, .error = error, .tensor = info->name}, *schema = &reader;
    uint32_t values[9], class_nodes[256];
    memset(params, 0, sizeof *params);
    if (!is_float(info->dtype) || !is_float(info->base_dtype))
        return ddct_fail(error, DDCT_INVALID, "dctq.v1 is for BF16, F16 and F32");
    ddct_read_object(schema, layer->params, "params", names, 9, values);
    params->columns = ddct_read_integer(schema, values[0], "cols", 1, (uint64_t)1 << 48);
    if (values[0] != 0 && (info->elements == 0 || info->elements % params->columns != 0))
        ddct_breach(schema, values[0], DDCT_INVALID, "cols does not divide the number of elements");
    params->patch = (uint32_t)ddct_read_integer(schema, values[1], "patch", 8, 32);
    if ((params->patch & (params->patch - 1)) != 0)
        ddct_breach(schema, values[1], DDCT_INVALID, "patch is not 8, 16 or 32");
    params->transform = (ddct_transform)choose(schema, values[2], "transform", transforms, 3);
    params->affine = choose(schema, values[3], "quantiser", quantisers, 2) == 1;
    params->rank = (uint32_t)ddct_read_integer(schema, values[6], "rank", values[6] == 0 ? 0 : 1, 256);
    params->row_keys = read_flag(schema, values[7]);
    params->column_keys = read_flag(schema, values[8]);
    uint64_t largest_dense = 0;
    if (schema->status == DDCT_OK && values[0] != 0 && values[1] != 0)
        count_patches(params, info->elements);
    if (ddct_read_array(schema, values[4], "the list of classes", 1, 255)) {
        params->classes = values[4];
        params->class_count = archive->json.nodes[values[4]].length;
        uint32_t node = values[4] + 1;
        for (uint32_t i = 0; i < params->class_count; i++, node = archive->json.nodes[node].end) {
            class_nodes[i] = node;
            uint64_t dense = ddct_dense_size(params->patches * params->patch * params->patch,
                                             check_class(schema, node, params->affine));
            largest_dense = dense > largest_dense ? dense : largest_dense;
        }
    }
    if (ddct_read_array(schema, values[5], "the list of sparse classes", 1, 255) && schema->status == DDCT_OK) {
        params->sparse = values[5];
        params->sparse_count = archive->json.nodes[values[5]].length;
        check_sparse(schema, params, class_nodes);
    }
    ddct_require(schema, layer->params, "params", names, 5, values);
    if (schema->status != DDCT_OK)
        return schema->status;
    if (!size_is_possible(params, layer->payload.size, largest_dense))
        return ddct_fail(error, DDCT_INVALID, "the size of the layer is not possible with its params");
    return DDCT_OK;
}

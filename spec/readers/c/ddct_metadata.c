/* Step 6 of the order of refusal: the metadata, one object at a time (section 5). */
#include "ddct_internal.h"

#include <string.h>

static const uint64_t MAX_PAYLOAD = (uint64_t)1 << 48, MAX_ELEMENTS = (uint64_t)1 << 48;

static uint32_t end_of(const ddct_schema *schema, uint32_t node) { return schema->json->nodes[node].end; }

static uint32_t length_of(const ddct_schema *schema, uint32_t node) { return schema->json->nodes[node].length; }

static void read_base(ddct_schema *schema, uint32_t node, ddct_summary *summary) {
    static const char *const names[] = {"id", "hint"};
    static const char *const hints[] = {"repo", "revision", "name"};
    uint32_t values[2], texts[3];
    if (node == 0)
        return;
    ddct_read_object(schema, node, "the base", names, 2, values);
    ddct_read_digest(schema, values[0], "the base id", summary->base_id);
    if (values[1] != 0) {
        ddct_read_object(schema, values[1], "the hint", hints, 3, texts);
        summary->hint_repo = ddct_read_text(schema, texts[0], "a hint", DDCT_MAX_NAME);
        summary->hint_revision = ddct_read_text(schema, texts[1], "a hint", DDCT_MAX_NAME);
        summary->hint_name = ddct_read_text(schema, texts[2], "a hint", DDCT_MAX_NAME);
    }
    ddct_require(schema, node, "the base", names, 1, values);
}

static void read_target(ddct_schema *schema, uint32_t node, ddct_summary *summary) {
    static const char *const names[] = {"ids", "exact_id"};
    uint32_t values[2];
    if (node == 0)
        return;
    ddct_read_object(schema, node, "the target", names, 2, values);
    ddct_read_digest(schema, values[1], "the exact id", summary->exact_id);
    if (ddct_read_array(schema, values[0], "target.ids", 1, DDCT_MAX_LAYERS)) {
        uint32_t id = values[0] + 1;
        summary->target_ids = length_of(schema, values[0]);
        for (uint32_t i = 0; i < summary->target_ids; i++, id = end_of(schema, id))
            ddct_read_digest(schema, id, "a target id", summary->target_id[i]);
    }
    ddct_require(schema, node, "the target", names, 2, values);
}

static void read_shard(ddct_schema *schema, uint32_t node, ddct_shard_entry *shard) {
    static const char *const names[] = {"path", "metadata"};
    static const char suffix[] = ".safetensors";
    uint32_t values[2];
    ddct_read_object(schema, node, "a shard", names, 2, values);
    shard->path = ddct_read_path(schema, values[0]);
    shard->metadata = values[1];
    if (shard->path != NULL) {
        size_t length = length_of(schema, values[0]), tail = sizeof suffix - 1;
        if (length < tail || memcmp(shard->path + length - tail, suffix, tail) != 0)
            ddct_breach(schema, values[0], DDCT_INVALID, "the path of a shard does not end in .safetensors");
    }
    if (values[1] != 0 && schema->json->nodes[values[1]].type != DDCT_JSON_OBJECT) {
        ddct_breach(schema, values[1], DDCT_INVALID, "the metadata of a shard is no object");
    } else if (values[1] != 0) {
        for (uint32_t name = values[1] + 1; name < end_of(schema, values[1]); name = end_of(schema, name + 1))
            ddct_read_text(schema, name + 1, "a value of a shard's metadata", UINT32_MAX);
    }
    ddct_require(schema, node, "a shard", names, 2, values);
}

static void read_file(ddct_schema *schema, uint32_t node, ddct_side_file *file) {
    static const char *const names[] = {"path", "size", "digest"};
    uint32_t values[3];
    ddct_read_object(schema, node, "a file", names, 3, values);
    file->path = ddct_read_path(schema, values[0]);
    file->payload.size = ddct_read_integer(schema, values[1], "the size of a file", 0, MAX_PAYLOAD);
    ddct_read_digest(schema, values[2], "the digest of a file", file->digest);
    ddct_require(schema, node, "a file", names, 3, values);
}

static ddct_dtype read_dtype(ddct_schema *schema, uint32_t node) {
    ddct_dtype dtype = DDCT_U8;
    const char *name = ddct_read_text(schema, node, "an element type", UINT32_MAX);
    if (name != NULL && !ddct_dtype_find(name, length_of(schema, node), &dtype))
        ddct_breach(schema, node, DDCT_UNSUPPORTED, "unknown element type");
    return dtype;
}

static void read_shape(ddct_schema *schema, uint32_t node, ddct_tensor *info) {
    info->elements = 1;
    if (!ddct_read_array(schema, node, "a shape", 0, DDCT_MAX_RANK))
        return;
    info->rank = length_of(schema, node);
    uint64_t product = 1;
    uint32_t value = node + 1;
    for (uint32_t i = 0; i < info->rank; i++, value = end_of(schema, value)) {
        uint64_t size = ddct_read_integer(schema, value, "a dimension", 0, UINT64_MAX);
        info->shape[i] = size;
        if (size > MAX_ELEMENTS / product) {
            ddct_breach(schema, value, DDCT_INVALID, "more than 2^48 elements");
            return;
        }
        product *= size == 0 ? 1 : size;
        info->elements *= size;
    }
}

static void read_layer(ddct_schema *schema, uint32_t node, ddct_layer *layer) {
    static const char *const names[] = {"codec", "params", "size", "digest", "must_understand"};
    uint32_t values[5];
    ddct_read_object(schema, node, "a layer", names, 5, values);
    ddct_read_text(schema, values[0], "a codec", UINT32_MAX);
    layer->must_understand = true;
    if (values[0] != 0) {
        if (ddct_json_equals(schema->json, values[0], "raw.v1"))
            layer->codec = DDCT_CODEC_RAW;
        else if (ddct_json_equals(schema->json, values[0], "dctq.v1"))
            layer->codec = DDCT_CODEC_DCTQ;
    }
    layer->params = values[1];
    if (values[1] != 0 && schema->json->nodes[values[1]].type != DDCT_JSON_OBJECT)
        ddct_breach(schema, values[1], DDCT_INVALID, "params is no object");
    if (values[1] != 0)
        ddct_check_fractions(schema, values[1]);
    layer->payload.size = ddct_read_integer(schema, values[2], "the size of a layer", 0, MAX_PAYLOAD);
    ddct_read_digest(schema, values[3], "the digest of a layer", layer->digest);
    if (values[4] != 0) {
        uint8_t type = schema->json->nodes[values[4]].type;
        if (type != DDCT_JSON_TRUE && type != DDCT_JSON_FALSE)
            ddct_breach(schema, values[4], DDCT_INVALID, "must_understand is no boolean");
        layer->must_understand = type != DDCT_JSON_FALSE;
    }
    ddct_require(schema, node, "a layer", names, 4, values);
}

static void read_op(ddct_schema *schema, uint32_t node, ddct_tensor *info) {
    static const char *const ops[] = {"add", "replace", "keep", "alias"};
    uint32_t op = 0;
    if (ddct_read_text(schema, node, "an op", UINT32_MAX) == NULL)
        return;
    while (op < 4 && !ddct_json_equals(schema->json, node, ops[op]))
        op++;
    if (op == 4)
        ddct_breach(schema, node, DDCT_UNSUPPORTED, "unknown op");
    else
        info->op = (ddct_op)op;
}

/* The end of a tensor: does it have the members that its op demands, and no others? */
static void check_members_of_op(ddct_schema *schema, uint32_t node, const char *const *names, const uint32_t *values,
                                const ddct_tensor *info) {
    bool with_base = info->op == DDCT_ADD || info->op == DDCT_KEEP;
    bool with_layers = info->op == DDCT_ADD || info->op == DDCT_REPLACE;
    const bool allowed[] = {with_base, info->op == DDCT_ADD, info->op == DDCT_ALIAS, with_layers};
    for (uint32_t i = 0; i < 4; i++) {
        bool present = values[5 + i] != 0, optional = i == 1;
        if (present != allowed[i] && !(optional && !present))
            ddct_breach_at_end(schema, node, "\"%s\" is %s this op", names[5 + i],
                               present ? "not for" : "demanded by");
    }
    if (values[6] != 0 && info->base_dtype == info->dtype)
        ddct_breach_at_end(schema, node, "base_dtype is dtype");
}

/* Returns the number of layers. */
static uint32_t read_tensor(ddct_schema *schema, uint32_t node, ddct_entry *tensor, ddct_layer *layers) {
    static const char *const names[] = {"name",       "dtype", "shape",  "shard", "op",
                                        "base",       "base_dtype", "of", "layers", "error"};
    uint32_t values[10];
    ddct_tensor *info = &tensor->info;
    schema->tensor = NULL;
    ddct_read_object(schema, node, "a tensor", names, 10, values);
    if (values[0] != 0) {
        info->name = ddct_read_tensor_name(schema, values[0]);
        tensor->name_length = length_of(schema, values[0]);
        schema->tensor = info->name;
    }
    info->dtype = read_dtype(schema, values[1]);
    read_shape(schema, values[2], info);
    info->bytes = info->elements * ddct_dtype_size(info->dtype);
    info->shard = (uint32_t)ddct_read_integer(schema, values[3], "the index of a shard", 0, UINT32_MAX);
    read_op(schema, values[4], info);
    ddct_read_digest(schema, values[5], "the base digest", info->base_digest);
    info->needs_base = info->op == DDCT_ADD || info->op == DDCT_KEEP;
    info->base_dtype = values[6] == 0 ? info->dtype : read_dtype(schema, values[6]);
    info->base_bytes = info->needs_base ? info->elements * ddct_dtype_size(info->base_dtype) : 0;
    tensor->of = values[7];
    ddct_read_text(schema, values[7], "the name of an alias", UINT32_MAX);
    tensor->layers = layers;
    if (ddct_read_array(schema, values[8], "the list of layers", 1, DDCT_MAX_LAYERS)) {
        info->layers = length_of(schema, values[8]);
        uint32_t layer = values[8] + 1;
        for (uint32_t i = 0; i < info->layers; i++, layer = end_of(schema, layer))
            read_layer(schema, layer, &layers[i]);
    }
    info->error = ddct_read_error_number(schema, values[9]);
    ddct_require(schema, node, "a tensor", names, 5, values);
    check_members_of_op(schema, node, names, values, info);
    schema->tensor = NULL;
    return info->layers;
}

/* An upper bound of the number of layers: elements of the arrays that are named "layers" in tensors. */
static uint64_t count_layers(const ddct_schema *schema, uint32_t tensors) {
    uint64_t count = 0;
    const ddct_json_node *nodes = schema->json->nodes;
    for (uint32_t tensor = tensors + 1; tensor < nodes[tensors].end; tensor = nodes[tensor].end) {
        if (nodes[tensor].type != DDCT_JSON_OBJECT)
            continue;
        for (uint32_t name = tensor + 1; name < nodes[tensor].end; name = nodes[name + 1].end)
            if (ddct_json_equals(schema->json, name, "layers") && nodes[name + 1].length <= DDCT_MAX_LAYERS)
                count += nodes[name + 1].length;
    }
    return count;
}

static ddct_status read_lists(ddct_schema *schema, ddct_archive *archive, uint32_t shards, uint32_t files,
                              uint32_t tensors) {
    ddct_summary *summary = &archive->summary;
    ddct_memory *memory = &archive->memory;
    if (ddct_read_array(schema, shards, "shards", 0, 65536)) {
        summary->shards = length_of(schema, shards);
        archive->shards = ddct_allocate_zeroed(memory, summary->shards, sizeof *archive->shards, schema->error);
        if (archive->shards == NULL)
            return DDCT_BUDGET;
        uint32_t node = shards + 1;
        for (uint32_t i = 0; i < summary->shards; i++, node = end_of(schema, node))
            read_shard(schema, node, &archive->shards[i]);
    }
    if (ddct_read_array(schema, files, "files", 0, 4096)) {
        summary->files = length_of(schema, files);
        archive->files = ddct_allocate_zeroed(memory, summary->files, sizeof *archive->files, schema->error);
        if (archive->files == NULL)
            return DDCT_BUDGET;
        uint32_t node = files + 1;
        for (uint32_t i = 0; i < summary->files; i++, node = end_of(schema, node))
            read_file(schema, node, &archive->files[i]);
    }
    if (ddct_read_array(schema, tensors, "tensors", 0, 1 << 20)) {
        summary->tensors = length_of(schema, tensors);
        archive->tensors = ddct_allocate_zeroed(memory, summary->tensors, sizeof *archive->tensors, schema->error);
        archive->layers = archive->tensors == NULL ? NULL
                                                   : ddct_allocate_zeroed(memory, count_layers(schema, tensors),
                                                                          sizeof *archive->layers, schema->error);
        if (archive->layers == NULL)
            return DDCT_BUDGET;
        uint32_t node = tensors + 1;
        ddct_layer *layers = archive->layers;
        for (uint32_t i = 0; i < summary->tensors; i++, node = end_of(schema, node))
            layers += read_tensor(schema, node, &archive->tensors[i], layers);
    }
    return DDCT_OK;
}

ddct_status ddct_read_metadata(ddct_archive *archive, ddct_error *error) {
    static const char *const names[] = {"generator", "digest", "chunk_size", "base",   "target",
                                        "shards",    "files",  "tensors",    "quality"};
    static const char *const quality_names[] = {"preset", "error"};
    uint32_t values[9], quality[2];
    ddct_status status =
        ddct_json_parse(archive->text, archive->metadata_raw_size, &archive->memory, &archive->json, error);
    if (status != DDCT_OK)
        return status;
    ddct_schema reader = {.json = &archive->json, .error = error}, *schema = &reader;
    ddct_summary *summary = &archive->summary;
    ddct_read_object(schema, 0, "the metadata", names, 9, values);
    summary->generator = ddct_read_text(schema, values[0], "the generator", 256);
    if (ddct_read_text(schema, values[1], "the name of the digest", UINT32_MAX) != NULL &&
        !ddct_json_equals(schema->json, values[1], "sha256-64k"))
        ddct_breach(schema, values[1], DDCT_UNSUPPORTED, "unknown digest");
    summary->chunk_size = ddct_read_integer(schema, values[2], "chunk_size", 4096, 16 << 20);
    if ((summary->chunk_size & (summary->chunk_size - 1)) != 0)
        ddct_breach(schema, values[2], DDCT_INVALID, "chunk_size is no power of two");
    read_base(schema, values[3], summary);
    read_target(schema, values[4], summary);
    if (values[8] != 0) {
        ddct_read_object(schema, values[8], "the quality", quality_names, 2, quality);
        ddct_read_text(schema, quality[0], "a preset", UINT32_MAX);
        ddct_read_error_number(schema, quality[1]);
        ddct_require(schema, values[8], "the quality", quality_names, 2, quality);
    }
    status = read_lists(schema, archive, values[5], values[6], values[7]);
    ddct_require(schema, 0, "the metadata", names, 8, values);
    return status != DDCT_OK ? status : schema->status;
}

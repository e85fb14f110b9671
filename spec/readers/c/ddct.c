/* The public functions: opening, listing, decoding, verifying. */
#define _POSIX_C_SOURCE 200809L

#include "ddct_digest.h"
#include "ddct_internal.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char *name;
    uint32_t size;
} dtypes[DDCT_DTYPE_COUNT] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},   {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"I64", 8},     {"U64", 8},     {"F64", 8}, {"C64", 8},
};

const char *ddct_dtype_name(ddct_dtype dtype) { return dtypes[dtype].name; }

uint32_t ddct_dtype_size(ddct_dtype dtype) { return dtypes[dtype].size; }

bool ddct_dtype_find(const char *name, size_t length, ddct_dtype *dtype) {
    for (uint32_t i = 0; i < DDCT_DTYPE_COUNT; i++) {
        if (strlen(dtypes[i].name) == length && memcmp(dtypes[i].name, name, length) == 0) {
            *dtype = (ddct_dtype)i;
            return true;
        }
    }
    return false;
}

const char *ddct_status_name(ddct_status status) {
    static const char *const names[] = {"ok",      "corrupt",       "truncated", "unsupported", "invalid",
                                        "base-mismatch", "budget", "io",        "argument"};
    return names[status];
}

const char *ddct_op_name(ddct_op op) {
    static const char *const names[] = {"add", "replace", "keep", "alias"};
    return names[op];
}

/* Open an archive whose source is set; takes ownership of it. */
static ddct_status open_archive(ddct_archive *archive, ddct_archive **result, ddct_error *error) {
    ddct_status status = ddct_read_preamble(archive, error);
    if (status == DDCT_OK)
        status = ddct_load_metadata(archive, error);
    if (status == DDCT_OK) {
        ddct_sha256 hash;
        ddct_sha256_begin(&hash);
        ddct_sha256_update(&hash, archive->text, archive->metadata_raw_size);
        ddct_sha256_end(&hash, archive->summary.content_id);
        status = ddct_read_metadata(archive, error);
    }
    if (status == DDCT_OK)
        status = ddct_check_relations(archive, error);
    if (status == DDCT_OK)
        status = ddct_check_codecs(archive, error);
    if (status == DDCT_OK)
        status = ddct_place_payloads(archive, error);
    if (status == DDCT_OK)
        *result = archive;
    else
        ddct_close(archive);
    return status;
}

static ddct_archive *create_archive(uint64_t size, const ddct_options *options, ddct_archive **result,
                                    ddct_error *error) {
    *result = NULL;
    if (error != NULL)
        memset(error, 0, sizeof *error);
    ddct_memory memory = ddct_memory_create(options);
    ddct_archive *archive = ddct_allocate_zeroed(&memory, 1, sizeof *archive, error);
    if (archive != NULL) {
        archive->memory = memory;
        archive->summary.file_size = size;
    }
    return archive;
}

ddct_status ddct_open_memory(const void *data, size_t size, const ddct_options *options, ddct_archive **archive,
                             ddct_error *error) {
    ddct_archive *created = create_archive(size, options, archive, error);
    if (created == NULL)
        return DDCT_BUDGET;
    created->data = data != NULL ? data : (const uint8_t *)"";
    return open_archive(created, archive, error);
}

ddct_status ddct_open_source(ddct_read read, void *context, uint64_t size, const ddct_options *options,
                             ddct_archive **archive, ddct_error *error) {
    ddct_archive *created = create_archive(size, options, archive, error);
    if (created == NULL)
        return DDCT_BUDGET;
    created->read = read;
    created->context = context;
    return open_archive(created, archive, error);
}

static int read_descriptor(void *context, uint64_t offset, void *target, size_t size) {
    unsigned char *out = target;
    while (size > 0) {
        ssize_t count = pread(*(const int *)context, out, size, (off_t)offset);
        if (count <= 0)
            return -1;
        out += count;
        offset += (uint64_t)count;
        size -= (size_t)count;
    }
    return 0;
}

ddct_status ddct_open_descriptor(int descriptor, const ddct_options *options, ddct_archive **archive,
                                 ddct_error *error) {
    struct stat information;
    *archive = NULL;
    if (fstat(descriptor, &information) != 0 || !S_ISREG(information.st_mode))
        return ddct_fail(error, DDCT_IO, "not a regular file");
    ddct_archive *created = create_archive((uint64_t)information.st_size, options, archive, error);
    if (created == NULL)
        return DDCT_BUDGET;
    created->descriptor = descriptor;
    created->read = read_descriptor;
    created->context = &created->descriptor;
    return open_archive(created, archive, error);
}

void ddct_close(ddct_archive *archive) {
    if (archive == NULL)
        return;
    ddct_memory memory = archive->memory;
    ddct_release(&memory, archive->shards);
    ddct_release(&memory, archive->files);
    ddct_release(&memory, archive->layers);
    ddct_release(&memory, archive->tensors);
    ddct_release(&memory, archive->json.nodes);
    ddct_release(&memory, archive->text);
    ddct_release(&memory, archive->table_copy);
    ddct_release(&memory, archive);
}

void ddct_get_summary(const ddct_archive *archive, ddct_summary *summary) { *summary = archive->summary; }

ddct_status ddct_get_tensor(const ddct_archive *archive, uint32_t index, ddct_tensor *tensor) {
    if (index >= archive->summary.tensors)
        return DDCT_ARGUMENT;
    *tensor = archive->tensors[index].info;
    if (tensor->op != DDCT_ALIAS)
        return DDCT_OK;
    const ddct_tensor *source = &archive->tensors[tensor->source].info;
    tensor->needs_base = source->needs_base;
    tensor->base_dtype = source->base_dtype;
    tensor->base_bytes = source->base_bytes;
    memcpy(tensor->base_digest, source->base_digest, sizeof tensor->base_digest);
    memcpy(tensor->digest, source->digest, sizeof tensor->digest);
    tensor->layers = source->layers;
    tensor->understood = source->understood;
    tensor->view_rows = source->view_rows;
    tensor->view_columns = source->view_columns;
    return DDCT_OK;
}

ddct_status ddct_get_file(const ddct_archive *archive, uint32_t index, ddct_file *file) {
    if (index >= archive->summary.files)
        return DDCT_ARGUMENT;
    const ddct_side_file *entry = &archive->files[index];
    file->path = entry->path;
    file->size = entry->payload.size;
    memcpy(file->digest, entry->digest, sizeof file->digest);
    return DDCT_OK;
}

ddct_status ddct_get_shard(const ddct_archive *archive, uint32_t index, ddct_shard *shard) {
    if (index >= archive->summary.shards)
        return DDCT_ARGUMENT;
    shard->path = archive->shards[index].path;
    shard->metadata_count = archive->json.nodes[archive->shards[index].metadata].length;
    return DDCT_OK;
}

ddct_status ddct_shard_metadata(const ddct_archive *archive, uint32_t shard, uint32_t index, const char **name,
                                size_t *name_length, const char **value, size_t *value_length) {
    const ddct_json_node *nodes = archive->json.nodes;
    if (shard >= archive->summary.shards || index >= nodes[archive->shards[shard].metadata].length)
        return DDCT_ARGUMENT;
    /* Names and values are texts, one node each. */
    uint32_t node = archive->shards[shard].metadata + 1 + 2 * index;
    *name = archive->json.text + nodes[node].offset;
    *name_length = nodes[node].length;
    *value = archive->json.text + nodes[node + 1].offset;
    *value_length = nodes[node + 1].length;
    return DDCT_OK;
}

bool ddct_find_tensor(const ddct_archive *archive, const char *name, size_t length, uint32_t *index) {
    uint32_t low = 0, high = archive->summary.tensors;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const ddct_entry *tensor = &archive->tensors[middle];
        size_t common = tensor->name_length < length ? tensor->name_length : length;
        int order = memcmp(name, tensor->info.name, common);
        if (order == 0 && length == tensor->name_length) {
            *index = middle;
            return true;
        }
        if (order < 0 || (order == 0 && length < tensor->name_length))
            high = middle;
        else
            low = middle + 1;
    }
    return false;
}

ddct_status ddct_check_base(const ddct_archive *archive, uint32_t index, const void *base, uint64_t base_size,
                            ddct_error *error) {
    if (index >= archive->summary.tensors)
        return ddct_fail(error, DDCT_ARGUMENT, "no tensor %u", (unsigned)index);
    const char *name = archive->tensors[index].info.name;
    const ddct_tensor *info = &archive->tensors[archive->tensors[index].info.source].info;
    uint8_t digest[DDCT_DIGEST_SIZE];
    const char *breach = NULL;
    if (!info->needs_base)
        return DDCT_OK;
    if (base == NULL && info->base_bytes > 0)
        breach = "the base tensor is missing";
    else if (base_size != info->base_bytes)
        breach = "the base tensor has another size";
    else
        ddct_tensor_digest(base, base_size, digest);
    if (breach == NULL && memcmp(digest, info->base_digest, sizeof digest) != 0)
        breach = "the base tensor has another digest";
    return breach == NULL ? DDCT_OK : ddct_fail_tensor(error, ddct_fail(error, DDCT_BASE_MISMATCH, "%s", breach), name);
}

static ddct_status check_digest(const void *bytes, uint64_t size, const uint8_t *expected, ddct_error *error) {
    uint8_t digest[DDCT_DIGEST_SIZE];
    ddct_tensor_digest(bytes, size, digest);
    return memcmp(digest, expected, sizeof digest) == 0 ? DDCT_OK
                                                        : ddct_fail(error, DDCT_CORRUPT, "digest of the result");
}

static const ddct_rows whole_tensor = {.all = true, .first = 0, .count = 0};

static ddct_status decode_layers(const ddct_archive *archive, const ddct_entry *tensor, uint32_t layers,
                                 ddct_rows rows, const void *base, void *out, uint64_t out_size,
                                 ddct_memory *memory, ddct_error *error) {
    const ddct_tensor *info = &tensor->info;
    ddct_status status = DDCT_OK;
    uint32_t count = layers == 0 || layers > info->understood ? info->understood : layers;
    if (info->op == DDCT_KEEP && out_size > 0)
        memcpy(out, base, (size_t)out_size);
    for (uint32_t k = 0; k < count && status == DDCT_OK; k++) {
        status = k == 0 ? ddct_decode_layer(archive, tensor, k, rows, base, info->base_dtype, out, memory, error)
                        : ddct_decode_layer(archive, tensor, k, rows, out, info->dtype, out, memory, error);
        if (status == DDCT_OK && rows.all)
            status = check_digest(out, out_size, tensor->layers[k].digest, error);
    }
    return status;
}

ddct_status ddct_decode(const ddct_archive *archive, uint32_t index, uint32_t layers, const void *base,
                        uint64_t base_size, void *out, uint64_t out_size, ddct_error *error) {
    ddct_status status = ddct_check_base(archive, index, base, base_size, error);
    if (status != DDCT_OK)
        return status;
    const ddct_tensor *info = &archive->tensors[index].info;
    if (out_size != info->bytes || (out == NULL && out_size > 0))
        return ddct_fail(error, DDCT_ARGUMENT, "the output buffer has another size than the tensor");
    ddct_memory memory = archive->memory;
    status = decode_layers(archive, &archive->tensors[info->source], layers, whole_tensor, base, out, out_size,
                           &memory, error);
    return ddct_fail_tensor(error, status, info->name);
}

ddct_status ddct_decode_rows(const ddct_archive *archive, uint32_t index, uint32_t layers, uint64_t first,
                             uint64_t count, const void *base_rows, uint64_t base_size, void *out, uint64_t out_size,
                             ddct_error *error) {
    if (index >= archive->summary.tensors)
        return ddct_fail(error, DDCT_ARGUMENT, "no tensor %u", (unsigned)index);
    const ddct_entry *tensor = &archive->tensors[archive->tensors[index].info.source];
    const ddct_tensor *info = &tensor->info;
    if (info->view_rows == 0)
        return ddct_fail(error, DDCT_ARGUMENT, "this tensor has no row ranges");
    if (first > info->view_rows || count > info->view_rows - first)
        return ddct_fail(error, DDCT_ARGUMENT, "rows beyond the view");
    if (out_size != count * info->view_columns * ddct_dtype_size(info->dtype) ||
        base_size != (info->needs_base ? count * info->view_columns * ddct_dtype_size(info->base_dtype) : 0))
        return ddct_fail(error, DDCT_ARGUMENT, "a buffer has another size than the rows");
    if (count == 0)
        return DDCT_OK;
    ddct_rows rows = {.all = false, .first = first, .count = count};
    ddct_memory memory = archive->memory;
    ddct_status status =
        decode_layers(archive, tensor, layers, rows, base_rows, out, out_size, &memory, error);
    return ddct_fail_tensor(error, status, archive->tensors[index].info.name);
}

static ddct_status read_file(const ddct_archive *archive, const ddct_side_file *file, void *out, ddct_memory *memory,
                             ddct_error *error) {
    ddct_chunks chunks;
    ddct_status status = ddct_begin_chunks(&chunks, archive, &file->payload, memory, error);
    if (status == DDCT_OK)
        status = ddct_read_payload(&chunks, out, error);
    ddct_end_chunks(&chunks);
    return status == DDCT_OK ? check_digest(out, file->payload.size, file->digest, error) : status;
}

ddct_status ddct_read_file(const ddct_archive *archive, uint32_t index, void *out, uint64_t out_size,
                           ddct_error *error) {
    if (index >= archive->summary.files || out_size != archive->files[index].payload.size)
        return ddct_fail(error, DDCT_ARGUMENT, "no such side file, or a buffer of another size");
    ddct_memory memory = archive->memory;
    return read_file(archive, &archive->files[index], out, &memory, error);
}

static ddct_status verify_files(const ddct_archive *archive, ddct_memory *memory, ddct_error *error) {
    ddct_status status = DDCT_OK;
    for (uint32_t i = 0; i < archive->summary.files && status == DDCT_OK; i++) {
        void *buffer = ddct_allocate(memory, archive->files[i].payload.size, 1, error);
        status = buffer == NULL ? DDCT_BUDGET : read_file(archive, &archive->files[i], buffer, memory, error);
        ddct_release(memory, buffer);
    }
    return status;
}

/* Tensors that need no base are decoded, to check their digests. */
static ddct_status verify_result(const ddct_archive *archive, const ddct_entry *tensor, ddct_memory *memory,
                                 ddct_error *error) {
    uint64_t size = tensor->info.bytes;
    void *buffer = ddct_allocate(memory, size, 1, error);
    ddct_status status =
        buffer == NULL ? DDCT_BUDGET
                       : decode_layers(archive, tensor, 0, whole_tensor, NULL, buffer, size, memory, error);
    ddct_release(memory, buffer);
    return ddct_fail_tensor(error, status, tensor->info.name);
}

ddct_status ddct_verify(const ddct_archive *archive, ddct_error *error) {
    ddct_memory memory = archive->memory;
    ddct_status status = verify_files(archive, &memory, error);
    for (uint32_t k = 0; k < DDCT_MAX_LAYERS; k++)
        for (uint32_t i = 0; i < archive->summary.tensors && status == DDCT_OK; i++)
            if (k < archive->tensors[i].info.layers)
                status = ddct_fail_tensor(error, ddct_verify_layer(archive, &archive->tensors[i], k, &memory, error),
                                          archive->tensors[i].info.name);
    for (uint32_t i = 0; i < archive->summary.tensors && status == DDCT_OK; i++)
        if (archive->tensors[i].info.op == DDCT_REPLACE)
            status = verify_result(archive, &archive->tensors[i], &memory, error);
    return status;
}

/* Step 7 of the order of refusal: the rules that relate objects of the metadata. */
#include "ddct_internal.h"

#include "ddct_digest.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int compare_bytes(const char *a, size_t a_length, const char *b, size_t b_length) {
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    if (order != 0)
        return order;
    return a_length < b_length ? -1 : a_length > b_length;
}

static ddct_status check_names(const ddct_archive *archive, ddct_error *error) {
    for (uint32_t i = 1; i < archive->summary.tensors; i++) {
        const ddct_entry *before = &archive->tensors[i - 1], *now = &archive->tensors[i];
        if (compare_bytes(before->info.name, before->name_length, now->info.name, now->name_length) >= 0)
            return ddct_fail_tensor(error,
                                    ddct_fail(error, DDCT_INVALID, "tensors are not in ascending order of their names"),
                                    now->info.name);
    }
    return DDCT_OK;
}

/* Paths are numbered: those of shards, then those of files. */
static const char *path_at(const ddct_archive *archive, uint32_t index) {
    return index < archive->summary.shards ? archive->shards[index].path
                                           : archive->files[index - archive->summary.shards].path;
}

/* Without case, and with the slash before all other characters, so that what lies in a directory follows it at once. */
static unsigned char fold(char c) {
    return (unsigned char)(c == '/' ? 1 : c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
}

static int compare_folded(const void *context, uint32_t a, uint32_t b) {
    const char *left = path_at(context, a), *right = path_at(context, b);
    while (*left != '\0' && fold(*left) == fold(*right)) {
        left++;
        right++;
    }
    return (int)fold(*left) - (int)fold(*right);
}

/* Is the path `outer` the path `inner`, or a directory of it? */
static bool path_holds(const char *outer, const char *inner) {
    while (*outer != '\0' && fold(*outer) == fold(*inner)) {
        outer++;
        inner++;
    }
    return *outer == '\0' && (*inner == '\0' || *inner == '/');
}

static ddct_status check_paths(ddct_archive *archive, ddct_error *error) {
    const ddct_summary *summary = &archive->summary;
    for (uint32_t i = 1; i < summary->files; i++)
        if (strcmp(archive->files[i - 1].path, archive->files[i].path) >= 0)
            return ddct_fail(error, DDCT_INVALID, "files are not in ascending order of their paths");
    uint32_t count = summary->shards + summary->files;
    uint32_t *order = ddct_allocate(&archive->memory, count, sizeof *order, error);
    if (order == NULL)
        return DDCT_BUDGET;
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    ddct_sort(order, count, compare_folded, archive);
    bool distinct = true;
    for (uint32_t i = 1; i < count; i++)
        distinct = distinct && !path_holds(path_at(archive, order[i - 1]), path_at(archive, order[i]));
    ddct_release(&archive->memory, order);
    return distinct ? DDCT_OK
                    : ddct_fail(error, DDCT_INVALID, "two paths are equal without case, or one is a directory of another");
}

static ddct_status check_shards(const ddct_archive *archive, ddct_error *error) {
    for (uint32_t i = 0; i < archive->summary.tensors; i++) {
        const ddct_tensor *info = &archive->tensors[i].info;
        if (info->shard >= archive->summary.shards)
            return ddct_fail_tensor(error, ddct_fail(error, DDCT_INVALID, "no shard %u", (unsigned)info->shard),
                                    info->name);
    }
    return DDCT_OK;
}

static ddct_status link_alias(ddct_archive *archive, uint32_t index, ddct_error *error) {
    ddct_entry *tensor = &archive->tensors[index];
    tensor->info.source = index;
    if (tensor->info.op != DDCT_ALIAS)
        return DDCT_OK;
    const ddct_json_node *of = &archive->json.nodes[tensor->of];
    uint32_t source;
    const char *breach = NULL;
    if (!ddct_find_tensor(archive, archive->json.text + of->offset, of->length, &source)) {
        breach = "alias of a tensor that is not there";
    } else {
        const ddct_tensor *other = &archive->tensors[source].info;
        if (other->op == DDCT_ALIAS)
            breach = "alias of an alias";
        else if (other->dtype != tensor->info.dtype || other->rank != tensor->info.rank ||
                 memcmp(other->shape, tensor->info.shape, sizeof other->shape) != 0)
            breach = "alias of a tensor of another element type or shape";
        tensor->info.source = source;
    }
    return breach == NULL ? DDCT_OK
                          : ddct_fail_tensor(error, ddct_fail(error, DDCT_INVALID, "%s", breach), tensor->info.name);
}

/* Section 1.2, for the target decoded with at most `layers` layers of each tensor. */
static void model_id(const ddct_archive *archive, uint32_t layers, uint8_t id[DDCT_DIGEST_SIZE]) {
    ddct_sha256 hash;
    ddct_sha256_begin(&hash);
    for (uint32_t i = 0; i < archive->summary.tensors; i++) {
        const ddct_tensor *info = &archive->tensors[i].info;
        const ddct_entry *source = &archive->tensors[info->source];
        uint32_t depth = source->info.layers < layers ? source->info.layers : layers;
        const uint8_t *digest = depth == 0 ? source->info.base_digest : source->layers[depth - 1].digest;
        char line[DDCT_MAX_RANK * 24 + 2 * DDCT_DIGEST_SIZE + 32];
        int length = snprintf(line, sizeof line, "\t%s\t", ddct_dtype_name(info->dtype));
        for (uint32_t k = 0; k < info->rank; k++)
            length += snprintf(line + length, sizeof line - (size_t)length, k == 0 ? "%" PRIu64 : ",%" PRIu64,
                               info->shape[k]);
        line[length++] = '\t';
        for (int k = 0; k < DDCT_DIGEST_SIZE; k++)
            length += snprintf(line + length, sizeof line - (size_t)length, "%02x", digest[k]);
        line[length++] = '\n';
        ddct_sha256_update(&hash, info->name, archive->tensors[i].name_length);
        ddct_sha256_update(&hash, line, (size_t)length);
    }
    ddct_sha256_end(&hash, id);
}

static ddct_status check_target_ids(const ddct_archive *archive, ddct_error *error) {
    uint32_t most = 1;
    for (uint32_t i = 0; i < archive->summary.tensors; i++)
        most = archive->tensors[i].info.layers > most ? archive->tensors[i].info.layers : most;
    if (archive->summary.target_ids != most)
        return ddct_fail(error, DDCT_INVALID, "%u target ids for up to %u layers",
                         (unsigned)archive->summary.target_ids, (unsigned)most);
    for (uint32_t k = 0; k < most; k++) {
        uint8_t id[DDCT_DIGEST_SIZE];
        model_id(archive, k + 1, id);
        if (memcmp(id, archive->summary.target_id[k], sizeof id) != 0)
            return ddct_fail(error, DDCT_INVALID, "target.ids[%u] does not follow from the digests", (unsigned)k);
    }
    return DDCT_OK;
}

ddct_status ddct_check_relations(ddct_archive *archive, ddct_error *error) {
    ddct_status status = check_names(archive, error);
    if (status == DDCT_OK)
        status = check_paths(archive, error);
    if (status == DDCT_OK)
        status = check_shards(archive, error);
    for (uint32_t i = 0; i < archive->summary.tensors && status == DDCT_OK; i++)
        status = link_alias(archive, i, error);
    return status == DDCT_OK ? check_target_ids(archive, error) : status;
}

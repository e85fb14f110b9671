/* Codecs (section 7): which layers are understood, `raw.v1`, and dispatch. */
#include "ddct_internal.h"

#include <string.h>

static ddct_status read_planes(const ddct_archive *archive, const ddct_entry *tensor, const ddct_layer *layer,
                               uint32_t *planes, ddct_error *error) {
    static const char *const names[] = {"planes"};
    uint32_t value;
    ddct_schema schema = {.json = &archive->json, .error = error, .tensor = tensor->info.name};
    ddct_read_object(&schema, layer->params, "params", names, 1, &value);
    *planes = (uint32_t)ddct_read_integer(&schema, value, "planes", 1, 8);
    ddct_require(&schema, layer->params, "params", names, 1, &value);
    if (schema.status != DDCT_OK)
        return schema.status;
    if ((*planes & (*planes - 1)) != 0 || tensor->info.bytes % *planes != 0)
        return ddct_fail(error, DDCT_INVALID, "%u planes for %llu bytes", (unsigned)*planes,
                         (unsigned long long)tensor->info.bytes);
    if (layer->payload.size != tensor->info.bytes)
        return ddct_fail(error, DDCT_INVALID, "the size of a raw layer is not that of the tensor");
    return DDCT_OK;
}

static ddct_status check_layer(const ddct_archive *archive, ddct_entry *tensor, uint32_t index, ddct_error *error) {
    const ddct_layer *layer = &tensor->layers[index];
    ddct_tensor *info = &tensor->info;
    uint32_t planes;
    ddct_dctq dctq;
    if (layer->codec == DDCT_CODEC_UNKNOWN)
        return ddct_fail(error, DDCT_UNSUPPORTED, "layer %u has an unknown codec", (unsigned)index);
    if (index > 0 || (layer->codec == DDCT_CODEC_DCTQ) != (info->op == DDCT_ADD))
        return ddct_fail(error, DDCT_INVALID, "layer %u has a codec that may not stand there", (unsigned)index);
    if (layer->codec == DDCT_CODEC_RAW)
        return read_planes(archive, tensor, layer, &planes, error);
    return ddct_read_dctq(archive, tensor, layer, &dctq, error);
}

/* The view of row ranges: that of the params, or for a raw layer rows of the last dimension. */
static void find_view(const ddct_archive *archive, ddct_entry *tensor) {
    ddct_tensor *info = &tensor->info;
    uint64_t columns = info->rank == 0 ? 1 : info->shape[info->rank - 1];
    if (info->elements == 0 || info->understood != 1)
        return;
    if (tensor->layers[0].codec == DDCT_CODEC_DCTQ) {
        ddct_dctq dctq;
        if (ddct_read_dctq(archive, tensor, &tensor->layers[0], &dctq, NULL) != DDCT_OK || dctq.row_keys)
            return;
        columns = dctq.columns;
    }
    info->view_columns = columns;
    info->view_rows = info->elements / columns;
}

ddct_status ddct_check_codecs(ddct_archive *archive, ddct_error *error) {
    for (uint32_t i = 0; i < archive->summary.tensors; i++) {
        ddct_entry *tensor = &archive->tensors[i];
        ddct_tensor *info = &tensor->info;
        for (uint32_t k = 0; k < info->layers; k++) {
            const ddct_layer *layer = &tensor->layers[k];
            if (k > 0 && layer->codec == DDCT_CODEC_UNKNOWN && !layer->must_understand)
                break;
            ddct_status status = check_layer(archive, tensor, k, error);
            if (status != DDCT_OK)
                return ddct_fail_tensor(error, status, info->name);
            info->understood = k + 1;
            memcpy(info->digest, layer->digest, sizeof info->digest);
        }
        if (info->op == DDCT_KEEP)
            memcpy(info->digest, info->base_digest, sizeof info->digest);
        find_view(archive, tensor);
    }
    return DDCT_OK;
}

/* Put bytes [offset, offset + size) of the payload where they belong in the tensor. */
static void place_planes(const uint8_t *bytes, uint64_t offset, uint64_t size, uint32_t planes, uint64_t total,
                         uint8_t *out) {
    uint64_t plane_size = total / planes;
    while (size > 0) {
        uint64_t plane = offset / plane_size, inside = offset % plane_size;
        uint64_t take = plane_size - inside < size ? plane_size - inside : size;
        for (uint64_t i = 0; i < take; i++)
            out[(inside + i) * planes + plane] = bytes[i];
        bytes += take;
        offset += take;
        size -= take;
    }
}

/* All of a raw layer, chunk by chunk; or only its checks, if `out` is NULL. */
static ddct_status decode_raw(ddct_chunks *chunks, uint32_t planes, uint8_t *out, ddct_memory *memory,
                              ddct_error *error) {
    if (planes == 1 && out != NULL)
        return ddct_read_payload(chunks, out, error);
    uint64_t total = chunks->payload->size, chunk_size = chunks->archive->summary.chunk_size;
    uint8_t *buffer = ddct_allocate(memory, total < chunk_size ? total : chunk_size, 1, error);
    ddct_status status = buffer == NULL ? DDCT_BUDGET : DDCT_OK;
    uint64_t count = ddct_chunk_count(chunks->archive, total);
    for (uint64_t i = 0; i < count && status == DDCT_OK; i++) {
        status = ddct_read_chunk(chunks, i, buffer, error);
        if (status == DDCT_OK && out != NULL)
            place_planes(buffer, i * chunk_size, ddct_chunk_raw_size(chunks, i), planes, total, out);
    }
    ddct_release(memory, buffer);
    return status;
}

/* The bytes [first, first + size) of the tensor, both multiples of `planes` or not. */
static ddct_status decode_raw_range(ddct_chunks *chunks, uint32_t planes, uint64_t first, uint64_t size, uint8_t *out,
                                    ddct_memory *memory, ddct_error *error) {
    uint64_t plane_size = chunks->payload->size / planes;
    uint8_t *buffer = ddct_allocate(memory, size / planes + 2, 1, error);
    ddct_status status = buffer == NULL ? DDCT_BUDGET : DDCT_OK;
    for (uint32_t plane = 0; plane < planes && status == DDCT_OK; plane++) {
        /* The bytes i with i mod planes = plane in the range are those of the plane from `start` up to `end`. */
        uint64_t start = first / planes + (first % planes > plane);
        uint64_t end = (first + size) / planes + ((first + size) % planes > plane);
        status = ddct_read_range(chunks, plane * plane_size + start, end - start, buffer, error);
        for (uint64_t i = start; i < end && status == DDCT_OK; i++)
            out[i * planes + plane - first] = buffer[i - start];
    }
    ddct_release(memory, buffer);
    return status;
}

ddct_status ddct_decode_layer(const ddct_archive *archive, const ddct_entry *tensor, uint32_t index, ddct_rows rows,
                              const void *base, ddct_dtype base_dtype, void *out, ddct_memory *memory,
                              ddct_error *error) {
    const ddct_layer *layer = &tensor->layers[index];
    if (layer->codec == DDCT_CODEC_DCTQ) {
        ddct_dctq params;
        ddct_status status = ddct_read_dctq(archive, tensor, layer, &params, error);
        if (status != DDCT_OK)
            return status;
        return ddct_decode_dctq(&params, archive, layer, rows, base, base_dtype, out, tensor->info.dtype, memory,
                                error);
    }
    uint32_t planes;
    ddct_chunks chunks;
    ddct_status status = read_planes(archive, tensor, layer, &planes, error);
    if (status != DDCT_OK || layer->payload.size == 0)
        return status;
    status = ddct_begin_chunks(&chunks, archive, &layer->payload, memory, error);
    if (status == DDCT_OK && rows.all) {
        status = decode_raw(&chunks, planes, out, memory, error);
    } else if (status == DDCT_OK) {
        uint64_t row_bytes = tensor->info.view_columns * ddct_dtype_size(tensor->info.dtype);
        status = decode_raw_range(&chunks, planes, rows.first * row_bytes, rows.count * row_bytes, out, memory, error);
    }
    ddct_end_chunks(&chunks);
    return status;
}

ddct_status ddct_verify_layer(const ddct_archive *archive, const ddct_entry *tensor, uint32_t index,
                              ddct_memory *memory, ddct_error *error) {
    const ddct_layer *layer = &tensor->layers[index];
    ddct_dctq params;
    if (index < tensor->info.understood && layer->codec == DDCT_CODEC_DCTQ) {
        ddct_status status = ddct_read_dctq(archive, tensor, layer, &params, error);
        ddct_rows all = {.all = true, .first = 0, .count = 0};
        return status != DDCT_OK ? status
                                 : ddct_decode_dctq(&params, archive, layer, all, NULL, DDCT_BF16, NULL, DDCT_BF16,
                                                    memory, error);
    }
    ddct_chunks chunks;
    ddct_status status = ddct_begin_chunks(&chunks, archive, &layer->payload, memory, error);
    if (status == DDCT_OK && layer->payload.size > 0)
        status = decode_raw(&chunks, 2, NULL, memory, error);
    ddct_end_chunks(&chunks);
    return status;
}

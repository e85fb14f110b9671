/* The container: preamble, metadata and chunk table (sections 3, 4 and 6), and the reading of chunks. */
#include "ddct_internal.h"

#include "ddct_digest.h"

#include <string.h>
#include <zstd.h>

enum { PREAMBLE_SIZE = 64, MAX_METADATA = 64 << 20, MAX_TABLE = 1 << 28, MAX_WINDOW = 8 << 20 };

static const uint8_t magic[8] = {0x89, 'D', 'D', 'C', 'T', '\r', '\n', 0x1A};

static uint64_t little_endian(const uint8_t *bytes, int size) {
    uint64_t value = 0;
    for (int i = size; i-- > 0;)
        value = value << 8 | bytes[i];
    return value;
}

/* Copy bytes of the file, which are known to exist. */
static ddct_status read_bytes(const ddct_archive *archive, uint64_t offset, void *target, size_t size,
                              ddct_error *error) {
    if (size == 0)
        return DDCT_OK;
    if (archive->data != NULL)
        memcpy(target, archive->data + offset, size);
    else if (archive->read(archive->context, offset, target, size) != 0)
        return ddct_fail(error, DDCT_IO, "cannot read %llu bytes at %llu", (unsigned long long)size,
                         (unsigned long long)offset);
    return DDCT_OK;
}

static ddct_status refuse_magic(const uint8_t *start, size_t size, ddct_error *error) {
    static const uint8_t unix_lines[] = {0x89, 'D', 'D', 'C', 'T', '\n'};
    static const uint8_t dos_lines[] = {0x89, 'D', 'D', 'C', 'T', '\r', '\r', '\n'};
    if (size >= 8 && start[0] == 0x09 && memcmp(start + 1, magic + 1, 7) == 0)
        return ddct_fail(error, DDCT_INVALID, "not a ddct file: damaged by a 7-bit transfer");
    if (size >= 8 && (memcmp(start, unix_lines, sizeof unix_lines) == 0 ||
                      memcmp(start, dos_lines, sizeof dos_lines) == 0))
        return ddct_fail(error, DDCT_INVALID, "not a ddct file: damaged by a transfer in text mode");
    return ddct_fail(error, DDCT_INVALID, "not a ddct file");
}

ddct_status ddct_read_preamble(ddct_archive *archive, ddct_error *error) {
    uint8_t p[PREAMBLE_SIZE] = {0};
    uint64_t actual = archive->summary.file_size;
    size_t have = actual < PREAMBLE_SIZE ? (size_t)actual : PREAMBLE_SIZE;
    ddct_status status = read_bytes(archive, 0, p, have, error);
    if (status != DDCT_OK)
        return status;
    if (memcmp(p, magic, have < sizeof magic ? have : sizeof magic) != 0)
        return refuse_magic(p, have, error);
    if (have < PREAMBLE_SIZE)
        return ddct_fail(error, DDCT_TRUNCATED, "%u bytes are no preamble of 64", (unsigned)have);
    if (ddct_crc32c(p, 60) != little_endian(p + 60, 4))
        return ddct_fail(error, DDCT_CORRUPT, "checksum of the preamble");
    if (little_endian(p + 8, 2) != 1)
        return ddct_fail(error, DDCT_UNSUPPORTED, "version %u of the format", (unsigned)little_endian(p + 8, 2));
    uint64_t features = little_endian(p + 16, 8);
    for (int bit = 0; bit < 64; bit++)
        if (features >> bit & 1)
            return ddct_fail(error, DDCT_UNSUPPORTED, "feature bit %d", bit);
    uint64_t preamble_size = little_endian(p + 12, 4), file_size = little_endian(p + 32, 8);
    uint64_t stored = little_endian(p + 40, 4), raw = little_endian(p + 44, 4), table = little_endian(p + 52, 4);
    if (preamble_size != PREAMBLE_SIZE)
        return ddct_fail(error, DDCT_INVALID, "preamble_size is not 64");
    if (stored < 1 || stored > MAX_METADATA)
        return ddct_fail(error, DDCT_INVALID, "metadata_stored_size is not in 1 ... 64 MiB");
    if (raw > MAX_METADATA || raw < stored)
        return ddct_fail(error, DDCT_INVALID, "metadata_raw_size is not in metadata_stored_size ... 64 MiB");
    if (table % 8 != 0 || table > MAX_TABLE)
        return ddct_fail(error, DDCT_INVALID, "table_size is no multiple of 8 up to 2^28");
    if (PREAMBLE_SIZE + stored + table > file_size)
        return ddct_fail(error, DDCT_INVALID, "metadata and chunk table do not fit in file_size");
    if (actual != file_size)
        return ddct_fail(error, actual < file_size ? DDCT_TRUNCATED : DDCT_INVALID, "%llu bytes instead of %llu",
                         (unsigned long long)actual, (unsigned long long)file_size);
    if (stored + raw + table > archive->memory.limit)
        return ddct_fail(error, DDCT_BUDGET, "metadata and chunk table need %llu bytes",
                         (unsigned long long)(stored + raw + table));
    archive->metadata_stored_size = (uint32_t)stored;
    archive->metadata_raw_size = (uint32_t)raw;
    archive->metadata_crc = (uint32_t)little_endian(p + 48, 4);
    archive->table_size = (uint32_t)table;
    archive->table_crc = (uint32_t)little_endian(p + 56, 4);
    return DDCT_OK;
}

/* Section 4: is this the header of a frame of `raw_size` bytes, with its content size, without a dictionary? */
static const char *frame_header_breach(const uint8_t *frame, size_t size, uint64_t raw_size) {
    static const uint8_t dictionary_sizes[4] = {0, 1, 2, 4}, content_sizes[4] = {0, 2, 4, 8};
    if (size < 5 || little_endian(frame, 4) != 0xFD2FB528)
        return "no zstd frame";
    uint8_t descriptor = frame[4];
    bool single_segment = descriptor >> 5 & 1;
    if (descriptor & 8)
        return "a reserved bit of the frame header is set";
    int content_size = content_sizes[descriptor >> 6];
    if (content_size == 0 && single_segment)
        content_size = 1;
    int dictionary_size = dictionary_sizes[descriptor & 3];
    if (content_size == 0)
        return "a frame without its content size";
    size_t position = 5;
    if (size < position + !single_segment + (size_t)dictionary_size + (size_t)content_size)
        return "an incomplete frame header";
    if (!single_segment) {
        uint8_t window = frame[position++];
        uint64_t base = (uint64_t)1 << (10 + (window >> 3));
        if (base + base / 8 * (window & 7) > MAX_WINDOW)
            return "a frame with a window above 8 MiB";
    }
    if (little_endian(frame + position, dictionary_size) != 0)
        return "a frame with a dictionary";
    position += (size_t)dictionary_size;
    uint64_t content = little_endian(frame + position, content_size) + (content_size == 2 ? 256 : 0);
    return content == raw_size ? NULL : "a frame of another size";
}

/* Turn stored bytes into `raw_size` raw bytes. `what` and `index` say which for messages. */
static ddct_status unpack(ZSTD_DCtx *context, const uint8_t *stored, size_t stored_size, uint8_t *raw, size_t raw_size,
                          const char *what, uint64_t index, ddct_error *error) {
    unsigned long long number = index;
    if (stored_size == raw_size) {
        memcpy(raw, stored, raw_size);
        return DDCT_OK;
    }
    const char *breach = frame_header_breach(stored, stored_size, raw_size);
    if (breach != NULL)
        return ddct_fail(error, DDCT_INVALID, "%s %llu: %s", what, number, breach);
    size_t frame_size = ZSTD_findFrameCompressedSize(stored, stored_size);
    if (ZSTD_isError(frame_size))
        return ddct_fail(error, DDCT_CORRUPT, "%s %llu: the frame is broken or incomplete", what, number);
    if (frame_size != stored_size)
        return ddct_fail(error, DDCT_INVALID, "%s %llu: bytes after the frame", what, number);
    size_t written = ZSTD_decompressDCtx(context, raw, raw_size, stored, stored_size);
    if (ZSTD_isError(written) || written != raw_size)
        return ddct_fail(error, DDCT_CORRUPT, "%s %llu: the frame does not decompress", what, number);
    return DDCT_OK;
}

/* libzstd allocates its context by itself: count it. */
static ddct_status create_context(ddct_memory *memory, ZSTD_DCtx **context, ddct_error *error) {
    *context = ZSTD_createDCtx();
    if (*context == NULL)
        return ddct_fail(error, DDCT_BUDGET, "out of memory");
    ddct_status status = ddct_charge(memory, ZSTD_sizeof_DCtx(*context), error);
    if (status != DDCT_OK) {
        ZSTD_freeDCtx(*context);
        *context = NULL;
    }
    return status;
}

static void free_context(ddct_memory *memory, ZSTD_DCtx *context) {
    if (context != NULL) {
        memory->used -= ZSTD_sizeof_DCtx(context);
        ZSTD_freeDCtx(context);
    }
}

/* The bytes of a region: in place if the file is in memory, else a copy, to be released by the caller. */
static ddct_status get_region(ddct_archive *archive, uint64_t offset, size_t size, const uint8_t **bytes,
                              uint8_t **copy, ddct_error *error) {
    *copy = NULL;
    if (archive->data != NULL) {
        *bytes = archive->data + offset;
        return DDCT_OK;
    }
    *copy = ddct_allocate(&archive->memory, size, 1, error);
    if (*copy == NULL)
        return DDCT_BUDGET;
    *bytes = *copy;
    return read_bytes(archive, offset, *copy, size, error);
}

ddct_status ddct_load_metadata(ddct_archive *archive, ddct_error *error) {
    const uint8_t *stored = NULL;
    uint8_t *copy = NULL;
    ZSTD_DCtx *context = NULL;
    ddct_memory *memory = &archive->memory;
    size_t stored_size = archive->metadata_stored_size, raw_size = archive->metadata_raw_size;
    ddct_status status = get_region(archive, PREAMBLE_SIZE, stored_size, &stored, &copy, error);
    if (status == DDCT_OK && ddct_crc32c(stored, stored_size) != archive->metadata_crc)
        status = ddct_fail(error, DDCT_CORRUPT, "checksum of the metadata");
    if (status == DDCT_OK)
        status = get_region(archive, PREAMBLE_SIZE + stored_size, archive->table_size, &archive->table,
                            &archive->table_copy, error);
    if (status == DDCT_OK && ddct_crc32c(archive->table, archive->table_size) != archive->table_crc)
        status = ddct_fail(error, DDCT_CORRUPT, "checksum of the chunk table");
    if (status == DDCT_OK && stored_size < raw_size) {
        const char *breach = frame_header_breach(stored, stored_size, raw_size);
        status = breach != NULL ? ddct_fail(error, DDCT_INVALID, "metadata: %s", breach)
                                : create_context(memory, &context, error);
    }
    if (status == DDCT_OK && (archive->text = ddct_allocate(memory, raw_size, 1, error)) == NULL)
        status = DDCT_BUDGET;
    if (status == DDCT_OK)
        status = unpack(context, stored, stored_size, (uint8_t *)archive->text, raw_size, "metadata", 0, error);
    free_context(memory, context);
    ddct_release(memory, copy);
    return status;
}

uint64_t ddct_chunk_count(const ddct_archive *archive, uint64_t payload_size) {
    uint64_t size = archive->summary.chunk_size;
    return payload_size / size + (payload_size % size != 0);
}

static uint32_t stored_size_of(const ddct_archive *archive, uint64_t chunk) {
    return (uint32_t)little_endian(archive->table + 8 * chunk, 4);
}

/* Note where a payload begins, and check the stored sizes of its chunks. */
static ddct_status place_payload(ddct_archive *archive, ddct_payload *payload, uint64_t *chunk, uint64_t *offset,
                                 ddct_error *error) {
    uint64_t left = payload->size, chunk_size = archive->summary.chunk_size;
    payload->first_chunk = *chunk;
    payload->first_offset = *offset;
    for (; left > 0; (*chunk)++) {
        uint64_t raw_size = left < chunk_size ? left : chunk_size;
        uint32_t stored = stored_size_of(archive, *chunk);
        if (stored == 0 || stored > raw_size)
            return ddct_fail(error, DDCT_INVALID, "chunk %llu: a stored size of %u for %llu bytes",
                             (unsigned long long)*chunk, (unsigned)stored, (unsigned long long)raw_size);
        *offset += stored;
        left -= raw_size;
    }
    return DDCT_OK;
}

ddct_status ddct_place_payloads(ddct_archive *archive, ddct_error *error) {
    uint64_t chunks = 0, entries = archive->table_size / 8, chunk = 0;
    ddct_summary *summary = &archive->summary;
    for (uint32_t i = 0; i < summary->files; i++)
        chunks += ddct_chunk_count(archive, archive->files[i].payload.size);
    for (uint32_t i = 0; i < summary->tensors; i++)
        for (uint32_t k = 0; k < archive->tensors[i].info.layers; k++)
            chunks += ddct_chunk_count(archive, archive->tensors[i].layers[k].payload.size);
    if (chunks != entries)
        return ddct_fail(error, DDCT_INVALID, "the chunk table has %llu entries, the metadata implies %llu",
                         (unsigned long long)entries, (unsigned long long)chunks);
    summary->chunks = chunks;
    uint64_t offset = PREAMBLE_SIZE + (uint64_t)archive->metadata_stored_size + archive->table_size;
    ddct_status status = DDCT_OK;
    for (uint32_t i = 0; i < summary->files && status == DDCT_OK; i++)
        status = place_payload(archive, &archive->files[i].payload, &chunk, &offset, error);
    for (uint32_t k = 0; k < DDCT_MAX_LAYERS; k++) {
        for (uint32_t i = 0; i < summary->tensors && status == DDCT_OK; i++) {
            ddct_entry *tensor = &archive->tensors[i];
            if (k < tensor->info.layers)
                status = ddct_fail_tensor(
                    error, place_payload(archive, &tensor->layers[k].payload, &chunk, &offset, error),
                    tensor->info.name);
        }
    }
    if (status == DDCT_OK && offset != summary->file_size)
        status = ddct_fail(error, DDCT_INVALID, "the chunks end at %llu, the file at %llu", (unsigned long long)offset,
                           (unsigned long long)summary->file_size);
    return status;
}

ddct_status ddct_begin_chunks(ddct_chunks *chunks, const ddct_archive *archive, const ddct_payload *payload,
                              ddct_memory *memory, ddct_error *error) {
    *chunks = (ddct_chunks){
        .archive = archive, .payload = payload, .memory = memory, .offset = payload->first_offset};
    if (payload->size == 0)
        return DDCT_OK;
    ddct_status status = create_context(memory, &chunks->context, error);
    if (status == DDCT_OK && archive->data == NULL) {
        uint64_t most = 0, count = ddct_chunk_count(archive, payload->size);
        for (uint64_t i = 0; i < count; i++) {
            uint32_t stored = stored_size_of(archive, payload->first_chunk + i);
            most = stored > most ? stored : most;
        }
        chunks->stored = ddct_allocate(memory, most, 1, error);
        status = chunks->stored == NULL ? DDCT_BUDGET : DDCT_OK;
    }
    return status;
}

void ddct_end_chunks(ddct_chunks *chunks) {
    free_context(chunks->memory, chunks->context);
    ddct_release(chunks->memory, chunks->stored);
    ddct_release(chunks->memory, chunks->cache);
}

uint64_t ddct_chunk_raw_size(const ddct_chunks *chunks, uint64_t index) {
    uint64_t chunk_size = chunks->archive->summary.chunk_size, left = chunks->payload->size - index * chunk_size;
    return left < chunk_size ? left : chunk_size;
}

ddct_status ddct_read_chunk(ddct_chunks *chunks, uint64_t index, uint8_t *out, ddct_error *error) {
    const ddct_archive *archive = chunks->archive;
    if (index < chunks->next) {
        chunks->next = 0;
        chunks->offset = chunks->payload->first_offset;
    }
    for (; chunks->next < index; chunks->next++)
        chunks->offset += stored_size_of(archive, chunks->payload->first_chunk + chunks->next);
    uint64_t chunk = chunks->payload->first_chunk + index;
    uint32_t stored_size = stored_size_of(archive, chunk);
    const uint8_t *stored = archive->data != NULL ? archive->data + chunks->offset : chunks->stored;
    if (archive->data == NULL) {
        ddct_status status = read_bytes(archive, chunks->offset, chunks->stored, stored_size, error);
        if (status != DDCT_OK)
            return status;
    }
    if (ddct_crc32c(stored, stored_size) != little_endian(archive->table + 8 * chunk + 4, 4))
        return ddct_fail(error, DDCT_CORRUPT, "checksum of chunk %llu", (unsigned long long)chunk);
    return unpack(chunks->context, stored, stored_size, out, (size_t)ddct_chunk_raw_size(chunks, index), "chunk",
                  chunk, error);
}

ddct_status ddct_read_payload(ddct_chunks *chunks, uint8_t *out, ddct_error *error) {
    uint64_t count = ddct_chunk_count(chunks->archive, chunks->payload->size);
    for (uint64_t i = 0; i < count; i++) {
        ddct_status status = ddct_read_chunk(chunks, i, out + i * chunks->archive->summary.chunk_size, error);
        if (status != DDCT_OK)
            return status;
    }
    return DDCT_OK;
}

ddct_status ddct_read_range(ddct_chunks *chunks, uint64_t offset, uint64_t size, uint8_t *out, ddct_error *error) {
    uint64_t chunk_size = chunks->archive->summary.chunk_size;
    if (chunks->cache == NULL && size > 0) {
        uint64_t most = chunks->payload->size < chunk_size ? chunks->payload->size : chunk_size;
        chunks->cache = ddct_allocate(chunks->memory, most, 1, error);
        if (chunks->cache == NULL)
            return DDCT_BUDGET;
    }
    while (size > 0) {
        uint64_t index = offset / chunk_size, inside = offset % chunk_size;
        if (chunks->cached != index + 1) {
            chunks->cached = 0;
            ddct_status status = ddct_read_chunk(chunks, index, chunks->cache, error);
            if (status != DDCT_OK)
                return status;
            chunks->cached = index + 1;
        }
        uint64_t take = ddct_chunk_raw_size(chunks, index) - inside;
        take = take < size ? take : size;
        memcpy(out, chunks->cache + inside, (size_t)take);
        out += take;
        offset += take;
        size -= take;
    }
    return DDCT_OK;
}

/* The structures of an open archive, and the functions that its parts offer one another. */
#ifndef DDCT_INTERNAL_H
#define DDCT_INTERNAL_H

#include "ddct_kernels.h"
#include "ddct_schema.h"

typedef enum ddct_codec { DDCT_CODEC_UNKNOWN, DDCT_CODEC_RAW, DDCT_CODEC_DCTQ } ddct_codec;

/* A payload (section 6) and where its chunks begin. */
typedef struct ddct_payload {
    uint64_t size;
    uint64_t first_chunk;
    uint64_t first_offset; /* in the file */
} ddct_payload;

typedef struct ddct_layer {
    ddct_codec codec;
    bool must_understand;
    uint32_t params; /* node */
    ddct_payload payload;
    uint8_t digest[DDCT_DIGEST_SIZE];
} ddct_layer;

typedef struct ddct_entry {
    ddct_tensor info;
    uint32_t name_length;
    uint32_t of; /* node, for an alias */
    ddct_layer *layers;
} ddct_entry;

typedef struct ddct_side_file {
    const char *path;
    ddct_payload payload;
    uint8_t digest[DDCT_DIGEST_SIZE];
} ddct_side_file;

typedef struct ddct_shard_entry {
    const char *path;
    uint32_t metadata; /* node */
} ddct_shard_entry;

struct ddct_archive {
    const uint8_t *data; /* the whole file, or NULL if it is read through the callback */
    ddct_read read;
    void *context;
    int descriptor;
    ddct_memory memory; /* what is held until ddct_close */
    uint32_t metadata_stored_size, metadata_raw_size, metadata_crc, table_size, table_crc;
    char *text;
    ddct_json json;
    const uint8_t *table;
    uint8_t *table_copy; /* owned, or NULL */
    ddct_summary summary;
    ddct_entry *tensors;
    ddct_layer *layers;
    ddct_side_file *files;
    ddct_shard_entry *shards;
};

/* ddct_container.c: steps 1 to 5 and 9 of the order of refusal, and the reading of chunks. */
ddct_status ddct_read_preamble(ddct_archive *archive, ddct_error *error);
ddct_status ddct_load_metadata(ddct_archive *archive, ddct_error *error); /* its text, and the table */
ddct_status ddct_place_payloads(ddct_archive *archive, ddct_error *error);

typedef struct ddct_chunks {
    const ddct_archive *archive;
    const ddct_payload *payload;
    ddct_memory *memory;
    struct ZSTD_DCtx_s *context;
    uint8_t *stored;          /* room for the stored bytes of a chunk, unless the archive is in memory */
    uint64_t next, offset;    /* the chunk of the payload that begins at this offset of the file */
    uint8_t *cache;           /* raw bytes of one chunk, for ddct_read_range */
    uint64_t cached;          /* its number in the payload, plus one */
} ddct_chunks;

ddct_status ddct_begin_chunks(ddct_chunks *chunks, const ddct_archive *archive, const ddct_payload *payload,
                              ddct_memory *memory, ddct_error *error);
uint64_t ddct_chunk_count(const ddct_archive *archive, uint64_t payload_size);
uint64_t ddct_chunk_raw_size(const ddct_chunks *chunks, uint64_t index);
ddct_status ddct_read_chunk(ddct_chunks *chunks, uint64_t index, uint8_t *out, ddct_error *error);
ddct_status ddct_read_payload(ddct_chunks *chunks, uint8_t *out, ddct_error *error);
ddct_status ddct_read_range(ddct_chunks *chunks, uint64_t offset, uint64_t size, uint8_t *out, ddct_error *error);
void ddct_end_chunks(ddct_chunks *chunks);

/* ddct_metadata.c: step 6. ddct_relations.c: step 7. */
ddct_status ddct_read_metadata(ddct_archive *archive, ddct_error *error);
ddct_status ddct_check_relations(ddct_archive *archive, ddct_error *error);

/* ddct_codec.c: step 8, and the layers of one tensor. `out` holds the tensor so far, and then the result. */
ddct_status ddct_check_codecs(ddct_archive *archive, ddct_error *error);

/* The part of a tensor that is decoded: rows [first, first + count) of the view. */
typedef struct ddct_rows {
    bool all;
    uint64_t first, count;
} ddct_rows;

ddct_status ddct_decode_layer(const ddct_archive *archive, const ddct_entry *tensor, uint32_t layer, ddct_rows rows,
                              const void *base, ddct_dtype base_dtype, void *out, ddct_memory *memory,
                              ddct_error *error);

/* Steps 11 for a layer without a tensor to apply it to. */
ddct_status ddct_verify_layer(const ddct_archive *archive, const ddct_entry *tensor, uint32_t layer,
                              ddct_memory *memory, ddct_error *error);

/* ddct_dctq.c: the parameters and the payload of a dctq.v1 layer. */
typedef struct ddct_dctq {
    uint64_t rows, columns;                       /* of the view */
    uint64_t patch_rows, patch_columns, patches;  /* numbers of patches */
    uint32_t patch, class_count, sparse_count, rank;
    ddct_transform transform;
    bool affine, row_keys, column_keys;
    uint32_t classes, sparse; /* nodes */
} ddct_dctq;

ddct_status ddct_read_dctq(const ddct_archive *archive, const ddct_entry *tensor, const ddct_layer *layer,
                           ddct_dctq *params, ddct_error *error);
ddct_status ddct_decode_dctq(const ddct_dctq *params, const ddct_archive *archive, const ddct_layer *layer,
                             ddct_rows rows, const void *base, ddct_dtype base_dtype, void *out, ddct_dtype dtype,
                             ddct_memory *memory, ddct_error *error);

#endif

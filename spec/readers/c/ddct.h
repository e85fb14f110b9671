/* ddct.h - a reader of the .ddct format, version 1 (see ../../ddct-v1.md).
 *
 * A .ddct archive stores the tensors of a target model as changes to the tensors of a base model.
 * This library opens an archive, checks it, lists its tensors and side files, and decodes them. It
 * never reads or writes a model file itself: the caller hands in the base tensors as bytes.
 *
 * Everything read from an archive is treated as hostile. The library allocates at most
 * ddct_options.budget bytes at a time per call, on top of what the caller hands in.
 *
 * Threads: there is no mutable global state. An open archive is read-only; any number of threads may call
 * every function that takes a `const ddct_archive *` on the same archive at once, provided that the
 * read callback and the allocator may be called from several threads.
 *
 * Errors: functions that can fail return a ddct_status and, if `error` is not NULL, describe the failure
 * in it. Nothing is printed. After a failure the content of an output buffer must not be used.
 */
#ifndef DDCT_H
#define DDCT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The error classes of section 10, and three of the library's own. */
typedef enum ddct_status {
    DDCT_OK = 0,
    DDCT_CORRUPT,       /* the bytes were damaged: fetch the file again */
    DDCT_TRUNCATED,     /* bytes are missing at the end: fetch the file again */
    DDCT_UNSUPPORTED,   /* a newer or optional feature: upgrade the reader */
    DDCT_INVALID,       /* the file breaks the specification: its writer is at fault */
    DDCT_BASE_MISMATCH, /* not the base that the archive was made for */
    DDCT_BUDGET,        /* more memory than the caller allows, or than there is */
    DDCT_IO,            /* the read callback failed */
    DDCT_ARGUMENT       /* the caller's mistake: an index or a buffer size */
} ddct_status;

enum { DDCT_MAX_NAME = 1024, DDCT_MAX_RANK = 8, DDCT_MAX_LAYERS = 4, DDCT_DIGEST_SIZE = 32 };

#define DDCT_DEFAULT_BUDGET ((uint64_t)1 << 30)

typedef struct ddct_error {
    ddct_status status;
    char reason[256];               /* one line of ASCII without a final newline */
    char tensor[DDCT_MAX_NAME + 1]; /* UTF-8 name of the tensor concerned, or "" */
} ddct_error;

typedef struct ddct_options {
    /* Most bytes that the library may hold at a time: what ddct_open keeps until ddct_close, plus what one
     * call needs while it runs. 0 means DDCT_DEFAULT_BUDGET. Time is bounded by it too: a hostile file of a few
     * kilobytes can make the library fill the whole budget. */
    uint64_t budget;
    /* Optional allocator; both or neither. `allocate` returns NULL on failure, else memory aligned for any
     * type. (libzstd's decompression context, about 100 KiB, comes from malloc but is counted.) */
    void *(*allocate)(void *context, size_t size);
    void (*release)(void *context, void *memory);
    void *context;
} ddct_options;

typedef enum ddct_dtype {
    DDCT_BOOL, DDCT_U8, DDCT_I8, DDCT_F8_E5M2, DDCT_F8_E4M3, DDCT_F8_E8M0, DDCT_I16, DDCT_U16, DDCT_F16,
    DDCT_BF16, DDCT_I32, DDCT_U32, DDCT_F32, DDCT_I64, DDCT_U64, DDCT_F64, DDCT_C64,
    DDCT_DTYPE_COUNT
} ddct_dtype;

typedef enum ddct_op { DDCT_ADD, DDCT_REPLACE, DDCT_KEEP, DDCT_ALIAS } ddct_op;

/* Texts are UTF-8 and end with a NUL; they live until ddct_close. */
typedef struct ddct_tensor {
    const char *name;
    ddct_dtype dtype;
    uint32_t rank;
    uint64_t shape[DDCT_MAX_RANK];
    uint64_t elements;
    uint64_t bytes; /* size of the decoded tensor */
    uint32_t shard; /* index of its shard */
    ddct_op op;
    uint32_t source;       /* for an alias the index of the tensor that it equals, else its own index */
    bool needs_base;       /* decoding needs the base tensor named like tensor `source` */
    ddct_dtype base_dtype; /* if needs_base: element type of that base tensor (its shape is `shape`) */
    uint64_t base_bytes;   /* if needs_base: its size, else 0 */
    uint8_t base_digest[DDCT_DIGEST_SIZE];
    uint32_t layers;     /* number of layers stored: 0 for keep */
    uint32_t understood; /* number of layers that this reader decodes; fewer when the rest may be skipped */
    uint8_t digest[DDCT_DIGEST_SIZE]; /* of the tensor after the last understood layer */
    /* The view that row ranges refer to. Both are 0 when the tensor has no row ranges: it has row keys, is empty, or
     * is not made of layers. */
    uint64_t view_rows, view_columns;
    const char *error; /* the encoder's relative squared error, as the decimal number written, or NULL */
} ddct_tensor;

typedef struct ddct_file {
    const char *path;
    uint64_t size;
    uint8_t digest[DDCT_DIGEST_SIZE];
} ddct_file;

typedef struct ddct_shard {
    const char *path;
    uint32_t metadata_count; /* pairs of the safetensors __metadata__, see ddct_shard_metadata */
} ddct_shard;

typedef struct ddct_summary {
    const char *generator;
    uint8_t content_id[DDCT_DIGEST_SIZE]; /* sha256 of the metadata: what a signature signs */
    uint8_t base_id[DDCT_DIGEST_SIZE];
    uint8_t exact_id[DDCT_DIGEST_SIZE];
    uint32_t target_ids; /* 1 ... 4 */
    uint8_t target_id[DDCT_MAX_LAYERS][DDCT_DIGEST_SIZE];
    const char *hint_repo, *hint_revision, *hint_name; /* a locator, never an identity; NULL if absent */
    uint32_t tensors, shards, files;
    uint64_t chunks, chunk_size, file_size;
} ddct_summary;

typedef struct ddct_archive ddct_archive;

/* Read exactly `size` bytes at `offset` into `target`; return 0, or anything else on failure. */
typedef int (*ddct_read)(void *context, uint64_t offset, void *target, size_t size);

/* Open an archive: steps 1 to 9 of section 9, that is, everything but base tensors, chunks and results.
 * On success *archive must be closed with ddct_close. `options` may be NULL.
 * ddct_open_memory borrows `data` and ddct_open_descriptor borrows the file descriptor until ddct_close. */
ddct_status ddct_open_memory(const void *data, size_t size, const ddct_options *options, ddct_archive **archive,
                             ddct_error *error);
ddct_status ddct_open_descriptor(int descriptor, const ddct_options *options, ddct_archive **archive,
                                 ddct_error *error);
ddct_status ddct_open_source(ddct_read read, void *context, uint64_t size, const ddct_options *options,
                             ddct_archive **archive, ddct_error *error);
void ddct_close(ddct_archive *archive);

void ddct_get_summary(const ddct_archive *archive, ddct_summary *summary);

/* The item at `index`, or DDCT_ARGUMENT when there is none. Tensors are in the order of their names. */
ddct_status ddct_get_tensor(const ddct_archive *archive, uint32_t index, ddct_tensor *tensor);
ddct_status ddct_get_file(const ddct_archive *archive, uint32_t index, ddct_file *file);
ddct_status ddct_get_shard(const ddct_archive *archive, uint32_t index, ddct_shard *shard);
ddct_status ddct_shard_metadata(const ddct_archive *archive, uint32_t shard, uint32_t index, const char **name,
                                size_t *name_length, const char **value, size_t *value_length);

/* Find a tensor by its UTF-8 name of `length` bytes. */
bool ddct_find_tensor(const ddct_archive *archive, const char *name, size_t length, uint32_t *index);

/* Step 10 for one tensor: do these bytes have the size and the digest that it demands of its base tensor?
 * The caller compares element type and shape (ddct_tensor.base_dtype, .shape). */
ddct_status ddct_check_base(const ddct_archive *archive, uint32_t index, const void *base, uint64_t base_size,
                            ddct_error *error);

/* Decode a tensor: check its base (step 10), its chunks and payloads (11), apply at most `layers` layers (0
 * means all that are understood), and check the digest after each of them (12).
 * `out_size` must be ddct_tensor.bytes. `base` may be NULL if the tensor needs none; it must not overlap `out`. */
ddct_status ddct_decode(const ddct_archive *archive, uint32_t index, uint32_t layers, const void *base,
                        uint64_t base_size, void *out, uint64_t out_size, ddct_error *error);

/* Decode the rows [first, first + count) of the view (ddct_tensor.view_rows x view_columns) from the same
 * rows of the base tensor, reading only the chunks that hold them. Chunk checksums are verified, but digests
 * cover whole tensors and cannot be: neither that of the base nor that of the result. */
ddct_status ddct_decode_rows(const ddct_archive *archive, uint32_t index, uint32_t layers, uint64_t first,
                             uint64_t count, const void *base_rows, uint64_t base_size, void *out,
                             uint64_t out_size, ddct_error *error);

/* Read a side file and check its digest. `out_size` must be ddct_file.size. */
ddct_status ddct_read_file(const ddct_archive *archive, uint32_t index, void *out, uint64_t out_size,
                           ddct_error *error);

/* Check all that can be checked without a base, in file order: every chunk and every payload (step 11) and the
 * digests of side files and of tensors that need no base (step 12). */
ddct_status ddct_verify(const ddct_archive *archive, ddct_error *error);

/* The digest sha256-64k of section 1.1. */
void ddct_tensor_digest(const void *bytes, uint64_t size, uint8_t digest[DDCT_DIGEST_SIZE]);

/* Names as the specification writes them. */
const char *ddct_status_name(ddct_status status); /* "ok", "corrupt", ..., "base-mismatch", ... */
const char *ddct_dtype_name(ddct_dtype dtype);
uint32_t ddct_dtype_size(ddct_dtype dtype); /* bytes of an element */
bool ddct_dtype_find(const char *name, size_t length, ddct_dtype *dtype);
const char *ddct_op_name(ddct_op op);

#ifdef __cplusplus
}
#endif

#endif

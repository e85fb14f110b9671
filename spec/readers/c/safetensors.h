/* The tensors of a base model: one safetensors file, or all those of a directory. For ddct-cat, not the library. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "ddct_json.h"

typedef struct base_tensor {
    const char *name;
    size_t name_length;
    bool known; /* is `dtype` an element type that the reader knows? */
    ddct_dtype dtype;
    uint32_t rank;
    uint64_t shape[DDCT_MAX_RANK];
    const unsigned char *bytes;
    uint64_t size;
} base_tensor;

typedef struct base_file {
    void *map;
    size_t size;
    char *header;
    ddct_json json;
} base_file;

typedef struct base_model {
    ddct_memory memory;
    base_file *files;
    size_t file_count;
    base_tensor *tensors; /* sorted by name */
    size_t tensor_count;
} base_model;

/* Returns false and sets `error` (DDCT_IO) if a file cannot be read as safetensors. */
bool base_model_open(base_model *model, const char *path, ddct_error *error);
void base_model_close(base_model *model);

/* The tensor that `tensor` of the archive needs, or NULL with `error` set to DDCT_BASE_MISMATCH. */
const base_tensor *base_model_find(const base_model *model, const ddct_archive *archive, const ddct_tensor *tensor,
                                   ddct_error *error);

#endif

/* The tensors of a base model. Files are mapped into memory; headers are parsed by the reader's own parser. */
#define _POSIX_C_SOURCE 200809L

#include "safetensors.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool fail(ddct_error *error, const char *what) {
    ddct_fail(error, DDCT_IO, "base: %s", what);
    return false;
}

static bool map_file(base_file *file, const char *path) {
    struct stat information;
    int descriptor = open(path, O_RDONLY);
    if (descriptor < 0)
        return false;
    bool good = fstat(descriptor, &information) == 0 && S_ISREG(information.st_mode) && information.st_size >= 8;
    if (good) {
        file->size = (size_t)information.st_size;
        file->map = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        good = file->map != MAP_FAILED;
        if (!good)
            file->map = NULL;
    }
    close(descriptor);
    return good;
}

/* The node of the member `name` of an object, or 0. */
static uint32_t member(const ddct_json *json, uint32_t object, const char *name) {
    for (uint32_t i = object + 1; i < json->nodes[object].end; i = json->nodes[i + 1].end)
        if (ddct_json_equals(json, i, name))
            return i + 1;
    return 0;
}

static bool is_integer_array(const ddct_json *json, uint32_t node, uint32_t most) {
    if (node == 0 || json->nodes[node].type != DDCT_JSON_ARRAY || json->nodes[node].length > most)
        return false;
    for (uint32_t i = node + 1; i < json->nodes[node].end; i++)
        if (json->nodes[i].type != DDCT_JSON_INTEGER || json->nodes[i].negative)
            return false;
    return true;
}

static bool read_tensor(const base_file *file, uint64_t data_start, uint32_t name, base_tensor *tensor) {
    const ddct_json *json = &file->json;
    uint32_t object = name + 1;
    if (json->nodes[object].type != DDCT_JSON_OBJECT)
        return false;
    uint32_t dtype = member(json, object, "dtype"), shape = member(json, object, "shape");
    uint32_t offsets = member(json, object, "data_offsets");
    if (dtype == 0 || json->nodes[dtype].type != DDCT_JSON_STRING ||
        !is_integer_array(json, shape, DDCT_MAX_RANK) || !is_integer_array(json, offsets, 2) ||
        json->nodes[offsets].length != 2)
        return false;
    uint64_t begin = (uint64_t)ddct_json_integer(json, offsets + 1);
    uint64_t end = (uint64_t)ddct_json_integer(json, offsets + 2);
    if (begin > end || end > file->size - data_start)
        return false;
    tensor->name = json->text + json->nodes[name].offset;
    tensor->name_length = json->nodes[name].length;
    tensor->known =
        ddct_dtype_find(json->text + json->nodes[dtype].offset, json->nodes[dtype].length, &tensor->dtype);
    tensor->rank = json->nodes[shape].length;
    for (uint32_t i = 0; i < tensor->rank; i++)
        tensor->shape[i] = (uint64_t)ddct_json_integer(json, shape + 1 + i);
    tensor->bytes = (const unsigned char *)file->map + data_start + begin;
    tensor->size = end - begin;
    return true;
}

static bool add_file(base_model *model, const char *path, ddct_error *error) {
    base_file *files = realloc(model->files, (model->file_count + 1) * sizeof *files);
    if (files == NULL)
        return fail(error, "out of memory");
    model->files = files;
    base_file *file = &files[model->file_count];
    memset(file, 0, sizeof *file);
    if (!map_file(file, path))
        return fail(error, "cannot read a safetensors file");
    model->file_count++;
    uint64_t length;
    memcpy(&length, file->map, sizeof length);
    if (length > file->size - 8 || length > 100 << 20)
        return fail(error, "no safetensors header");
    file->header = malloc((size_t)length + 1);
    if (file->header == NULL)
        return fail(error, "out of memory");
    memcpy(file->header, (const char *)file->map + 8, (size_t)length);
    if (ddct_json_parse(file->header, (size_t)length, &model->memory, &file->json, error) != DDCT_OK ||
        file->json.nodes[0].type != DDCT_JSON_OBJECT)
        return fail(error, "a malformed safetensors header");
    base_tensor *tensors =
        realloc(model->tensors, (model->tensor_count + file->json.nodes[0].length + 1) * sizeof *tensors);
    if (tensors == NULL)
        return fail(error, "out of memory");
    model->tensors = tensors;
    for (uint32_t i = 1; i < file->json.nodes[0].end; i = file->json.nodes[i + 1].end) {
        if (ddct_json_equals(&file->json, i, "__metadata__"))
            continue;
        if (!read_tensor(file, 8 + length, i, &tensors[model->tensor_count++]))
            return fail(error, "a malformed safetensors header");
    }
    return true;
}

static int compare_tensors(const void *a, const void *b) {
    const base_tensor *left = a, *right = b;
    size_t common = left->name_length < right->name_length ? left->name_length : right->name_length;
    int order = memcmp(left->name, right->name, common);
    return order != 0 ? order : (left->name_length > right->name_length) - (left->name_length < right->name_length);
}

static bool add_directory(base_model *model, const char *path, ddct_error *error) {
    static const char suffix[] = ".safetensors";
    DIR *directory = opendir(path);
    if (directory == NULL)
        return fail(error, "cannot read the directory");
    bool good = true;
    for (struct dirent *entry; good && (entry = readdir(directory)) != NULL;) {
        size_t length = strlen(entry->d_name), tail = sizeof suffix - 1;
        if (length < tail || strcmp(entry->d_name + length - tail, suffix) != 0)
            continue;
        char *full = malloc(strlen(path) + length + 2);
        if (full == NULL) {
            good = fail(error, "out of memory");
        } else {
            sprintf(full, "%s/%s", path, entry->d_name);
            good = add_file(model, full, error);
        }
        free(full);
    }
    closedir(directory);
    return good;
}

bool base_model_open(base_model *model, const char *path, ddct_error *error) {
    struct stat information;
    ddct_options options = {.budget = UINT64_MAX};
    memset(model, 0, sizeof *model);
    model->memory = ddct_memory_create(&options);
    if (stat(path, &information) != 0)
        return fail(error, "no such file");
    if (!(S_ISDIR(information.st_mode) ? add_directory(model, path, error) : add_file(model, path, error)))
        return false;
    if (model->tensor_count > 0)
        qsort(model->tensors, model->tensor_count, sizeof *model->tensors, compare_tensors);
    for (size_t i = 1; i < model->tensor_count; i++)
        if (compare_tensors(&model->tensors[i - 1], &model->tensors[i]) == 0)
            return fail(error, "two files hold a tensor of the same name");
    return true;
}

void base_model_close(base_model *model) {
    for (size_t i = 0; i < model->file_count; i++) {
        munmap(model->files[i].map, model->files[i].size);
        free(model->files[i].header);
        ddct_release(&model->memory, model->files[i].json.nodes);
    }
    free(model->files);
    free(model->tensors);
}

const base_tensor *base_model_find(const base_model *model, const ddct_archive *archive, const ddct_tensor *tensor,
                                   ddct_error *error) {
    ddct_tensor source;
    ddct_get_tensor(archive, tensor->source, &source);
    base_tensor key = {.name = source.name, .name_length = strlen(source.name)};
    const base_tensor *found =
        model->tensor_count == 0
            ? NULL
            : bsearch(&key, model->tensors, model->tensor_count, sizeof key, compare_tensors);
    const char *breach = NULL;
    if (found == NULL)
        breach = "the base has no such tensor";
    else if (!found->known || found->dtype != tensor->base_dtype)
        breach = "the base tensor has another element type";
    else if (found->rank != tensor->rank || memcmp(found->shape, tensor->shape, sizeof found->shape[0] * found->rank))
        breach = "the base tensor has another shape";
    else if (found->size != tensor->base_bytes)
        breach = "the base tensor has another size than its shape";
    if (breach == NULL)
        return found;
    ddct_fail_tensor(error, ddct_fail(error, DDCT_BASE_MISMATCH, "%s", breach), tensor->name);
    return NULL;
}

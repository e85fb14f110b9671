/* Budgeted allocation, error values and sorting. */
#include "ddct_memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

ddct_status ddct_fail(ddct_error *error, ddct_status status, const char *format, ...) {
    if (error != NULL) {
        va_list arguments;
        va_start(arguments, format);
        error->status = status;
        error->tensor[0] = '\0';
        vsnprintf(error->reason, sizeof error->reason, format, arguments);
        va_end(arguments);
    }
    return status;
}

ddct_status ddct_fail_tensor(ddct_error *error, ddct_status status, const char *name) {
    if (status != DDCT_OK && error != NULL) {
        size_t length = strlen(name);
        if (length > DDCT_MAX_NAME)
            length = DDCT_MAX_NAME;
        memcpy(error->tensor, name, length);
        error->tensor[length] = '\0';
    }
    return status;
}

static void *default_allocate(void *context, size_t size) {
    (void)context;
    return malloc(size);
}

static void default_release(void *context, void *pointer) {
    (void)context;
    free(pointer);
}

ddct_memory ddct_memory_create(const ddct_options *options) {
    ddct_memory memory = {0};
    if (options != NULL)
        memory.options = *options;
    if (memory.options.budget == 0)
        memory.options.budget = DDCT_DEFAULT_BUDGET;
    if (memory.options.allocate == NULL || memory.options.release == NULL) {
        memory.options.allocate = default_allocate;
        memory.options.release = default_release;
    }
    memory.limit = memory.options.budget;
    return memory;
}

ddct_status ddct_charge(ddct_memory *memory, uint64_t size, ddct_error *error) {
    if (size > memory->limit - memory->used)
        return ddct_fail(error, DDCT_BUDGET, "needs %llu bytes more of memory, %llu are left of the budget",
                         (unsigned long long)size, (unsigned long long)(memory->limit - memory->used));
    memory->used += size;
    return DDCT_OK;
}

/* Each block begins with its size, in a header as large as the strictest alignment. */
enum { HEADER = 32 };

void *ddct_allocate(ddct_memory *memory, uint64_t count, size_t size, ddct_error *error) {
    if (count > (SIZE_MAX / 2 - HEADER) / size) {
        ddct_fail(error, DDCT_BUDGET, "needs more memory than can be addressed");
        return NULL;
    }
    size_t total = (size_t)count * size + HEADER;
    if (ddct_charge(memory, total, error) != DDCT_OK)
        return NULL;
    unsigned char *block = memory->options.allocate(memory->options.context, total);
    if (block == NULL) {
        memory->used -= total;
        ddct_fail(error, DDCT_BUDGET, "out of memory");
        return NULL;
    }
    memcpy(block, &total, sizeof total);
    return block + HEADER;
}

void *ddct_allocate_zeroed(ddct_memory *memory, uint64_t count, size_t size, ddct_error *error) {
    void *pointer = ddct_allocate(memory, count, size, error);
    if (pointer != NULL)
        memset(pointer, 0, (size_t)count * size);
    return pointer;
}

void ddct_release(ddct_memory *memory, void *pointer) {
    if (pointer == NULL)
        return;
    unsigned char *block = (unsigned char *)pointer - HEADER;
    size_t total;
    memcpy(&total, block, sizeof total);
    memory->used -= total;
    memory->options.release(memory->options.context, block);
}

static void sift_down(uint32_t *items, size_t root, size_t count, ddct_compare compare, const void *context) {
    uint32_t item = items[root];
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= count)
            break;
        if (child + 1 < count && compare(context, items[child], items[child + 1]) < 0)
            child++;
        if (compare(context, item, items[child]) >= 0)
            break;
        items[root] = items[child];
        root = child;
    }
    items[root] = item;
}

void ddct_sort(uint32_t *items, size_t count, ddct_compare compare, const void *context) {
    for (size_t root = count / 2; root-- > 0;)
        sift_down(items, root, count, compare, context);
    for (size_t last = count; last-- > 1;) {
        uint32_t item = items[0];
        items[0] = items[last];
        items[last] = item;
        sift_down(items, 0, last, compare, context);
    }
}

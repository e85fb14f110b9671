/* Budgeted allocation, error values and sorting: what every other file of the reader needs. */
#ifndef DDCT_MEMORY_H
#define DDCT_MEMORY_H

#include "ddct.h"

/* Record a failure in `error` (which may be NULL) and return `status`. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
ddct_status ddct_fail(ddct_error *error, ddct_status status, const char *format, ...);

/* Name the tensor that a failure concerns; pass the status through. */
ddct_status ddct_fail_tensor(ddct_error *error, ddct_status status, const char *name);

typedef struct ddct_memory {
    ddct_options options; /* with both callbacks set */
    uint64_t used, limit;
} ddct_memory;

ddct_memory ddct_memory_create(const ddct_options *options);

/* Memory for `count` items of `size` bytes, or NULL with `error` set to DDCT_BUDGET. */
void *ddct_allocate(ddct_memory *memory, uint64_t count, size_t size, ddct_error *error);
void *ddct_allocate_zeroed(ddct_memory *memory, uint64_t count, size_t size, ddct_error *error);
void ddct_release(ddct_memory *memory, void *pointer);

/* Count memory that something else allocates. */
ddct_status ddct_charge(ddct_memory *memory, uint64_t size, ddct_error *error);

/* Sort `count` numbers in place in O(n log n) whatever they are (a heap sort). */
typedef int (*ddct_compare)(const void *context, uint32_t a, uint32_t b);
void ddct_sort(uint32_t *items, size_t count, ddct_compare compare, const void *context);

#endif

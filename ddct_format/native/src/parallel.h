/* Work that is shared by several threads, all of them without the interpreter's lock. */
#ifndef DDCT_PARALLEL_H
#define DDCT_PARALLEL_H

#include <stddef.h>

/* Call work(context, worker, item) for every item below count, in about this order, on up to `workers` threads, the
 * calling one included; `worker` is below `workers`, and no two threads have the same. Returns when all is done. Fewer
 * threads than asked for are used where the system has no more. */
void share_work(size_t count, size_t workers, void (*work)(void *context, size_t worker, size_t item), void *context);

#endif

#include "parallel.h"

#include <pthread.h>
#include <stdatomic.h>

enum { MOST_WORKERS = 64 };

typedef struct {
    void (*work)(void *context, size_t worker, size_t item);
    void *context;
    size_t count;
    atomic_size_t next, workers;
} Shared;

static void *take_items(void *argument) {
    Shared *shared = argument;
    size_t worker = atomic_fetch_add(&shared->workers, 1);
    for (size_t item; (item = atomic_fetch_add(&shared->next, 1)) < shared->count;)
        shared->work(shared->context, worker, item);
    return NULL;
}

void share_work(size_t count, size_t workers, void (*work)(void *context, size_t worker, size_t item), void *context) {
    Shared shared = {.work = work, .context = context, .count = count};
    atomic_init(&shared.next, 0);
    atomic_init(&shared.workers, 0);
    pthread_t others[MOST_WORKERS];
    size_t started = 0, wanted = workers < count ? workers : count;
    while (started + 1 < wanted && started < MOST_WORKERS &&
           pthread_create(&others[started], NULL, take_items, &shared) == 0)
        started++;
    take_items(&shared);
    while (started > 0)
        pthread_join(others[--started], NULL);
}

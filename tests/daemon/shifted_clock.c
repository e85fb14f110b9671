/* Preloaded into a process, shifts its wall clock by the seconds that the file DDCT_TEST_CLOCK holds at that moment.
   The monotonic clock, file times and other processes are left alone, as when an administrator sets the clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    const char *path = getenv("DDCT_TEST_CLOCK");
    if (status == 0 && clock == CLOCK_REALTIME && path != NULL) {
        long seconds = 0;
        FILE *file = fopen(path, "r");
        if (file != NULL) {
            if (fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds;
            fclose(file);
        }
    }
    return status;
}

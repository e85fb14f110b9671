/* Loops over runs of zeros (spec section 7.2.5) that move bytes within vectors, for processors that can (AVX-512 VBMI2). */
#ifndef DDCT_NATIVE_RUN_VECTORS_H
#define DDCT_NATIVE_RUN_VECTORS_H

#include <stddef.h>
#include <stdint.h>

enum { RUN_SLACK = 64 }; /* bytes that may be written beyond the end of a result */

#if defined(__x86_64__) && defined(__GNUC__)
/* See encode_table.pack_runs. */
size_t pack_runs_vbmi2(const uint8_t *symbols, size_t values, const uint8_t *class_map, size_t patches, int number,
                       uint8_t *runs, uint8_t *others);
#endif

#endif

/* The kernels for any processor: SSE2 on x86-64, NEON on arm64, whatever the compiler makes of plain C elsewhere. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && !defined(DDCT_NO_INTRINSICS)
#include <immintrin.h>
#define USE_SSE2
#endif

#define KERNEL_TABLE kernels_portable
#include "kernels_body.h"

/* The kernels for any processor: SSE2 on x86-64, NEON on arm64, whatever the compiler makes of plain C elsewhere. */
#include "kernels.h"

#define KERNEL_TABLE kernels_portable
#include "kernels_body.h"

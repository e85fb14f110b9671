/* The loops themselves; included once per instruction set, with KERNEL_TABLE the name of the table to define. The
 * kernels of the C reader are compiled here, too, with internal linkage. */
#define DDCT_KERNEL static inline
#define DDCT_PORTABLE /* no dispatch inside */
#include "../../../spec/readers/c/ddct_kernels.c"

#include "encode_body.h"

const kernel_table KERNEL_TABLE = {
    .sparse_valid = ddct_sparse_valid,
    .encode = &encode_functions,
};

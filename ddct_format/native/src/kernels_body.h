/* The loops themselves; included once per instruction set, with KERNEL_TABLE the name of the table to define. The
 * kernels of the C reader are compiled here, too, with internal linkage. */
#if defined(__clang__)
/* Vectors wider than the set's registers are passed among static functions only: there is no ABI to keep. */
#pragma clang diagnostic ignored "-Wpsabi"
#endif
#define DDCT_KERNEL static inline
#define DDCT_PORTABLE /* no dispatch inside */
#include "kernels.h"

#include "../../../spec/readers/c/ddct_kernels.c"
#include "../../../spec/readers/c/ddct_ulp_kernels.c"

#include "vectors.h"

#include "transform_body.h"

#include "low_rank_body.h"

#if defined(USE_AVX512) && HAVE_AMX
#include "tiles.h"

#include "low_rank_amx_body.h"
#endif

#include "decode_body.h"

#include "ulp_body.h"

#include "encode_pack_body.h"

#include "encode_ulp_body.h"

#include "encode_body.h"

#include "encode_ulp_sizes_body.h"

#if defined(USE_AVX512)
#include "sha256_body.h"
#define LEAF_DIGESTS leaf_digests
#else
#define LEAF_DIGESTS NULL
#endif

#define KERNELS(ENCODE, VECTORS, TILES)                                                                                      \
    {                                                                                                               \
        .sparse_valid = ddct_sparse_valid, .dense_table = ddct_dense_table, .prepare_patches = prepare_patches,     \
        .decode_some = decode_some, .ulp_make_code = ddct_ulp_make_code, .ulp_measure = ddct_ulp_measure,           \
        .ulp_count_groups = ulp_count_groups, .ulp_decode_some = ulp_decode_some, .encode = ENCODE,                 \
        .ulp_row_sizes = ulp_row_sizes, .leaf_digests = LEAF_DIGESTS, .group_vectors = VECTORS, .tiles = TILES,                               \
    }
const kernel_table KERNEL_TABLE = KERNELS(&encode_functions, NULL, false);
#if defined(USE_AVX512)
const kernel_table kernels_vbmi2 = KERNELS(&encode_functions_vbmi2, &group_vectors_vbmi2, false);
#endif
#if defined(USE_AVX512) && HAVE_AMX
const kernel_table kernels_amx = KERNELS(&encode_functions_amx, &group_vectors_vbmi2, true);
#endif

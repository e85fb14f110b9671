/* What the two halves of the codec dctq.v1 share: ddct_dctq.c reads parameters, ddct_patches.c decodes. */
#ifndef DDCT_DCTQ_H
#define DDCT_DCTQ_H

#include "ddct_internal.h"

/* Where the sections of a payload begin, up to the run counts (section 7.2.2); `end` is where these end. */
typedef struct ddct_sections {
    uint64_t multipliers, row_keys, column_keys, left, right, class_map, run_counts, end;
} ddct_sections;

ddct_sections ddct_locate_sections(const ddct_dctq *params);

/* The levels of the class at `node`, which has been checked. Returns its alphabet. */
uint32_t ddct_class_levels(const ddct_json *json, uint32_t node, int8_t levels[256]);

#endif

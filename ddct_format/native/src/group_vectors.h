/* Loops over the groups of ulp.v1 that move bytes within vectors, for processors that can (AVX-512 VBMI2). A symbol taken
 * or put one by one waits for the one before it in its group; here a group's symbols of 64 elements move at once. */
#ifndef DDCT_NATIVE_GROUP_VECTORS_H
#define DDCT_NATIVE_GROUP_VECTORS_H

#include "ddct_ulp_kernels.h"
#include "encode_kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Elements that the functions below take at most, and bytes that they may read or write beyond the end of any array:
 * all have room for that. */
enum { GROUP_TILE = 1024, GROUP_SLACK = 64 };

/* Room for those of a tile after less than 64 that were there before. */
enum { WAITING_SYMBOLS = 64 + GROUP_TILE + GROUP_SLACK };

/* The groups of contexts, where they all lie close together: those below `first` are of the first group, those from the
 * last on of the last one. */
typedef struct {
    uint8_t groups[256];
    uint16_t first;
    uint16_t count; /* groups: numbers below that */
} narrow_groups;

typedef struct group_vectors {
    /* The group of each context plus `row_key`; fills up to a multiple of 64 with the first one's. */
    void (*find)(const narrow_groups *table, const uint16_t *contexts, uint32_t row_key, size_t count, uint8_t *groups);
    /* The same from the predictions' patterns, of 16 bits, and the columns' keys, which may be NULL. */
    void (*find_16)(const narrow_groups *table, const ddct_ulp_code *code, const uint8_t *patterns, uint32_t row_key,
                    const uint8_t *column_keys, size_t count, uint8_t *groups);
    /* Adds the elements of each group to `counts`. */
    void (*count)(const narrow_groups *table, const uint8_t *groups, size_t count, uint64_t *counts);
    /* The next symbol of the group of each element. Lists those that are `first_long` or more; how many they are. */
    size_t (*take)(const narrow_groups *table, const uint8_t *groups, size_t count, uint32_t first_long,
                   const uint8_t **next, uint8_t *symbols, uint16_t *long_ones);
    /* Appends each symbol to those of its group, of which `counts` wait already, less than 64 of each. Lists the groups
     * that got any, ascending; how many they are. */
    size_t (*put)(const narrow_groups *table, const uint8_t *groups, const uint8_t *symbols, size_t count,
                  uint8_t (*waiting)[WAITING_SYMBOLS], uint32_t *counts, uint8_t *present);
    /* Lists the symbols that are `least` or more; how many they are. */
    size_t (*list_long)(const uint8_t *symbols, size_t count, uint32_t least, uint16_t *long_ones);
    /* The targets, of 16 bits, from the predictions' patterns, which may be those that they replace; false if one is out
     * of range. */
    bool (*store_16)(const ddct_ulp_code *code, const uint8_t *patterns, const uint16_t *magnitudes,
                     const uint8_t *symbols, size_t count, uint8_t *out);
} group_vectors;

/* False if the contexts at which groups change lie too far apart. */
bool narrow_groups_of(const uint8_t *group_of, size_t contexts, narrow_groups *table);

#if defined(__x86_64__) && defined(__GNUC__)
extern const group_vectors group_vectors_vbmi2;

/* See encode_table; without branches, in lanes of 16 bits. */
void ulp_elements_16_vbmi2(const ulp_pair *pair, size_t first, size_t count, int32_t row_key, const uint8_t *col_keys,
                           ulp_piece *piece);
#endif

#endif

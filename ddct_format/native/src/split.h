/* Payloads of dctq.v1 whose symbols are left packed. */
#ifndef DDCT_SPLIT_H
#define DDCT_SPLIT_H

#include "arguments.h"

/* Where the symbols of a payload of dctq.v1 lie (section 7.2.2): found and checked, payload by payload. */
typedef struct {
    uint64_t place, size;           /* in the memory that is given */
    uint64_t patches, symbols;      /* in all, and of a patch */
    uint64_t class_map, run_counts; /* from the payload's start on; the map is not read if there is one class */
    uint64_t after;                 /* where the sections end whose size does not depend on the class map */
    uint64_t affine, first_class, classes; /* no classes: it is not looked at */
} Split;

typedef struct {
    uint64_t alphabet, sparse;
} SplitClass;

typedef struct {
    uint64_t symbols, runs_start, runs_stop, packed_start, packed_stop; /* from the payload's start on */
} SplitCodes;

/* Buffers of the caller's: Split [n], SplitClass [m], SplitCodes [m] and a byte [n] that says what is right. */
typedef struct {
    Py_buffer rows, classes, codes, good;
} Splits;

/* A converter for PyArg_ParseTuple. */
int get_splits(PyObject *object, void *address);
void release_splits(Splits *splits);

/* Whether the buffers agree, and all payloads lie in the memory. Call before split_item. */
bool splits_fit(const Splits *splits, size_t count, uint64_t memory_size);

/* Find and check the symbols of one payload. Needs no lock, and several threads may do different ones. */
void split_item(const Splits *splits, size_t item, const uint8_t *memory);

/* How often each byte occurs. */
void count_all(const uint8_t *data, size_t size, uint64_t *counts);

#endif

/* What an encoder computes: see ddct_format/backends/encoder.py for what each function means. Unlike decoders, encoders
 * need not agree bit for bit, so products and sums may be fused here. */
#ifndef DDCT_ENCODE_KERNELS_H
#define DDCT_ENCODE_KERNELS_H

#include "run_vectors.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MOST_MAGNITUDES = 128, ENCODE_MAX_PATCH = 32 };

typedef enum { ELEMENT_BF16, ELEMENT_F16, ELEMENT_F32 } element_type;

/* Rows of a fine-tune and of its base. */
typedef struct {
    const uint8_t *base, *target;
    element_type base_type, target_type;
    size_t rows, cols;
    const int64_t *row_order; /* where in base and target each row lies; NULL for one after the other */
} encode_band;

typedef struct {
    double energy, magnitude;
    float largest;
    bool finite;
} encode_sums;

typedef struct {
    uint32_t patch;
    const float *analysis; /* patch x patch; NULL for no transform */
    bool mirrored;         /* the rows of the analysis matrix are symmetric and antisymmetric in turn */
    float scale, unit, rounding;
    uint32_t rank;
    const float *left, *right; /* rows x rank, rank x cols */
    const int64_t *col_order;  /* NULL for the identity */
    const int64_t *bin_edges;  /* smallest activity of each bin from 1 on */
    uint32_t bins;
} quantise_plan;

typedef struct {
    float *projected, *returned; /* rows x stride, cols x stride */
    double *row_squares, *col_squares;
} power_result;

typedef struct {
    uint8_t *symbols;
    int32_t *activity;
    int64_t *counts; /* bins x MOST_MAGNITUDES */
    double *sums;    /* MOST_MAGNITUDES */
    double energy;
} quantise_result;

typedef struct {
    uint8_t *symbols;
    uint16_t *minima, *steps;
    double magnitude, energy, aligned;
} affine_result;

/* A prediction and the tensor to restore, of the same type. */
typedef struct {
    const uint8_t *before, *target, *row_keys, *col_keys; /* keys are NULL where there are none */
    size_t rows, cols;
    uint32_t bits, fraction, largest_exponent, shift, width, mantissa;
} ulp_pair;

enum { ULP_PIECE = 1024, ULP_KEYS_PER_OCTAVE = 4 };

typedef struct {
    uint32_t extra[ULP_PIECE];
    uint16_t context[ULP_PIECE];
    uint8_t symbol[ULP_PIECE], extra_bits[ULP_PIECE];
} ulp_piece;

typedef struct encode_table {
    void (*difference)(const encode_band *band, float scale, float *out, double *row_squares, double *col_squares);
    encode_sums (*sums)(const encode_band *band);
    /* `vectors`: cols x stride, stride a multiple of 16. `work`: group * (cols + 16 + stride) floats, for so many rows at a
     * time, a multiple of 8. */
    void (*power)(const encode_band *band, float scale, size_t stride, const float *vectors, size_t group, float *work,
                  power_result *result);
    /* `work`: floats for a row of patches, patch * (cols rounded up to whole patches and to a multiple of 16); for
     * quantise, rank + 2 such rows more. At the start of a cache line. */
    void (*quantise)(const encode_band *band, const quantise_plan *plan, float *work, quantise_result *result);
    void (*patch_energies)(const encode_band *band, uint32_t patch, float *work, double *energies);
    void (*affine)(const encode_band *band, const quantise_plan *plan, const float *basis, const uint8_t *alphabets,
                   float *work, affine_result *result);
    /* Base-`alphabet` digits of symbols, or of those of the patches of class `number`; bytes written. */
    size_t (*pack_flat)(const uint8_t *symbols, size_t count, uint32_t alphabet, uint32_t per_byte, uint8_t *out);
    size_t (*pack_dense)(const uint8_t *symbols, size_t values, const uint8_t *class_map, size_t patches, int number,
                         uint32_t alphabet, uint32_t per_byte, uint8_t *out);
    /* What section 7.3 says of `count` elements of 16 bits from element `first` on, at most ULP_PIECE, of one row. */
    void (*ulp_elements_16)(const ulp_pair *pair, size_t first, size_t count, int32_t row_key, const uint8_t *col_keys,
                            ulp_piece *piece);
    /* Run bytes, whose number it returns, and the symbols other than 0, each less one. Both have RUN_SLACK more room. */
    size_t (*pack_runs)(const uint8_t *symbols, size_t values, const uint8_t *class_map, size_t patches, int number,
                        uint8_t *runs, uint8_t *others);
} encode_table;

#endif

/* dctq.v1 from packed symbols to result bytes, tile by tile; included by kernels_body.h once per instruction set. */

#include <math.h>

/* The next p² levels of a class with symbols; false if all are 0. */
INLINE bool unpack_sparse(dctq_class *class, size_t count, int8_t *levels) {
    memset(levels, 0, count);
    if (class->gap >= count) {
        class->gap -= class->gap == UINT64_MAX ? 0 : count;
        return false;
    }
    /* In registers: what is stored through `levels` may be anything, to the compiler. */
    const uint8_t *runs = class->runs, *packed = class->packed;
    const uint8_t *const runs_end = class->runs_end, *const packed_end = class->packed_end;
    uint64_t place = class->gap, window = class->window;
    uint32_t digits = class->digits;
    while (place < count) {
        if (digits == 0) {
            if (packed < packed_end) {
                window = class->table[*packed++];
                digits = class->per_byte;
            } else if (class->per_byte == 0) {
                window = (uint8_t)class->levels[1];
                digits = 1;
            } else { /* checked before; not even a payload that changes under our eyes leads beyond its end */
                window = 0;
                digits = UINT32_MAX;
            }
        }
        levels[place++] = (int8_t)(uint8_t)window;
        window >>= 8;
        digits--;
        uint8_t run = 255;
        while (run == 255 && runs < runs_end)
            place += run = *runs++;
        if (run == 255) {
            place = UINT64_MAX;
            break;
        }
    }
    class->runs = runs;
    class->packed = packed;
    class->window = window;
    class->digits = digits;
    class->gap = place == UINT64_MAX ? place : place - count;
    return true;
}

INLINE bool unpack_levels(dctq_class *class, size_t count, int8_t *levels) {
    if (class->symbols < count)
        return false;
    class->symbols -= count;
    if (class->sparse)
        return unpack_sparse(class, count, levels);
    ddct_unpack_dense(class->packed, class->next, count, class->per_byte, class->table, levels);
    class->next += count;
    return true;
}

INLINE void clear_patch(const dctq_layer *d, float *delta) {
    for (uint32_t i = 0; i < d->patch; i++)
        memset(delta + i * d->delta_stride, 0, d->patch * sizeof *delta);
}

INLINE float next_half(const dctq_layer *d, uint32_t plane) {
    const uint8_t *low = d->ranges + plane * d->all_coded + d->coded;
    return ddct_f16_to_f32((uint16_t)(low[0] | low[d->all_coded] << 8));
}

/* Steps 1 and 2: the deltas of the next patch, its first `height` rows at least. */
INLINE void decode_patch(dctq_layer *d, uint64_t patch, uint32_t height, float *delta) {
    dctq_scratch *s = d->scratch;
    uint32_t number = d->class_map == NULL ? 0 : d->class_map[patch], p = d->patch;
    dctq_class *class = &d->classes[number];
    if (number >= d->class_count || class->alphabet == 1) {
        clear_patch(d, delta);
        return;
    }
    dequantiser how = {d->affine, class->scale, 0, 0, d->gain, s->ones};
    if (d->affine && d->coded < d->all_coded) {
        how.minimum = next_half(d, 0);
        how.step = next_half(d, 2);
        d->coded++;
    }
    bool some = unpack_levels(class, (size_t)p * p, s->levels);
    if (!some && !d->affine) {
        clear_patch(d, delta);
        return;
    }
    if (!some)
        memset(s->levels, class->levels[0], (size_t)p * p);
    if (d->transform == DDCT_TRANSFORM_DCT && fits_half(p, s->levels, class->largest)) {
        if (p == 16)
            small_dct(16, s->levels, s->half, s->pairs, height, &how, delta, d->delta_stride);
        else if (p == 8)
            small_dct(8, s->levels, s->half, s->pairs, height, &how, delta, d->delta_stride);
        else
            small_dct(32, s->levels, s->half, s->pairs, height, &how, delta, d->delta_stride);
        return;
    }
    ddct_inverse_transform(d->transform, p, s->levels, s->values);
    if (d->affine)
        ddct_dequantise_affine(s->values, s->ones, p, how.step, how.minimum, how.gain, delta, d->delta_stride);
    else
        ddct_dequantise_levels(s->values, p, how.scale, delta, d->delta_stride);
}

static void finish(const dctq_target *to, uint64_t element, const float *delta, size_t count) {
    if (to->base == NULL)
        memcpy(to->out + element * sizeof *delta, delta, count * sizeof *delta);
    else
        ddct_apply(to->base_dtype, to->base + element * to->base_width, delta, to->dtype,
                   to->out + element * to->width, count);
}

/* Step 5 for columns [column, column + count) of the patches, where columns have no keys. */
static void finish_tile(const dctq_layer *d, const dctq_target *to, uint32_t height, uint64_t column, size_t count) {
    for (uint32_t i = 0; i < height; i++) {
        uint64_t row = d->next_row * d->patch + i;
        row = d->row_order == NULL ? row : d->row_order[row];
        finish(to, row * d->cols + column, d->delta + i * d->delta_stride, count);
    }
}

static void gather(const float *from, const uint32_t *place, size_t count, float *out) {
    size_t c = 0;
#if defined(USE_AVX512) /* places are below 2^31: more columns than that have no place in memory */
    for (; c + 16 <= count; c += 16)
        _mm512_storeu_ps(out + c, _mm512_i32gather_ps(_mm512_loadu_si512(place + c), from, 4));
#elif defined(USE_AVX2)
    for (; c + 8 <= count; c += 8)
        _mm256_storeu_ps(out + c, _mm256_i32gather_ps(from, _mm256_loadu_si256((const __m256i *)(place + c)), 4));
#endif
    for (; c < count; c++)
        out[c] = from[place[c]];
}

/* Steps 3 and 5 for whole rows, where columns have keys. */
static void finish_rows(const dctq_layer *d, const dctq_target *to, uint32_t height) {
    float *gathered = d->scratch->row;
    for (uint32_t i = 0; i < height; i++) {
        const float *delta = d->delta + i * d->delta_stride;
        uint64_t row = d->next_row * d->patch + i;
        row = d->row_order == NULL ? row : d->row_order[row];
        for (uint64_t column = 0; column < d->cols; column += TILE) {
            size_t count = d->cols - column < TILE ? (size_t)(d->cols - column) : TILE;
            const uint32_t *place = d->column_place + column;
            gather(delta, place, count, gathered);
            finish(to, row * d->cols + column, gathered, count);
        }
    }
}

/* Rows of a row of patches against what is wanted. */
static void compare_rows(dctq_layer *d, const dctq_target *to, uint32_t height) {
    const element_type type = to->dtype == DDCT_BF16 ? ELEMENT_BF16 : to->dtype == DDCT_F16 ? ELEMENT_F16 : ELEMENT_F32;
    for (uint32_t i = 0; i < height; i++) {
        uint64_t row = d->next_row * d->patch + i;
        row = d->row_order == NULL ? row : d->row_order[row];
        const size_t place = row * d->cols * to->width;
        const encode_band band = {
            .base = to->out + place, .target = to->wanted + place, .base_type = type, .target_type = type, .rows = 1, .cols = d->cols};
        const encode_sums sums = kernels()->encode->sums(&band);
        d->error += sums.finite ? sums.energy : INFINITY;
    }
}

static void prepare_low_rank_rows(const dctq_layer *d, uint64_t first, uint32_t height) {
#if defined(USE_AVX512) && HAVE_AMX
    if (d->right_tiles != NULL) {
        prepare_factor_bytes(d, first, height);
        return;
    }
#endif
    prepare_factors(d, first, height);
}

static void add_low_rank_columns(const dctq_layer *d, uint64_t column, size_t count, float *delta) {
#if defined(USE_AVX512) && HAVE_AMX
    if (d->right_tiles != NULL) {
        add_low_rank_tiles(d, column, count, delta);
        return;
    }
#endif
    add_low_rank(d, column, count, delta);
}

/* Decode until about `budget` elements are finished; true when all are. */
static bool decode_some(dctq_layer *d, const dctq_target *to, uint64_t budget) {
    const uint64_t patches = TILE / d->patch;
    for (uint64_t done = 0; d->next_row < d->down; d->next_row++, d->next_column = 0) {
        uint64_t first = d->next_row * d->patch;
        uint32_t height = d->rows - first < d->patch ? (uint32_t)(d->rows - first) : d->patch;
        if (d->rank > 0 && d->next_column == 0)
            prepare_low_rank_rows(d, first, height);
        while (d->next_column < d->across) {
            /* A row of patches is finished as a whole, unless it is a single row of elements. */
            if (done >= budget && (d->next_column == 0 || (d->rows == 1 && d->column_place == NULL)))
                return false;
            uint64_t end = d->across - d->next_column < patches ? d->across : d->next_column + patches;
            uint64_t column = d->next_column * d->patch;
            size_t count = (size_t)((end * d->patch < d->cols ? end * d->patch : d->cols) - column);
            float *delta = d->delta + (d->column_place == NULL ? 0 : column);
            for (; d->next_column < end; d->next_column++, delta += d->patch)
                decode_patch(d, d->next_row * d->across + d->next_column, height, delta);
            delta = d->delta + (d->column_place == NULL ? 0 : column);
            if (d->rank > 0)
                add_low_rank_columns(d, column, count, delta);
            if (d->column_place == NULL)
                finish_tile(d, to, height, column, count);
            done += (uint64_t)height * count;
        }
        if (d->column_place != NULL)
            finish_rows(d, to, height);
        if (to->wanted != NULL)
            compare_rows(d, to, height);
    }
    return true;
}

/* What the transform multiplies by, taken from the transform itself. */
static void prepare_patches(dctq_layer *d) {
    dctq_scratch *s = d->scratch;
    const uint32_t p = d->patch;
    ddct_transform_of_ones(d->transform, p, s->ones);
    if (d->transform != DDCT_TRANSFORM_DCT)
        return;
    /* B[j][m]: the transform of a 1 at (j, 0) is B[j][n] * 64. Pairs: rows 4q and 4q + 2, then rows 4q + 1 and 4q + 3. */
    memset(s->levels, 0, sizeof s->levels);
    memset(s->pairs, 0, sizeof s->pairs);
    for (uint32_t j = 0; j < p; j++) {
        s->levels[j * p] = 1;
        ddct_inverse_transform(d->transform, p, s->levels, s->values);
        s->levels[j * p] = 0;
        uint32_t *pairs = s->pairs + (j % 2 * (p / 4) + j / 4) * (p / 2);
        for (uint32_t m = 0; m < p / 2; m++)
            pairs[m] |= (uint32_t)(uint16_t)(s->values[m * p] / 64) << (j / 2 % 2 * 16);
    }
}

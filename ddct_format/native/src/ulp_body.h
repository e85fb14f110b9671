/* The loops of ulp.v1 (section 7.3); included by kernels_body.h once per instruction set. */

typedef struct ulp_tile {
    uint8_t patterns[4 * ULP_TILE]; /* of the target's width */
    uint32_t magnitudes[ULP_TILE];
    float zeros[ULP_TILE];
    uint16_t contexts[ULP_TILE];
    uint16_t long_ones[ULP_TILE + GROUP_SLACK]; /* elements whose symbols have extra bits */
    uint8_t groups[ULP_TILE], symbols[ULP_TILE];
    uint16_t magnitudes_16[ULP_TILE];
} ulp_tile;

/* Patterns of elements [first, first + count) of the prediction. */
static void load_prediction(const ulp_grouping *g, uint64_t first, size_t count, ulp_tile *tile) {
    const uint8_t *from = g->before + first * g->before_width;
    if (g->before_type == g->type) {
        memcpy(tile->patterns, from, count * g->width);
        return;
    }
    memset(tile->zeros, 0, count * sizeof *tile->zeros);
    ddct_apply(g->before_type, from, tile->zeros, g->type, tile->patterns, count);
}

/* Section 7.3.1, steps 2 and 3, without the row's key. */
#define DEFINE_LOAD_CONTEXTS(NAME, TYPE)                                                                            \
    static void NAME(const ddct_ulp_code *code, const uint8_t *column_keys, size_t count, ulp_tile *tile) {         \
        const uint32_t fraction = code->fraction;                                                                   \
        const TYPE largest = (TYPE)code->exponent_mask;                                                             \
        for (size_t i = 0; i < count; i++) {                                                                        \
            TYPE exponent;                                                                                          \
            memcpy(&exponent, tile->patterns + i * sizeof exponent, sizeof exponent);                               \
            exponent = (TYPE)(exponent >> fraction) & largest;                                                      \
            tile->contexts[i] = (uint16_t)((uint16_t)(largest - (exponent > 1 ? exponent : 1)) << 2);               \
        }                                                                                                           \
        for (size_t i = 0; column_keys != NULL && i < count; i++)                                                   \
            tile->contexts[i] = (uint16_t)(tile->contexts[i] + column_keys[i]);                                     \
    }
DEFINE_LOAD_CONTEXTS(load_contexts2, uint16_t)
DEFINE_LOAD_CONTEXTS(load_contexts4, uint32_t)

INLINE uint32_t row_key(const ulp_grouping *g, uint64_t row) { return g->row_keys == NULL ? 0 : g->row_keys[row]; }

/* The next tile of a row, at most: its patterns and contexts. Sets the group of each of these contexts. */
static size_t load_tile(const ulp_grouping *g, uint64_t row, uint64_t column, ulp_tile *tile, const uint8_t **group_of) {
    size_t count = g->cols - column < ULP_TILE ? (size_t)(g->cols - column) : ULP_TILE;
    load_prediction(g, row * g->cols + column, count, tile);
    const uint8_t *column_keys = g->column_keys == NULL ? NULL : g->column_keys + column;
    (g->width == 2 ? load_contexts2 : load_contexts4)(&g->code, column_keys, count, tile);
    *group_of = g->group_of + row_key(g, row);
    return count;
}

/* The groups of the next tile of a row, by vectors; how many elements it has. Patterns of 16 bits stay where they are. */
static size_t find_tile(const ulp_grouping *g, uint64_t row, uint64_t column, ulp_tile *tile) {
    if (!g->in_place) {
        const uint8_t *ignored;
        const size_t count = load_tile(g, row, column, tile, &ignored);
        g->vectors->find(&g->narrow, tile->contexts, row_key(g, row), count, tile->groups);
        return count;
    }
    const size_t count = g->cols - column < ULP_TILE ? (size_t)(g->cols - column) : ULP_TILE;
    g->vectors->find_16(&g->narrow, &g->code, g->before + 2 * (row * g->cols + column), row_key(g, row),
                        g->column_keys == NULL ? NULL : g->column_keys + column, count, tile->groups);
    return count;
}

static void ulp_count_groups(const ulp_grouping *g, uint64_t counts[256]) {
    uint64_t parts[4][256] = {{0}}; /* neighbours are often of the same group: four counters do not wait for one another */
    ulp_tile tile;
    for (uint64_t row = 0; row < g->rows; row++)
        for (uint64_t column = 0; column < g->cols;) {
            if (g->vectors != NULL) {
                const size_t count = find_tile(g, row, column, &tile);
                g->vectors->count(&g->narrow, tile.groups, count, parts[0]);
                column += count;
                continue;
            }
            const uint8_t *group_of;
            size_t count = load_tile(g, row, column, &tile, &group_of), i = 0;
            column += count;
            for (; i + 4 <= count; i += 4)
                for (size_t part = 0; part < 4; part++)
                    parts[part][group_of[tile.contexts[i + part]]]++;
            for (; i < count; i++)
                parts[0][group_of[tile.contexts[i]]]++;
        }
    for (int group = 0; group < 256; group++)
        counts[group] = parts[0][group] + parts[1][group] + parts[2][group] + parts[3][group];
}

/* More symbols of a sparse group, to the end of its window, which holds some already. */
static void expand_runs(ulp_cursor *cursor, uint8_t *window, size_t at) {
    const uint8_t *runs = cursor->runs, *runs_end = cursor->runs_end, *values = cursor->values, *values_end = cursor->values_end;
    size_t zeros = cursor->zeros;
    bool value_waits = cursor->value_waits;
    memset(window + at, 0, ULP_WINDOW - at);
    for (;;) {
        if (zeros >= ULP_WINDOW - at) {
            zeros -= ULP_WINDOW - at;
            break;
        }
        at += zeros;
        zeros = 0;
        if (value_waits && values < values_end)
            window[at] = (uint8_t)(*values++ + 1);
        at += value_waits;
        value_waits = false;
        if (runs == runs_end) /* only zeros are left */
            break;
        zeros = *runs++;
        value_waits = zeros < 255;
    }
    cursor->runs = runs;
    cursor->values = values;
    cursor->zeros = (uint32_t)zeros;
    cursor->value_waits = value_waits;
}

/* Lets ULP_READ symbols of each group be read from where it stands, zeros where there are no more. */
static void refill(ulp_layer *d) {
    for (uint32_t group = 0; group < d->groups; group++) {
        ulp_cursor *cursor = &d->cursors[group];
        const uint8_t *next = d->next[group];
        if (next <= cursor->last)
            continue;
        uint8_t *window = d->windows + (size_t)group * ULP_WINDOW;
        size_t left = next < cursor->end ? (size_t)(cursor->end - next) : 0;
        memmove(window, next, left);
        d->next[group] = window;
        if (cursor->sparse) {
            expand_runs(cursor, window, left);
            cursor->end = window + ULP_WINDOW;
            cursor->last = cursor->end - ULP_READ;
        } else {
            memset(window + left, 0, ULP_READ);
            cursor->end = cursor->last = window + left;
        }
    }
}

INLINE uint64_t read_extra_bits(const ulp_layer *d, ulp_cursor *cursor, uint32_t count) {
    uint64_t byte = cursor->bit >> 3, window = 0;
    if (byte + 8 <= d->extra_size)
        memcpy(&window, d->extra + byte, 8);
    else if (byte < d->extra_size)
        memcpy(&window, d->extra + byte, (size_t)(d->extra_size - byte));
    window = window >> (cursor->bit & 7) & (((uint64_t)1 << count) - 1);
    cursor->bit += count;
    return window;
}

/* Steps 2 and 3 of section 7.3.3, and the way into `out`; false if a target lies out of range. */
#define DEFINE_STORE_TARGETS(NAME, TYPE, WIDE_TYPE)                                                                 \
    static bool NAME(const ddct_ulp_code *code, const ulp_tile *tile, size_t count, uint8_t *out) {                 \
        const WIDE_TYPE half = (WIDE_TYPE)1 << (code->width - 1);                                                   \
        const uint32_t shift = code->shift;                                                                         \
        WIDE_TYPE outside = 0;                                                                                      \
        for (size_t i = 0; i < count; i++) {                                                                        \
            TYPE pattern;                                                                                           \
            memcpy(&pattern, tile->patterns + i * sizeof pattern, sizeof pattern);                                  \
            WIDE_TYPE place = (WIDE_TYPE)(pattern >> shift);                                                        \
            WIDE_TYPE magnitude = (WIDE_TYPE)tile->magnitudes[i];                                                   \
            bool negative = place >= half;                                                                          \
            place = negative ? half - 1 - place : place;                                                            \
            WIDE_TYPE target = place + (negative != (tile->symbols[i] & 1) ? -magnitude : magnitude);               \
            outside |= (WIDE_TYPE)(target < -half) | (WIDE_TYPE)(target >= half);                                   \
            pattern = (TYPE)((TYPE)(target >= 0 ? target : half - 1 - target) << shift);                       \
            memcpy(out + i * sizeof pattern, &pattern, sizeof pattern);                                             \
        }                                                                                                           \
        return outside == 0;                                                                                        \
    }
DEFINE_STORE_TARGETS(store_targets2, uint16_t, int32_t)
DEFINE_STORE_TARGETS(store_targets4, uint32_t, int64_t)

/* The group of each element, and its next symbol; how many of them have extra bits. */
static size_t take_symbols(const uint8_t **restrict next, const uint8_t *restrict group_of, uint32_t first_long,
                           size_t count, ulp_tile *restrict tile) {
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        uint8_t group = group_of[tile->contexts[i]];
        tile->groups[i] = group;
        uint32_t symbol = *next[group]++;
        tile->symbols[i] = (uint8_t)symbol;
        tile->long_ones[found] = (uint16_t)i;
        found += symbol >= first_long;
    }
    return found;
}

/* What a symbol with extra bits stands for: takes them. */
INLINE uint32_t long_magnitude(ulp_layer *d, uint32_t group, uint32_t symbol) {
    const ddct_ulp_code *code = &d->grouping.code;
    return code->first[symbol] + (uint32_t)read_extra_bits(d, &d->cursors[group], code->extra_bits[symbol]);
}

/* The next tile; false if a target lies out of range. Moves the layer on. */
static bool decode_ulp_tile(ulp_layer *d, uint8_t *out) {
    const ulp_grouping *g = &d->grouping;
    const ddct_ulp_code *code = &g->code;
    const uint8_t *group_of;
    ulp_tile tile;
    const size_t count = g->vectors != NULL ? find_tile(g, d->row, d->column, &tile)
                                            : load_tile(g, d->row, d->column, &tile, &group_of);
    if (count > d->readable) {
        refill(d);
        d->readable = ULP_TILE;
    }
    d->readable -= count;
    const size_t long_ones = g->vectors != NULL ? g->vectors->take(&g->narrow, tile.groups, count, d->first_long, d->next,
                                                                   tile.symbols, tile.long_ones)
                                                : take_symbols(d->next, group_of, d->first_long, count, &tile);
    const uint8_t *patterns = g->before + (d->row * g->cols + d->column) * g->width;
    out += (d->row * g->cols + d->column) * g->width;
    d->column += count;
    if (d->column == g->cols) {
        d->column = 0;
        d->row++;
    }
    if (g->in_place) {
        for (size_t i = 0; i < count; i++)
            tile.magnitudes_16[i] = (uint16_t)((tile.symbols[i] + 1u) >> 1);
        for (size_t n = 0; n < long_ones; n++) {
            const size_t i = tile.long_ones[n];
            tile.magnitudes_16[i] = (uint16_t)long_magnitude(d, tile.groups[i], tile.symbols[i]);
        }
        return g->vectors->store_16(code, patterns, tile.magnitudes_16, tile.symbols, count, out);
    }
    for (size_t i = 0; i < count; i++)
        tile.magnitudes[i] = (tile.symbols[i] + 1u) >> 1;
    for (size_t n = 0; n < long_ones; n++) {
        const size_t i = tile.long_ones[n];
        tile.magnitudes[i] = long_magnitude(d, tile.groups[i], tile.symbols[i]);
    }
    return g->width == 2 ? store_targets2(code, &tile, count, out) : store_targets4(code, &tile, count, out);
}

static bool ulp_decode_some(ulp_layer *d, uint8_t *out, uint64_t budget) {
    const uint64_t begin = d->row * d->grouping.cols + d->column;
    while (d->row < d->grouping.rows && d->row * d->grouping.cols + d->column - begin < budget)
        if (!decode_ulp_tile(d, out))
            return false;
    return true;
}

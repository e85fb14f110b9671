/* The loops of ulp.v1 (section 7.3); included by kernels_body.h once per instruction set. */

typedef struct ulp_tile {
    uint32_t patterns[ULP_TILE];
    int64_t residuals[ULP_TILE];
    float zeros[ULP_TILE];
    uint8_t converted[4 * ULP_TILE];
    uint8_t groups[ULP_TILE];
} ulp_tile;

/* Patterns of elements [first, first + count) of the prediction. */
static void load_prediction(const ulp_grouping *g, uint64_t first, size_t count, ulp_tile *tile) {
    const uint8_t *from = g->before + first * g->before_width;
    if (g->before_type != g->type) {
        memset(tile->zeros, 0, count * sizeof *tile->zeros);
        ddct_apply(g->before_type, from, tile->zeros, g->type, tile->converted, count);
        from = tile->converted;
    }
    if (g->width == 4) {
        memcpy(tile->patterns, from, 4 * count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t pattern;
        memcpy(&pattern, from + 2 * i, sizeof pattern);
        tile->patterns[i] = pattern;
    }
}

/* The next tile of a row, at most: its patterns and groups. */
static size_t load_tile(const ulp_grouping *g, uint64_t row, uint64_t column, ulp_tile *tile) {
    size_t count = g->cols - column < ULP_TILE ? (size_t)(g->cols - column) : ULP_TILE;
    load_prediction(g, row * g->cols + column, count, tile);
    ddct_ulp_groups(&g->code, tile->patterns, count, g->row_keys == NULL ? 0 : g->row_keys[row],
                    g->column_keys == NULL ? NULL : g->column_keys + column, g->group_of, tile->groups);
    return count;
}

static void ulp_count_groups(const ulp_grouping *g, uint64_t counts[256]) {
    uint64_t parts[4][256] = {{0}}; /* neighbours are often of the same group: four counters do not wait for one another */
    ulp_tile tile;
    for (uint64_t row = 0; row < g->rows; row++)
        for (uint64_t column = 0; column < g->cols;) {
            size_t count = load_tile(g, row, column, &tile), i = 0;
            for (; i + 4 <= count; i += 4)
                for (size_t part = 0; part < 4; part++)
                    parts[part][tile.groups[i + part]]++;
            for (; i < count; i++)
                parts[0][tile.groups[i]]++;
            column += count;
        }
    for (int group = 0; group < 256; group++)
        counts[group] = parts[0][group] + parts[1][group] + parts[2][group] + parts[3][group];
}

INLINE uint32_t next_sparse_symbol(ulp_cursor *cursor) {
    for (;;) {
        if (cursor->zeros > 0) {
            cursor->zeros--;
            return 0;
        }
        if (cursor->value_waits) {
            cursor->value_waits = false;
            return cursor->symbols < cursor->symbols_end ? *cursor->symbols++ + 1u : 0;
        }
        if (cursor->runs == cursor->runs_end)
            return 0;
        cursor->zeros = *cursor->runs++;
        cursor->value_waits = cursor->zeros < 255;
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
        WIDE_TYPE outside = 0;                                                                                      \
        for (size_t i = 0; i < count; i++) {                                                                        \
            WIDE_TYPE place = (WIDE_TYPE)(tile->patterns[i] >> code->shift);                                        \
            WIDE_TYPE residual = (WIDE_TYPE)tile->residuals[i];                                                     \
            bool negative = place >= half;                                                                          \
            place = negative ? half - 1 - place : place;                                                            \
            WIDE_TYPE target = place + (negative ? -residual : residual);                                           \
            outside |= (WIDE_TYPE)(target < -half) | (WIDE_TYPE)(target >= half);                                   \
            TYPE pattern = (TYPE)((TYPE)(target >= 0 ? target : half - 1 - target) << code->shift);                 \
            memcpy(out + i * sizeof pattern, &pattern, sizeof pattern);                                             \
        }                                                                                                           \
        return outside == 0;                                                                                        \
    }
DEFINE_STORE_TARGETS(store_targets2, uint16_t, int32_t)
DEFINE_STORE_TARGETS(store_targets4, uint32_t, int64_t)

/* The next tile; false if a target lies out of range. Moves the layer on. */
static bool decode_ulp_tile(ulp_layer *d, uint8_t *out) {
    const ulp_grouping *g = &d->grouping;
    const ddct_ulp_code *code = &g->code;
    ulp_tile tile;
    const size_t count = load_tile(g, d->row, d->column, &tile);
    for (size_t i = 0; i < count; i++) {
        ulp_cursor *cursor = &d->cursors[tile.groups[i]];
        uint32_t symbol = 0;
        if (cursor->sparse)
            symbol = next_sparse_symbol(cursor);
        else if (cursor->symbols < cursor->symbols_end)
            symbol = *cursor->symbols++;
        uint32_t bits = code->extra_bits[symbol & 255];
        int64_t magnitude = code->first[symbol & 255];
        if (bits > 0)
            magnitude += (int64_t)read_extra_bits(d, cursor, bits);
        tile.residuals[i] = symbol & 1 ? -magnitude : magnitude;
    }
    out += (d->row * g->cols + d->column) * g->width;
    d->column += count;
    if (d->column == g->cols) {
        d->column = 0;
        d->row++;
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

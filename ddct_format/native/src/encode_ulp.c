/* Symbols, contexts and extra bits of ulp.v1 for an encoder (section 7.3): see ../interface.py. */
#include "arguments.h"
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

enum { CONTEXTS = 255 + 255 + 4 * 254 + 1, SYMBOLS = 256 };

typedef struct {
    uint32_t context, symbol, extra, extra_bits;
} ulp_element;

static inline __attribute__((always_inline)) ulp_element element_of(const ulp_pair *pair, uint32_t p, uint32_t q,
                                                                    uint32_t keys) {
    uint32_t exponent = p >> pair->fraction & pair->largest_exponent;
    int64_t half = (int64_t)1 << (pair->width - 1), low = p >> pair->shift, high = q >> pair->shift;
    bool negative = low >= half;
    int64_t from = negative ? -1 - (low - half) : low, to = high >= half ? -1 - (high - half) : high;
    int64_t residual = negative ? from - to : to - from;
    uint64_t magnitude = (uint64_t)(residual < 0 ? -residual : residual);
    uint32_t top = magnitude ? 63 - (uint32_t)__builtin_clzll(magnitude) : 0;
    uint32_t extra_bits = top > pair->mantissa ? top - pair->mantissa : 0;
    uint32_t code = (uint32_t)(magnitude >> extra_bits) + (extra_bits << pair->mantissa);
    return (ulp_element){
        .context = ULP_KEYS_PER_OCTAVE * (pair->largest_exponent - (exponent ? exponent : 1)) + keys,
        .symbol = 2 * code - (residual < 0),
        .extra = (uint32_t)(magnitude & (((uint64_t)1 << extra_bits) - 1)),
        .extra_bits = extra_bits,
    };
}

static uint32_t pattern_at(const uint8_t *data, size_t i) {
    uint32_t value;
    memcpy(&value, data + 4 * i, sizeof value);
    return value;
}

/* Fills a piece of a row from column `col` on; the number of elements. */
static size_t take_piece(const ulp_pair *pair, size_t row, size_t col, ulp_piece *piece) {
    size_t count = pair->cols - col < ULP_PIECE ? pair->cols - col : ULP_PIECE, first = row * pair->cols + col;
    uint32_t row_key = pair->row_keys != NULL ? pair->row_keys[row] : 0u;
    const uint8_t *col_keys = pair->col_keys != NULL ? pair->col_keys + col : NULL;
    if (pair->bits == 16) {
        kernels()->encode->ulp_elements_16(pair, first, count, (int32_t)row_key, col_keys, piece);
        return count;
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t keys = row_key + (col_keys != NULL ? col_keys[i] : 0u);
        ulp_element found = element_of(pair, pattern_at(pair->before, first + i), pattern_at(pair->target, first + i), keys);
        piece->context[i] = (uint16_t)found.context;
        piece->symbol[i] = (uint8_t)found.symbol;
        piece->extra_bits[i] = (uint8_t)found.extra_bits;
        piece->extra[i] = found.extra;
    }
    return count;
}

static void count_elements(const ulp_pair *pair, int64_t *counts) {
    ulp_piece piece;
    for (size_t row = 0; row < pair->rows; row++)
        for (size_t col = 0; col < pair->cols; col += ULP_PIECE) {
            size_t count = take_piece(pair, row, col, &piece);
            for (size_t i = 0; i < count; i++)
                counts[piece.context[i] * SYMBOLS + piece.symbol[i]]++;
        }
}

/* The first symbol with extra bits; more than there are if none has. */
static uint32_t first_long(const ulp_pair *pair) { return (4u << pair->mantissa) - 1; }

/* How many elements fall into each group, and their extra bits: see measure_ulp in ../../backends/encoder.py. */
static void measure_elements(const ulp_pair *pair, const uint8_t *group_of, uint64_t sizes[SYMBOLS], uint64_t bits[SYMBOLS]) {
    ulp_piece piece;
    narrow_groups narrow;
    const group_vectors *vectors = narrow_groups_of(group_of, CONTEXTS, &narrow) ? kernels()->group_vectors : NULL;
    uint8_t groups[ULP_PIECE];
    uint16_t long_ones[ULP_PIECE + GROUP_SLACK];
    for (size_t row = 0; row < pair->rows; row++)
        for (size_t col = 0; col < pair->cols; col += ULP_PIECE) {
            size_t count = take_piece(pair, row, col, &piece);
            size_t found = 0;
            if (vectors != NULL) {
                vectors->find(&narrow, piece.context, 0, count, groups);
                vectors->count(&narrow, groups, count, sizes);
                found = vectors->list_long(piece.symbol, count, first_long(pair), long_ones);
            } else {
                for (size_t i = 0; i < count; i++) {
                    groups[i] = group_of[piece.context[i]];
                    sizes[groups[i]]++;
                    long_ones[found] = (uint16_t)i;
                    found += piece.extra_bits[i] > 0;
                }
            }
            for (size_t n = 0; n < found; n++)
                bits[groups[long_ones[n]]] += piece.extra_bits[long_ones[n]];
        }
}

enum { WAITING = 64, WORD = 4 };

/* What is on its way out. Groups lie in as many pages, which a processor does not find at once: so it goes there with a
 * cache line full of symbols, or a word of extra bits, and not with each. */
typedef struct {
    uint8_t (*waiting)[WAITING_SYMBOLS];
    uint32_t counts[SYMBOLS];     /* of symbols that wait */
    const group_vectors *vectors; /* NULL where elements are put one by one */
    narrow_groups narrow;
    uint32_t bit_counts[SYMBOLS]; /* of `bits`, from the start of a byte on: those before the group's own are 0 */
    uint64_t bits[SYMBOLS];
    uint8_t *symbols, *extra;
    uint64_t size, extra_size;
    uint64_t *places, *positions; /* where the next symbol goes; of the byte where the next bits go, times 8 */
} ulp_groups;

static void begin_groups(ulp_groups *groups) {
    for (uint32_t group = 0; group < SYMBOLS; group++) {
        groups->bit_counts[group] = groups->positions[group] & 7;
        groups->positions[group] &= ~(uint64_t)7;
    }
}

/* False if the group holds more than was counted. */
static bool put_symbols(ulp_groups *groups, uint32_t group, size_t count) {
    uint64_t place = groups->places[group];
    if (place > groups->size || count > groups->size - place)
        return false;
    memcpy(groups->symbols + place, groups->waiting[group], count);
    groups->places[group] = place + count;
    groups->counts[group] = 0;
    return true;
}

/* The same for extra bits: so many bytes of them. */
static bool put_bits(ulp_groups *groups, uint32_t group, uint32_t bytes) {
    uint64_t at = groups->positions[group] >> 3;
    if (at > groups->extra_size || bytes > groups->extra_size - at)
        return false;
    for (uint32_t i = 0; i < bytes; i++)
        groups->extra[at + i] |= (uint8_t)(groups->bits[group] >> 8 * i);
    groups->positions[group] += 8 * bytes;
    groups->bits[group] >>= 8 * bytes;
    groups->bit_counts[group] -= 8 * bytes;
    return true;
}

static bool end_groups(ulp_groups *groups) {
    for (uint32_t group = 0; group < SYMBOLS; group++) {
        uint32_t bits = groups->bit_counts[group];
        if (!put_symbols(groups, group, groups->counts[group]) || !put_bits(groups, group, (bits + 7) / 8))
            return false;
        groups->positions[group] += bits - 8 * (uint64_t)((bits + 7) / 8);
    }
    return true;
}

static bool scatter_piece(const ulp_piece *piece, size_t count, const uint8_t *group_of, uint32_t first_long,
                          ulp_groups *groups) {
    uint16_t long_ones[ULP_PIECE + GROUP_SLACK]; /* elements with extra bits: found without a branch for each */
    size_t found = 0;
    if (groups->vectors != NULL) {
        uint8_t of[ULP_PIECE], present[SYMBOLS];
        groups->vectors->find(&groups->narrow, piece->context, 0, count, of);
        size_t groups_found =
            groups->vectors->put(&groups->narrow, of, piece->symbol, count, groups->waiting, groups->counts, present);
        for (size_t n = 0; n < groups_found; n++)
            if (groups->counts[present[n]] >= WAITING && !put_symbols(groups, present[n], groups->counts[present[n]]))
                return false;
        found = groups->vectors->list_long(piece->symbol, count, first_long, long_ones);
        count = 0;
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t group = group_of[piece->context[i]], waiting = groups->counts[group];
        groups->waiting[group][waiting] = piece->symbol[i];
        groups->counts[group] = waiting + 1;
        if (waiting == WAITING - 1 && !put_symbols(groups, group, WAITING))
            return false;
        long_ones[found] = (uint16_t)i;
        found += piece->extra_bits[i] > 0;
    }
    for (size_t n = 0; n < found; n++) {
        size_t i = long_ones[n];
        uint32_t group = group_of[piece->context[i]];
        groups->bits[group] |= (uint64_t)piece->extra[i] << groups->bit_counts[group];
        groups->bit_counts[group] += piece->extra_bits[i];
        if (groups->bit_counts[group] >= 8 * WORD && !put_bits(groups, group, WORD))
            return false;
    }
    return true;
}

/* False if a group holds more than was counted. */
static bool scatter_elements(const ulp_pair *pair, const uint8_t *group_of, ulp_groups *groups) {
    ulp_piece piece;
    begin_groups(groups);
    for (size_t row = 0; row < pair->rows; row++)
        for (size_t col = 0; col < pair->cols; col += ULP_PIECE) {
            size_t count = take_piece(pair, row, col, &piece);
            if (!scatter_piece(&piece, count, group_of, first_long(pair), groups))
                return false;
        }
    return end_groups(groups);
}

/* Describes the elements; false with an exception set if the buffers do not belong together. */
static bool get_pair(const Py_buffer *before, const Py_buffer *target, int type, unsigned shift,
                     unsigned long long cols, const Py_buffer *row_keys, const Py_buffer *col_keys, ulp_pair *pair) {
    static const uint32_t bits[] = {16, 16, 32}, fractions[] = {7, 10, 23}, exponents[] = {255, 31, 255};
    if (type < 0 || type > 2 || before->len != target->len || cols == 0 || shift > bits[type] - 8 ||
        (uint64_t)target->len % (cols * bits[type] / 8)) {
        PyErr_SetString(PyExc_ValueError, "prediction and target are not whole rows of one type");
        return false;
    }
    *pair = (ulp_pair){
        .before = before->buf,
        .target = target->buf,
        .row_keys = row_keys->len ? row_keys->buf : NULL,
        .col_keys = col_keys->len ? col_keys->buf : NULL,
        .rows = (size_t)((uint64_t)target->len / (cols * bits[type] / 8)),
        .cols = (size_t)cols,
        .bits = bits[type],
        .fraction = fractions[type],
        .largest_exponent = exponents[type],
        .shift = shift,
        .width = bits[type] - shift,
        .mantissa = bits[type] - shift <= 16 ? 3 : 2,
    };
    if ((row_keys->len && (size_t)row_keys->len != pair->rows) || (col_keys->len && (size_t)col_keys->len != pair->cols)) {
        PyErr_SetString(PyExc_ValueError, "keys do not fit the rows and columns");
        return false;
    }
    return true;
}

static PyObject *ulp_count(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer before, target, row_keys, col_keys, counts;
    int type;
    unsigned shift;
    unsigned long long cols;
    if (!PyArg_ParseTuple(arguments, "y*y*iIKy*y*w*", &before, &target, &type, &shift, &cols, &row_keys, &col_keys,
                          &counts))
        return NULL;
    ulp_pair pair;
    bool valid = get_pair(&before, &target, type, shift, cols, &row_keys, &col_keys, &pair);
    if (valid && (size_t)counts.len != sizeof(int64_t) * CONTEXTS * SYMBOLS) {
        PyErr_SetString(PyExc_ValueError, "counts have the wrong size");
        valid = false;
    }
    if (valid)
        WITHOUT_LOCK(target.len, count_elements(&pair, counts.buf));
    Py_buffer *buffers[] = {&before, &target, &row_keys, &col_keys, &counts};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        PyBuffer_Release(buffers[i]);
    if (!valid)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *ulp_measure(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer before, target, row_keys, col_keys, group_of, totals;
    int type;
    unsigned shift;
    unsigned long long cols;
    if (!PyArg_ParseTuple(arguments, "y*y*iIKy*y*y*w*", &before, &target, &type, &shift, &cols, &row_keys, &col_keys,
                          &group_of, &totals))
        return NULL;
    ulp_pair pair;
    bool valid = get_pair(&before, &target, type, shift, cols, &row_keys, &col_keys, &pair);
    if (valid && (group_of.len != CONTEXTS || (size_t)totals.len != 2 * SYMBOLS * sizeof(uint64_t))) {
        PyErr_SetString(PyExc_ValueError, "the table of groups or the totals have the wrong size");
        valid = false;
    }
    if (valid) {
        uint64_t *sizes = totals.buf;
        WITHOUT_LOCK(target.len, measure_elements(&pair, group_of.buf, sizes, sizes + SYMBOLS));
    }
    Py_buffer *buffers[] = {&before, &target, &row_keys, &col_keys, &group_of, &totals};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        PyBuffer_Release(buffers[i]);
    if (!valid)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *ulp_row_sizes(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer before, target, weights, sizes;
    int type;
    unsigned long long cols;
    if (!PyArg_ParseTuple(arguments, "y*y*iKy*w*", &before, &target, &type, &cols, &weights, &sizes))
        return NULL;
    const Py_buffer none = {0};
    ulp_pair pair;
    float *work = NULL;
    bool valid = get_pair(&before, &target, type, 0, cols, &none, &none, &pair);
    if (valid && ((uint64_t)weights.len != pair.cols * sizeof *work || (uint64_t)sizes.len != pair.rows * sizeof *work)) {
        PyErr_SetString(PyExc_ValueError, "weights or sizes do not fit the columns and rows");
        valid = false;
    }
    if (valid && (work = malloc(pair.cols * sizeof *work)) == NULL) {
        PyErr_NoMemory();
        valid = false;
    }
    if (valid) {
        const encode_band band = {
            pair.before, pair.target, (element_type)type, (element_type)type, pair.rows, pair.cols, .row_order = NULL};
        WITHOUT_LOCK(target.len, kernels()->ulp_row_sizes(&band, weights.buf, work, sizes.buf));
    }
    free(work);
    Py_buffer *buffers[] = {&before, &target, &weights, &sizes};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        PyBuffer_Release(buffers[i]);
    if (!valid)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *ulp_scatter(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer before, target, row_keys, col_keys, group_of, symbols, places, extra, positions;
    int type;
    unsigned shift;
    unsigned long long cols;
    if (!PyArg_ParseTuple(arguments, "y*y*iIKy*y*y*w*w*w*w*", &before, &target, &type, &shift, &cols, &row_keys,
                          &col_keys, &group_of, &symbols, &places, &extra, &positions))
        return NULL;
    ulp_pair pair;
    bool valid = get_pair(&before, &target, type, shift, cols, &row_keys, &col_keys, &pair), fits = true;
    if (valid && (group_of.len != CONTEXTS || places.len != SYMBOLS * 8 || positions.len != SYMBOLS * 8)) {
        PyErr_SetString(PyExc_ValueError, "the table of groups or the positions have the wrong size");
        valid = false;
    }
    if (valid) {
        ulp_groups groups = {
            .symbols = symbols.buf,
            .extra = extra.buf,
            .size = (uint64_t)symbols.len,
            .extra_size = (uint64_t)extra.len,
            .places = places.buf,
            .positions = positions.buf,
        };
        uint8_t waiting[SYMBOLS][WAITING_SYMBOLS];
        groups.waiting = waiting;
        groups.vectors = narrow_groups_of(group_of.buf, CONTEXTS, &groups.narrow) ? kernels()->group_vectors : NULL;
        WITHOUT_LOCK(target.len, fits = scatter_elements(&pair, group_of.buf, &groups));
    }
    if (valid && !fits) {
        PyErr_SetString(PyExc_ValueError, "the elements are not those that were counted");
        valid = false;
    }
    Py_buffer *buffers[] = {&before, &target, &row_keys, &col_keys, &group_of, &symbols, &places, &extra, &positions};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        PyBuffer_Release(buffers[i]);
    if (!valid)
        return NULL;
    Py_RETURN_NONE;
}

PyMethodDef encode_ulp_methods[] = {
    {"ulp_count", ulp_count, METH_VARARGS, NULL},
    {"ulp_measure", ulp_measure, METH_VARARGS, NULL},
    {"ulp_row_sizes", ulp_row_sizes, METH_VARARGS, NULL},
    {"ulp_scatter", ulp_scatter, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

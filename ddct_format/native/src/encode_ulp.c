/* Symbols, contexts and extra bits of ulp.v1 for an encoder (section 7.3): see ../interface.py. */
#include "arguments.h"
#include "kernels.h"

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

/* Fills a piece of a row from column `col` on; the number of elements. The extra bits of wide types are in `wide`. */
static size_t take_piece(const ulp_pair *pair, size_t row, size_t col, ulp_piece *piece, uint32_t wide[ULP_PIECE]) {
    size_t count = pair->cols - col < ULP_PIECE ? pair->cols - col : ULP_PIECE, first = row * pair->cols + col;
    uint32_t row_key = pair->row_keys != NULL ? pair->row_keys[row] : 0u;
    const uint8_t *col_keys = pair->col_keys != NULL ? pair->col_keys + col : NULL;
    if (pair->bits == 16) {
        kernels()->encode->ulp_elements_16(pair, first, count, (int32_t)row_key, col_keys, piece);
        for (size_t i = 0; wide != NULL && i < count; i++)
            wide[i] = piece->extra[i];
        return count;
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t keys = row_key + (col_keys != NULL ? col_keys[i] : 0u);
        ulp_element found = element_of(pair, pattern_at(pair->before, first + i), pattern_at(pair->target, first + i), keys);
        piece->context[i] = (uint16_t)found.context;
        piece->symbol[i] = (uint8_t)found.symbol;
        piece->extra_bits[i] = (uint8_t)found.extra_bits;
        if (wide != NULL)
            wide[i] = found.extra;
    }
    return count;
}

static void count_elements(const ulp_pair *pair, int64_t *counts) {
    ulp_piece piece;
    for (size_t row = 0; row < pair->rows; row++)
        for (size_t col = 0; col < pair->cols; col += ULP_PIECE) {
            size_t count = take_piece(pair, row, col, &piece, NULL);
            for (size_t i = 0; i < count; i++)
                counts[piece.context[i] * SYMBOLS + piece.symbol[i]]++;
        }
}

static void put_bits(uint8_t *out, uint64_t *position, uint32_t value, uint32_t count) {
    uint64_t shifted = (uint64_t)value << (*position & 7);
    for (uint8_t *byte = out + (*position >> 3); shifted; shifted >>= 8)
        *byte++ |= (uint8_t)shifted;
    *position += count;
}

/* False if a group holds more than was counted. */
static bool scatter_elements(const ulp_pair *pair, const uint8_t *group_of, uint8_t *symbols, size_t size,
                             uint64_t *places, uint8_t *extra, size_t extra_size, uint64_t *positions) {
    ulp_piece piece;
    uint32_t wide[ULP_PIECE];
    for (size_t row = 0; row < pair->rows; row++)
        for (size_t col = 0; col < pair->cols; col += ULP_PIECE) {
            size_t count = take_piece(pair, row, col, &piece, wide);
            for (size_t i = 0; i < count; i++) {
                uint32_t group = group_of[piece.context[i]];
                if (places[group] >= size)
                    return false;
                symbols[places[group]++] = piece.symbol[i];
                if (piece.extra_bits[i]) {
                    if ((positions[group] + piece.extra_bits[i] + 7) / 8 > extra_size)
                        return false;
                    put_bits(extra, &positions[group], wide[i], piece.extra_bits[i]);
                }
            }
        }
    return true;
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
    if (valid)
        WITHOUT_LOCK(target.len, fits = scatter_elements(&pair, group_of.buf, symbols.buf, (size_t)symbols.len,
                                                         places.buf, extra.buf, (size_t)extra.len, positions.buf));
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
    {"ulp_scatter", ulp_scatter, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

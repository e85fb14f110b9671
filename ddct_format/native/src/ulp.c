/* ulp.v1 for Python: a layer is opened and checked, then decoded piece by piece. */
#include "arguments.h"
#include "kernels.h"

#include <fenv.h>
#include <stdlib.h>
#include <string.h>

static const char capsule_name[] = "ddct_format.native._core.ulp_layer";
static const char too_short[] = "the contents take more bytes than the payload has";

typedef struct open_layer {
    Py_buffer payload, before;
    ulp_layer layer;
} open_layer;

static void release(open_layer *opened) {
    PyBuffer_Release(&opened->payload);
    PyBuffer_Release(&opened->before);
    free(opened->layer.windows);
    free(opened);
}

static void close_layer(PyObject *capsule) { release(PyCapsule_GetPointer(capsule, capsule_name)); }

/* The symbols of one group, from `offset` on. NULL, or what is wrong. */
static const char *read_group(ulp_layer *d, const Py_buffer *payload, uint32_t group, uint64_t count, uint32_t run_bytes,
                              uint64_t *offset, uint64_t *bits) {
    const uint8_t *bytes = payload->buf;
    const uint64_t size = (uint64_t)payload->len;
    ulp_cursor *cursor = &d->cursors[group];
    cursor->bit = *bits;
    uint64_t others = count;
    if (cursor->sparse) {
        if (run_bytes > size - *offset)
            return too_short;
        cursor->runs = bytes + *offset;
        cursor->runs_end = cursor->runs + run_bytes;
        if (!kernels()->sparse_valid(cursor->runs, run_bytes, count, &others))
            return "a run of zeros leads beyond the last symbol of its group";
        *offset += run_bytes;
    }
    if (others > size - *offset)
        return too_short;
    const uint8_t *symbols = bytes + *offset;
    *offset += others;
    if (cursor->sparse) { /* the window is empty */
        cursor->values = symbols;
        cursor->values_end = symbols + others;
        d->next[group] = cursor->end = d->windows + (size_t)group * ULP_WINDOW;
    } else {
        d->next[group] = symbols;
        cursor->end = symbols + others;
        if (others >= ULP_READ)
            cursor->last = cursor->end - ULP_READ;
    }
    return kernels()->ulp_measure(&d->grouping.code, symbols, others, cursor->sparse, bits)
               ? NULL
               : "a symbol is beyond the alphabet";
}

/* All sections after the keys. NULL, or what is wrong. */
static const char *read_sections(ulp_layer *d, const Py_buffer *payload, uint64_t offset) {
    const uint8_t *bytes = payload->buf;
    const uint64_t size = (uint64_t)payload->len;
    uint64_t counts[256], bits = 0, sparse = 0;
    for (uint32_t group = 0; group < d->groups; group++)
        sparse += d->cursors[group].sparse;
    if (4 * sparse > size - offset)
        return too_short;
    const uint8_t *run_counts = bytes + offset;
    offset += 4 * sparse;
    kernels()->ulp_count_groups(&d->grouping, counts);
    for (uint32_t group = 0; group < d->groups; group++) {
        uint32_t run_bytes = 0;
        if (d->cursors[group].sparse) {
            memcpy(&run_bytes, run_counts, sizeof run_bytes);
            run_counts += sizeof run_bytes;
        }
        const char *wrong = read_group(d, payload, group, counts[group], run_bytes, &offset, &bits);
        if (wrong != NULL)
            return wrong;
    }
    d->extra = bytes + offset;
    d->extra_size = size - offset;
    uint64_t needed = bits / 8 + (bits % 8 != 0);
    if (needed > d->extra_size)
        return "there are fewer extra bits than the symbols need";
    if (needed < d->extra_size)
        return "the payload is longer than its contents";
    if (bits % 8 != 0 && d->extra[needed - 1] >> (bits % 8) != 0)
        return "bits after the last extra bit are not zero";
    return NULL;
}

static PyObject *ulp_open(PyObject *module, PyObject *arguments) {
    (void)module;
    static const ddct_dtype types[] = {DDCT_BF16, DDCT_F16, DDCT_F32};
    static const size_t widths[] = {2, 2, 4};
    open_layer *opened = calloc(1, sizeof *opened);
    if (opened == NULL)
        return PyErr_NoMemory();
    unsigned long long rows, cols;
    int before_type, type, row_keys, column_keys;
    unsigned shift;
    const char *group_of, *sparse;
    Py_ssize_t contexts, groups;
    if (!PyArg_ParseTuple(arguments, "y*y*ii(KK)I(pp)y#y#", &opened->payload, &opened->before, &before_type, &type, &rows,
                          &cols, &shift, &row_keys, &column_keys, &group_of, &contexts, &sparse, &groups)) {
        free(opened);
        return NULL;
    }
    ulp_layer *d = &opened->layer;
    ulp_grouping *g = &d->grouping;
    bool good = before_type >= 0 && before_type < 3 && type >= 0 && type < 3 && rows >= 1 && cols >= 1 &&
                rows <= ((uint64_t)1 << 56) / cols && groups >= 1 && groups <= DDCT_ULP_GROUPS &&
                contexts == DDCT_ULP_CONTEXTS && shift <= 8 * widths[type] - 8 &&
                (uint64_t)opened->before.len == rows * cols * widths[before_type];
    for (Py_ssize_t i = 0; good && i < contexts; i++)
        good = (uint8_t)group_of[i] < groups;
    if (!good) {
        release(opened);
        PyErr_SetString(PyExc_ValueError, "a layer is not as it must be");
        return NULL;
    }
    d->windows = malloc((size_t)groups * ULP_WINDOW);
    if (d->windows == NULL) {
        release(opened);
        return PyErr_NoMemory();
    }
    d->groups = (uint32_t)groups;
    memcpy(d->group_of, group_of, sizeof d->group_of);
    for (Py_ssize_t i = 0; i < groups; i++)
        d->cursors[i].sparse = sparse[i] != 0;
    const uint64_t keys = (row_keys ? rows : 0) + (column_keys ? cols : 0);
    const char *wrong = keys > (uint64_t)opened->payload.len ? too_short : NULL;
    *g = (ulp_grouping){
        .before = opened->before.buf,
        .before_type = types[before_type],
        .type = types[type],
        .before_width = widths[before_type],
        .width = widths[type],
        .rows = keys == 0 ? 1 : rows, /* without keys, rows mean nothing: one long one is faster than many short ones */
        .cols = keys == 0 ? rows * cols : cols,
        .row_keys = row_keys ? opened->payload.buf : NULL,
        .column_keys = column_keys ? (uint8_t *)opened->payload.buf + (row_keys ? rows : 0) : NULL,
        .group_of = d->group_of,
    };
    g->vectors = narrow_groups_of(d->group_of, DDCT_ULP_CONTEXTS, &g->narrow) ? kernels()->group_vectors : NULL;
    g->in_place = g->vectors != NULL && g->width == 2 && g->before_type == g->type;
    kernels()->ulp_make_code(g->type, shift, &g->code);
    while (d->first_long < g->code.alphabet && g->code.extra_bits[d->first_long] == 0)
        d->first_long++;
    if (wrong == NULL) {
        WITHOUT_LOCK(rows * cols, {
            fenv_t environment; /* rounding to another type must not depend on the host program's mode */
            fegetenv(&environment);
            fesetenv(FE_DFL_ENV);
            wrong = read_sections(d, &opened->payload, keys);
            fesetenv(&environment);
        });
    }
    if (wrong != NULL) {
        release(opened);
        return PyUnicode_FromString(wrong);
    }
    PyObject *capsule = PyCapsule_New(opened, capsule_name, close_layer);
    if (capsule == NULL)
        release(opened);
    return capsule;
}

static PyObject *ulp_decode(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *capsule;
    Py_buffer out;
    unsigned long long budget;
    if (!PyArg_ParseTuple(arguments, "Ow*K", &capsule, &out, &budget))
        return NULL;
    PyObject *result = NULL;
    open_layer *opened = PyCapsule_GetPointer(capsule, capsule_name);
    if (opened != NULL) {
        ulp_layer *d = &opened->layer;
        const ulp_grouping *g = &d->grouping;
        if ((uint64_t)out.len != g->rows * g->cols * g->width) {
            PyErr_SetString(PyExc_ValueError, "the result is not of the layer's size");
        } else {
            bool in_range;
            WITHOUT_LOCK(out.len, {
                fenv_t environment;
                fegetenv(&environment);
                fesetenv(FE_DFL_ENV);
                in_range = kernels()->ulp_decode_some(d, out.buf, budget);
                fesetenv(&environment);
            });
            uint64_t done = (d->row * g->cols + d->column) * g->width;
            result = in_range ? PyLong_FromUnsignedLongLong(done) : PyLong_FromLong(-1);
        }
    }
    PyBuffer_Release(&out);
    return result;
}

PyMethodDef ulp_methods[] = {
    {"ulp_open", ulp_open, METH_VARARGS, NULL},
    {"ulp_decode", ulp_decode, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

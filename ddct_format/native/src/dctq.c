/* dctq.v1 for Python: a layer is opened from a checked payload, then decoded piece by piece. */
#include "arguments.h"
#include "kernels.h"

#include <fenv.h>
#include <stdlib.h>
#include <string.h>

static const char capsule_name[] = "ddct_format.native._core.dctq_layer";

typedef struct open_layer {
    Py_buffer payload;
    dctq_layer *layer;
} open_layer;

static void close_layer(PyObject *capsule) {
    open_layer *opened = PyCapsule_GetPointer(capsule, capsule_name);
    dctq_release(opened->layer);
    PyBuffer_Release(&opened->payload);
    free(opened);
}

/* Bytes [start, start + size) of the payload; NULL with an exception if it does not have them. */
static const uint8_t *part(const Py_buffer *payload, unsigned long long start, uint64_t size) {
    if (start > (uint64_t)payload->len || size > (uint64_t)payload->len - start) {
        PyErr_SetString(PyExc_ValueError, "a section lies outside of the payload");
        return NULL;
    }
    return (const uint8_t *)payload->buf + start;
}

/* One class: (levels, symbols, packed start, packed stop, runs start, runs stop); the last two are -1 if dense. */
static bool read_class(const Py_buffer *payload, PyObject *item, dctq_class *class) {
    const char *levels;
    Py_ssize_t alphabet;
    long long packed, packed_stop, runs, runs_stop;
    unsigned long long symbols;
    if (!PyArg_ParseTuple(item, "y#KLLLL", &levels, &alphabet, &symbols, &packed, &packed_stop, &runs, &runs_stop))
        return false;
    class->sparse = runs >= 0;
    if (alphabet < 1 + class->sparse || alphabet > 256 || packed > packed_stop || runs > runs_stop) {
        PyErr_SetString(PyExc_ValueError, "a class is not as it must be");
        return false;
    }
    class->alphabet = (uint32_t)alphabet;
    class->symbols = symbols;
    memcpy(class->levels, levels, (size_t)alphabet);
    class->packed = part(payload, (unsigned long long)packed, (uint64_t)(packed_stop - packed));
    if (class->packed == NULL)
        return false;
    class->packed_end = class->packed + (packed_stop - packed);
    if (class->sparse) {
        class->runs = part(payload, (unsigned long long)runs, (uint64_t)(runs_stop - runs));
        if (class->runs == NULL)
            return false;
        class->runs_end = class->runs + (runs_stop - runs);
    }
    dctq_prepare_class(class);
    uint64_t size = class->per_byte == 0 ? 0 : symbols / class->per_byte + (symbols % class->per_byte != 0);
    if (!class->sparse && size > (uint64_t)(packed_stop - packed)) {
        PyErr_SetString(PyExc_ValueError, "a class has fewer bytes than its symbols take");
        return false;
    }
    return true;
}

static bool read_classes(const Py_buffer *payload, PyObject *list, dctq_layer *d) {
    Py_ssize_t count = PyList_Size(list);
    if (count < 1 || count > 255) {
        PyErr_SetString(PyExc_ValueError, "there are 1 to 255 classes");
        return false;
    }
    d->class_count = (uint32_t)count;
    d->classes = calloc((size_t)count, sizeof *d->classes);
    if (d->classes == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!read_class(payload, PyList_GetItem(list, i), &d->classes[i]))
            return false;
    return true;
}

typedef struct section_starts {
    unsigned long long scales, multipliers, row_keys, column_keys, left, right, class_map, ranges, coded;
} section_starts;

static bool read_layer(const Py_buffer *payload, const section_starts *at, bool row_keys, bool column_keys,
                       PyObject *classes, dctq_layer *d) {
    if (d->rows < 1 || d->cols < 1 || d->rows > ((uint64_t)1 << 56) / d->cols || d->rank > MAX_RANK ||
        (d->patch != 8 && d->patch != 16 && d->patch != 32) || at->coded > (uint64_t)payload->len) {
        PyErr_SetString(PyExc_ValueError, "a layer is not as it must be");
        return false;
    }
    const uint64_t patches = (d->rows / d->patch + (d->rows % d->patch != 0)) * (d->cols / d->patch + (d->cols % d->patch != 0));
    const uint8_t *row_key = part(payload, at->row_keys, row_keys ? d->rows : 0);
    const uint8_t *column_key = row_key == NULL ? NULL : part(payload, at->column_keys, column_keys ? d->cols : 0);
    d->multipliers = column_key == NULL ? NULL : part(payload, at->multipliers, 2 * (uint64_t)d->rank);
    d->left = d->multipliers == NULL ? NULL : (const int8_t *)part(payload, at->left, d->rank * d->rows);
    const int8_t *right = d->left == NULL ? NULL : (const int8_t *)part(payload, at->right, d->rank * d->cols);
    d->ranges = right == NULL ? NULL : part(payload, at->ranges, d->affine ? 4 * at->coded : 0);
    d->all_coded = at->coded;
    if (d->ranges == NULL || !read_classes(payload, classes, d))
        return false;
    if (d->class_count > 1) {
        d->class_map = part(payload, at->class_map, patches);
        if (d->class_map == NULL)
            return false;
    }
    /* Numbers are copied as bits: Python floats would pass through conversions that the host program's mode may flush. */
    const uint64_t scales = d->affine ? 1 : d->class_count;
    const uint8_t *scale = part(payload, at->scales, 4 * (scales + (d->rank > 0)));
    if (scale == NULL)
        return false;
    memcpy(&d->gain, scale, sizeof d->gain);
    for (uint32_t c = 0; !d->affine && c < d->class_count; c++)
        memcpy(&d->classes[c].scale, scale + 4 * c, sizeof d->gain);
    if (d->rank > 0)
        memcpy(&d->low_rank_scale, scale + 4 * scales, sizeof d->gain);
    if (!dctq_prepare(d, row_keys ? row_key : NULL, column_keys ? column_key : NULL, right)) {
        PyErr_NoMemory();
        return false;
    }
    return true;
}

static PyObject *dctq_open(PyObject *module, PyObject *arguments) {
    (void)module;
    open_layer *opened = calloc(1, sizeof *opened);
    dctq_layer *d = opened == NULL ? NULL : calloc(1, sizeof *d);
    if (d == NULL) {
        free(opened);
        return PyErr_NoMemory();
    }
    opened->layer = d;
    unsigned long long rows, cols;
    section_starts at;
    int affine, row_keys, column_keys;
    unsigned transform;
    PyObject *classes;
    if (!PyArg_ParseTuple(arguments, "y*(KKI)IpI(KKKKKKKKK)(pp)O!", &opened->payload, &rows, &cols, &d->patch,
                          &transform, &affine, &d->rank, &at.scales, &at.multipliers, &at.row_keys, &at.column_keys,
                          &at.left, &at.right, &at.class_map, &at.ranges, &at.coded, &row_keys, &column_keys,
                          &PyList_Type, &classes)) {
        free(d);
        free(opened);
        return NULL;
    }
    d->rows = rows;
    d->cols = cols;
    d->affine = affine;
    d->transform = transform == 0 ? DDCT_TRANSFORM_DCT : transform == 1 ? DDCT_TRANSFORM_HADAMARD : DDCT_TRANSFORM_NONE;
    PyObject *capsule = NULL;
    if (read_layer(&opened->payload, &at, row_keys, column_keys, classes, d))
        capsule = PyCapsule_New(opened, capsule_name, close_layer);
    if (capsule == NULL) {
        dctq_release(d);
        PyBuffer_Release(&opened->payload);
        free(opened);
    }
    return capsule;
}

static bool is_type(int code) { return code >= 0 && code < 3; }

static PyObject *dctq_decode(PyObject *module, PyObject *arguments) {
    (void)module;
    static const ddct_dtype types[] = {DDCT_BF16, DDCT_F16, DDCT_F32};
    static const size_t widths[] = {2, 2, 4};
    PyObject *capsule;
    Py_buffer base, out, wanted;
    int base_type, type;
    unsigned long long budget;
    if (!PyArg_ParseTuple(arguments, "Oz*iw*iKz*", &capsule, &base, &base_type, &out, &type, &budget, &wanted))
        return NULL;
    PyObject *result = NULL;
    open_layer *opened = PyCapsule_GetPointer(capsule, capsule_name);
    if (opened != NULL) {
        dctq_layer *d = opened->layer;
        const uint64_t elements = d->rows * d->cols;
        if (!is_type(base_type) || !is_type(type) || (uint64_t)out.len != elements * widths[type] ||
            (base.buf == NULL ? type != 2 : (uint64_t)base.len != elements * widths[base_type]) ||
            (wanted.buf != NULL && wanted.len != out.len)) {
            PyErr_SetString(PyExc_ValueError, "base or result is not of the layer's size");
        } else {
            const dctq_target target = {base.buf, out.buf, types[base_type], types[type], widths[base_type], widths[type], wanted.buf};
            bool done;
            WITHOUT_LOCK(elements, {
                fenv_t environment; /* the host program may flush subnormals, or round otherwise */
                fegetenv(&environment);
                fesetenv(FE_DFL_ENV);
                done = kernels()->decode_some(d, &target, budget);
                fesetenv(&environment);
            });
            uint64_t finished = done ? elements : d->next_row * d->patch * d->cols;
            if (!done && d->rows == 1)
                finished = d->next_column * d->patch;
            result = PyLong_FromUnsignedLongLong(finished * widths[type]);
        }
    }
    PyBuffer_Release(&base);
    PyBuffer_Release(&out);
    PyBuffer_Release(&wanted);
    return result;
}

static PyObject *dctq_error(PyObject *module, PyObject *capsule) {
    (void)module;
    const open_layer *opened = PyCapsule_GetPointer(capsule, capsule_name);
    return opened == NULL ? NULL : PyFloat_FromDouble(opened->layer->error);
}

PyMethodDef dctq_methods[] = {
    {"dctq_open", dctq_open, METH_VARARGS, NULL},
    {"dctq_decode", dctq_decode, METH_VARARGS, NULL},
    {"dctq_error", dctq_error, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

/* An encoder's kernels for Python: see ../interface.py. Buffers of numbers are in the machine's order. */
#include "arguments.h"
#include "kernels.h"

#include <stdlib.h>

typedef struct {
    Py_buffer base, target;
    int base_type, target_type;
    unsigned long long cols;
} band_arguments;

static bool fail(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return false;
}

static bool is_size(const Py_buffer *buffer, uint64_t count, size_t width) {
    return (uint64_t)buffer->len == count * width;
}

/* Checks what describes a band; false with an exception set if it does not. */
static bool get_band(const band_arguments *given, encode_band *band) {
    if (given->base_type < 0 || given->base_type > ELEMENT_F32 || given->target_type < 0 ||
        given->target_type > ELEMENT_F32)
        return fail("no such element type");
    size_t base_width = given->base_type == ELEMENT_F32 ? 4 : 2, width = given->target_type == ELEMENT_F32 ? 4 : 2;
    uint64_t count = (uint64_t)given->target.len / width;
    if (given->cols == 0 || given->cols > count || count % given->cols || !is_size(&given->target, count, width) ||
        !is_size(&given->base, count, base_width))
        return fail("base and target are not whole rows of the same shape");
    *band = (encode_band){
        .base = given->base.buf,
        .target = given->target.buf,
        .base_type = (element_type)given->base_type,
        .target_type = (element_type)given->target_type,
        .rows = count / given->cols,
        .cols = given->cols,
    };
    return true;
}

static void release_band(band_arguments *given) {
    PyBuffer_Release(&given->base);
    PyBuffer_Release(&given->target);
}

enum { POWER_WORK = 1 << 17 }; /* floats */

static bool is_patch(unsigned patch) { return patch == 8 || patch == 16 || patch == 32; }

static uint64_t count_patches(const encode_band *band, unsigned patch) {
    return (uint64_t)((band->rows + patch - 1) / patch) * ((band->cols + patch - 1) / patch);
}

/* Floats for one row of patches and some rows more; NULL with an exception set. */
static float *new_work(const encode_band *band, unsigned patch, size_t more) {
    size_t stride = (band->cols + patch - 1) / patch * patch;
    stride = (stride + 15) / 16 * 16;
    float *work = aligned_alloc(64, (patch + more) * stride * sizeof(float)); /* a stride is whole cache lines */
    if (work == NULL)
        PyErr_NoMemory();
    return work;
}

static PyObject *difference(PyObject *module, PyObject *arguments) {
    (void)module;
    band_arguments given;
    float scale;
    Py_buffer out, row_squares, col_squares;
    if (!PyArg_ParseTuple(arguments, "y*iy*iKfw*w*w*", &given.base, &given.base_type, &given.target,
                          &given.target_type, &given.cols, &scale, &out, &row_squares, &col_squares))
        return NULL;
    encode_band band;
    bool valid = get_band(&given, &band);
    bool squares = col_squares.len > 0;
    if (valid && (!is_size(&out, (uint64_t)band.rows * band.cols, 4) ||
                  (squares && (!is_size(&row_squares, band.rows, 8) || !is_size(&col_squares, band.cols, 8)))))
        valid = fail("a result has the wrong size");
    if (valid)
        WITHOUT_LOCK(out.len, kernels()->encode->difference(&band, scale, out.buf, squares ? row_squares.buf : NULL,
                                                            col_squares.buf));
    release_band(&given);
    PyBuffer_Release(&out);
    PyBuffer_Release(&row_squares);
    PyBuffer_Release(&col_squares);
    if (!valid)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *power_band(PyObject *module, PyObject *arguments) {
    (void)module;
    band_arguments given;
    float scale;
    unsigned long long stride;
    Py_buffer vectors, projected, returned, row_squares, col_squares;
    if (!PyArg_ParseTuple(arguments, "y*iy*iKfKy*w*w*w*w*", &given.base, &given.base_type, &given.target,
                          &given.target_type, &given.cols, &scale, &stride, &vectors, &projected, &returned,
                          &row_squares, &col_squares))
        return NULL;
    encode_band band;
    float *work = NULL;
    bool valid = get_band(&given, &band);
    if (valid && (stride == 0 || stride % 16 || stride > 1024 || !is_size(&vectors, band.cols * stride, 4) ||
                  !is_size(&projected, band.rows * stride, 4) || !is_size(&returned, band.cols * stride, 4) ||
                  !is_size(&row_squares, band.rows, 8) || !is_size(&col_squares, band.cols, 8)))
        valid = fail("vectors or a result do not fit the band");
    /* As many rows at a time as half of a second-level cache holds. */
    size_t group = valid ? POWER_WORK / band.cols / 8 * 8 : 0;
    group = group < 8 ? 8 : group > 64 ? 64 : group;
    if (valid && (work = malloc(group * (band.cols + 16 + (size_t)stride) * sizeof *work)) == NULL) {
        PyErr_NoMemory();
        valid = false;
    }
    if (valid) {
        power_result result = {projected.buf, returned.buf, row_squares.buf, col_squares.buf};
        WITHOUT_LOCK(given.target.len,
                     kernels()->encode->power(&band, scale, (size_t)stride, vectors.buf, group, work, &result));
    }
    free(work);
    release_band(&given);
    Py_buffer *others[] = {&vectors, &projected, &returned, &row_squares, &col_squares};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        PyBuffer_Release(others[i]);
    if (!valid)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *delta_sums(PyObject *module, PyObject *arguments) {
    (void)module;
    band_arguments given = {.cols = 1};
    if (!PyArg_ParseTuple(arguments, "y*iy*i", &given.base, &given.base_type, &given.target, &given.target_type))
        return NULL;
    encode_band band;
    encode_sums sums = {0, 0, 0, true};
    bool valid = given.target.len == 0 || get_band(&given, &band);
    if (valid && given.target.len)
        WITHOUT_LOCK(given.target.len, sums = kernels()->encode->sums(&band));
    release_band(&given);
    if (!valid)
        return NULL;
    return Py_BuildValue("(dddN)", sums.energy, sums.magnitude, (double)sums.largest, PyBool_FromLong(sums.finite));
}

static bool order_is_inside(const int64_t *order, size_t count, size_t end) {
    for (size_t i = 0; i < count; i++)
        if (order[i] < 0 || (uint64_t)order[i] >= end)
            return false;
    return true;
}

static PyObject *quantise_band(PyObject *module, PyObject *arguments) {
    (void)module;
    band_arguments given;
    unsigned patch;
    int mirrored;
    quantise_plan plan = {0};
    Py_buffer rows, analysis, left, right, order, edges, symbols, activity, counts, sums;
    if (!PyArg_ParseTuple(arguments, "y*iy*iKy*Iy*pfffIy*y*y*y*w*w*w*w*", &given.base, &given.base_type, &given.target,
                          &given.target_type, &given.cols, &rows, &patch, &analysis, &mirrored, &plan.scale, &plan.unit,
                          &plan.rounding, &plan.rank, &left, &right, &order, &edges, &symbols, &activity, &counts,
                          &sums))
        return NULL;
    encode_band band;
    double energy = 0;
    float *work = NULL;
    bool valid = get_band(&given, &band);
    if (valid && rows.len) {
        valid = rows.len % 8 == 0 && (order_is_inside(rows.buf, (size_t)rows.len / 8, band.rows) || fail("no such row"));
        band.row_order = rows.buf;
        band.rows = (size_t)rows.len / 8;
    }
    if (valid) {
        uint64_t patches = is_patch(patch) ? count_patches(&band, patch) : 0;
        plan.bins = (uint32_t)(edges.len / 8) + 1;
        if (!patches || (analysis.len && !is_size(&analysis, patch * patch, 4)) ||
            !is_size(&left, (uint64_t)band.rows * plan.rank, 4) ||
            !is_size(&right, (uint64_t)band.cols * plan.rank, 4) || (order.len && !is_size(&order, band.cols, 8)) ||
            (order.len && !order_is_inside(order.buf, band.cols, band.cols)) || !is_size(&symbols, patches, patch * patch) ||
            !is_size(&activity, patches, 4) || !is_size(&counts, plan.bins, 8 * MOST_MAGNITUDES) ||
            !is_size(&sums, MOST_MAGNITUDES, 8))
            valid = fail("the plan or a result does not fit the band");
    }
    if (valid)
        valid = (work = new_work(&band, patch, plan.rank + 2u)) != NULL;
    if (valid) {
        plan.patch = patch;
        plan.analysis = analysis.len ? analysis.buf : NULL;
        plan.mirrored = mirrored;
        plan.left = left.buf;
        plan.right = right.buf;
        plan.col_order = order.len ? order.buf : NULL;
        plan.bin_edges = edges.buf;
        quantise_result result = {symbols.buf, activity.buf, counts.buf, sums.buf, 0};
        WITHOUT_LOCK(symbols.len, kernels()->encode->quantise(&band, &plan, work, &result));
        energy = result.energy;
    }
    free(work);
    release_band(&given);
    Py_buffer *others[] = {&rows, &analysis, &left, &right, &order, &edges, &symbols, &activity, &counts, &sums};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        PyBuffer_Release(others[i]);
    return valid ? PyFloat_FromDouble(energy) : NULL;
}

static PyObject *patch_energies(PyObject *module, PyObject *arguments) {
    (void)module;
    band_arguments given;
    unsigned patch;
    Py_buffer energies;
    if (!PyArg_ParseTuple(arguments, "y*iy*iKIw*", &given.base, &given.base_type, &given.target, &given.target_type,
                          &given.cols, &patch, &energies))
        return NULL;
    encode_band band;
    float *work = NULL;
    bool valid = get_band(&given, &band);
    if (valid && (!is_patch(patch) || !is_size(&energies, count_patches(&band, patch), 8)))
        valid = fail("the result does not fit the band");
    if (valid)
        valid = (work = new_work(&band, patch, 0)) != NULL;
    if (valid)
        WITHOUT_LOCK(given.target.len, kernels()->encode->patch_energies(&band, patch, work, energies.buf));
    free(work);
    release_band(&given);
    PyBuffer_Release(&energies);
    if (!valid)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *affine_band(PyObject *module, PyObject *arguments) {
    (void)module;
    band_arguments given;
    unsigned patch;
    int mirrored;
    quantise_plan plan = {0};
    Py_buffer analysis, basis, alphabets, symbols, minima, steps;
    if (!PyArg_ParseTuple(arguments, "y*iy*iKIy*py*fy*w*w*w*", &given.base, &given.base_type, &given.target,
                          &given.target_type, &given.cols, &patch, &analysis, &mirrored, &basis, &plan.scale,
                          &alphabets, &symbols, &minima, &steps))
        return NULL;
    encode_band band;
    affine_result result = {0};
    float *work = NULL;
    bool valid = get_band(&given, &band);
    if (valid) {
        uint64_t patches = is_patch(patch) ? count_patches(&band, patch) : 0;
        if (!patches || (analysis.len && !is_size(&analysis, patch * patch, 4)) || analysis.len != basis.len ||
            !is_size(&alphabets, patches, 1) || !is_size(&symbols, patches, patch * patch) ||
            !is_size(&minima, patches, 2) || !is_size(&steps, patches, 2))
            valid = fail("the plan or a result does not fit the band");
    }
    if (valid)
        valid = (work = new_work(&band, patch, 0)) != NULL;
    if (valid) {
        plan.patch = patch;
        plan.analysis = analysis.len ? analysis.buf : NULL;
        plan.mirrored = mirrored;
        plan.unit = 1.0f;
        result = (affine_result){.symbols = symbols.buf, .minima = minima.buf, .steps = steps.buf};
        WITHOUT_LOCK(symbols.len, kernels()->encode->affine(&band, &plan, basis.len ? basis.buf : NULL,
                                                            alphabets.buf, work, &result));
    }
    free(work);
    release_band(&given);
    Py_buffer *others[] = {&analysis, &basis, &alphabets, &symbols, &minima, &steps};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        PyBuffer_Release(others[i]);
    return valid ? Py_BuildValue("(ddd)", result.magnitude, result.energy, result.aligned) : NULL;
}

static uint32_t symbols_per_byte(unsigned alphabet) {
    uint32_t count = 1;
    for (uint32_t power = alphabet; power * alphabet <= 256; power *= alphabet)
        count++;
    return count;
}

static size_t count_members(const uint8_t *class_map, size_t patches, int number) {
    size_t members = 0;
    for (size_t i = 0; i < patches; i++)
        members += class_map[i] == number;
    return members;
}

/* A bytes object of `size` bytes; `begin` is where they lie. */
static PyObject *new_bytes(size_t size, uint8_t **begin) {
    PyObject *object = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    *begin = object == NULL ? NULL : (uint8_t *)PyBytes_AsString(object);
    return object;
}

/* Symbols other than 0 are not counted first: what is allocated beyond them is never touched. */
static PyObject *pack_sparse_class(const Py_buffer *symbols, const Py_buffer *class_map, int number, size_t values,
                                   unsigned alphabet) {
    const encode_table *encode = kernels()->encode;
    const size_t patches = (size_t)class_map->len, count = count_members(class_map->buf, patches, number) * values;
    size_t size = 0, found = 0;
    uint8_t *others = malloc(count + RUN_SLACK), *runs = malloc(count + count / 255 + RUN_SLACK), *to;
    PyObject *packed = NULL, *result = NULL;
    if (others != NULL && runs != NULL) {
        WITHOUT_LOCK(symbols->len, {
            size = encode->pack_runs(symbols->buf, values, class_map->buf, patches, number, runs, others);
            for (size_t i = 0; i < size; i++)
                found += runs[i] != 255;
        });
        const uint32_t per_byte = symbols_per_byte(alphabet > 2 ? alphabet - 1 : 2);
        packed = new_bytes(alphabet > 2 ? found / per_byte + (found % per_byte > 0) : 0, &to);
        if (packed != NULL && alphabet > 2)
            WITHOUT_LOCK(symbols->len, encode->pack_flat(others, found, alphabet - 1, per_byte, to));
    } else {
        PyErr_NoMemory();
    }
    if (packed != NULL)
        result = Py_BuildValue("(y#N)", (char *)runs, (Py_ssize_t)size, packed);
    free(runs);
    free(others);
    return result;
}

static PyObject *pack_dense_class(const Py_buffer *symbols, const Py_buffer *class_map, int number, size_t values,
                                  unsigned alphabet) {
    const size_t patches = (size_t)class_map->len, count = count_members(class_map->buf, patches, number) * values;
    const uint32_t per_byte = symbols_per_byte(alphabet);
    uint8_t *to;
    PyObject *packed = new_bytes(count / per_byte + (count % per_byte > 0), &to);
    if (packed == NULL)
        return NULL;
    WITHOUT_LOCK(symbols->len, kernels()->encode->pack_dense(symbols->buf, values, class_map->buf, patches, number,
                                                             alphabet, per_byte, to));
    return Py_BuildValue("(y#N)", "", (Py_ssize_t)0, packed);
}

static PyObject *pack_class(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer symbols, class_map;
    int number, sparse;
    unsigned alphabet;
    if (!PyArg_ParseTuple(arguments, "y*y*iIp", &symbols, &class_map, &number, &alphabet, &sparse))
        return NULL;
    size_t patches = (size_t)class_map.len, values = patches ? (size_t)symbols.len / patches : 0;
    PyObject *result = NULL;
    if (values * patches != (size_t)symbols.len || values % 64 || values > ENCODE_MAX_PATCH * ENCODE_MAX_PATCH ||
        alphabet < 2 || alphabet > 255)
        fail("symbols, classes and alphabet do not belong together");
    else if (sparse)
        result = pack_sparse_class(&symbols, &class_map, number, values, alphabet);
    else
        result = pack_dense_class(&symbols, &class_map, number, values, alphabet);
    PyBuffer_Release(&symbols);
    PyBuffer_Release(&class_map);
    return result;
}

PyMethodDef encode_methods[] = {
    {"affine_band", affine_band, METH_VARARGS, NULL},
    {"delta_sums", delta_sums, METH_VARARGS, NULL},
    {"difference", difference, METH_VARARGS, NULL},
    {"pack_class", pack_class, METH_VARARGS, NULL},
    {"patch_energies", patch_energies, METH_VARARGS, NULL},
    {"power_band", power_band, METH_VARARGS, NULL},
    {"quantise_band", quantise_band, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* Checks of packed symbols and runs (sections 7.2.4 and 7.2.5). */
#include "arguments.h"
#include "kernels.h"
#include "split.h"

static PyObject *measure_runs(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer runs;
    unsigned long long count;
    if (!PyArg_ParseTuple(arguments, "y*K", &runs, &count))
        return NULL;
    uint64_t values = 0;
    bool inside;
    WITHOUT_LOCK(runs.len, inside = kernels()->sparse_valid(runs.buf, (uint64_t)runs.len, count, &values));
    PyBuffer_Release(&runs);
    return Py_BuildValue("(NK)", PyBool_FromLong(inside), (unsigned long long)values);
}

void count_all(const uint8_t *data, size_t size, uint64_t *counts) {
    uint64_t tables[4][256] = {{0}}; /* several, so that equal neighbours do not wait for each other */
    size_t index = 0;
    for (; index + 4 <= size; index += 4)
        for (int table = 0; table < 4; table++)
            tables[table][data[index + (size_t)table]]++;
    for (; index < size; index++)
        tables[0][data[index]]++;
    for (int byte = 0; byte < 256; byte++)
        counts[byte] = tables[0][byte] + tables[1][byte] + tables[2][byte] + tables[3][byte];
}

static PyObject *count_bytes(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data;
    if (!PyArg_ParseTuple(arguments, "y*", &data))
        return NULL;
    uint64_t counts[256];
    WITHOUT_LOCK(data.len, count_all(data.buf, (size_t)data.len, counts));
    PyBuffer_Release(&data);
    return PyBytes_FromStringAndSize((const char *)counts, sizeof counts);
}

PyMethodDef symbol_methods[] = {
    {"count_bytes", count_bytes, METH_VARARGS, NULL},
    {"measure_runs", measure_runs, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* Checks of packed symbols and runs (sections 7.2.4 and 7.2.5). */
#include "arguments.h"
#include "kernels.h"

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

PyMethodDef symbol_methods[] = {
    {"measure_runs", measure_runs, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

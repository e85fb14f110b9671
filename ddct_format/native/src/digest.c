/* Digests of many leaves (section 1.1): see ../interface.py. */
#include "arguments.h"
#include "kernels.h"

enum { FEWEST_LEAVES = 8 }; /* sixteen are done in the time that the library takes for these */

static PyObject *leaf_digests(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data;
    unsigned long long size;
    if (!PyArg_ParseTuple(arguments, "y*K", &data, &size))
        return NULL;
    PyObject *result = NULL;
    if (size == 0 || size % 64) {
        PyErr_SetString(PyExc_ValueError, "leaves are not whole blocks");
    } else {
        size_t count = (size_t)((uint64_t)data.len / size);
        if (kernels()->leaf_digests == NULL || count < FEWEST_LEAVES)
            count = 0;
        else if (count % 16 < FEWEST_LEAVES)
            count -= count % 16;
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(32 * count));
        if (result != NULL && count) {
            uint8_t *digests = (uint8_t *)PyBytes_AsString(result); /* nobody else has the object yet */
            WITHOUT_LOCK(data.len, kernels()->leaf_digests(data.buf, (size_t)size, count, digests));
        }
    }
    PyBuffer_Release(&data);
    return result;
}

PyMethodDef digest_methods[] = {
    {"leaf_digests", leaf_digests, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

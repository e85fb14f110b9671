/* Checks of packed symbols and runs (sections 7.2.4 and 7.2.5). */
#include "arguments.h"
#include "kernels.h"
#include "parallel.h"

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

static void count_all(const uint8_t *data, size_t size, uint64_t *counts) {
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

/* Where the symbols of a payload of dctq.v1 lie (section 7.2.2): found and checked, payload by payload. */
typedef struct {
    uint64_t place, size;           /* in the memory that is given */
    uint64_t patches, symbols;      /* in all, and of a patch */
    uint64_t class_map, run_counts; /* from the payload's start on; the map is not read if there is one class */
    uint64_t after;                 /* where the sections end whose size does not depend on the class map */
    uint64_t affine, first_class, classes;
} Split;

typedef struct {
    uint64_t alphabet, sparse;
} SplitClass;

typedef struct {
    uint64_t symbols, runs_start, runs_stop, packed_start, packed_stop; /* from the payload's start on */
} SplitCodes;

typedef struct {
    const uint8_t *memory;
    const Split *splits;
    const SplitClass *classes;
    SplitCodes *codes;
    uint8_t *good;
} Splitting;

static uint8_t largest_byte(const uint8_t *data, uint64_t size) {
    uint8_t largest = 0;
    for (uint64_t index = 0; index < size; index++)
        largest = data[index] > largest ? data[index] : largest;
    return largest;
}

static bool halves_are_valid(const uint8_t *planes, uint64_t count) {
    const uint8_t *minima = planes + count, *steps_low = planes + 2 * count, *steps = planes + 3 * count;
    bool bad = false;
    for (uint64_t index = 0; index < count; index++) {
        bad |= (minima[index] & 0x7C) == 0x7C;                               /* not finite */
        bad |= (steps[index] & 0x7C) == 0x7C;                                /* the same */
        bad |= steps[index] > 0x80 || (steps[index] == 0x80 && steps_low[index]); /* below zero */
    }
    return !bad;
}

/* Takes `count` packed symbols, or run bytes, from the payload; false if it ends before. */
static bool take(uint64_t count, uint64_t size, uint64_t *position) {
    if (count > size - *position)
        return false;
    *position += count;
    return true;
}

static bool packed_is_valid(const uint8_t *packed, uint64_t size, uint64_t count, uint64_t alphabet, uint64_t per_byte) {
    uint64_t limit = 1, last_limit = 1;
    for (uint64_t digit = 0; digit < per_byte; digit++) {
        limit *= alphabet;
        last_limit *= digit < count - (size - 1) * per_byte ? alphabet : 1;
    }
    return largest_byte(packed, size) < limit && packed[size - 1] < last_limit;
}

static bool split_one(const uint8_t *payload, const Split *split, const SplitClass *classes, SplitCodes *codes) {
    uint64_t counts[256] = {0}, position = split->after, coded = 0;
    if (split->classes == 1)
        counts[0] = split->patches;
    else
        count_all(payload + split->class_map, (size_t)split->patches, counts);
    for (uint64_t number = split->classes; number < 256; number++)
        if (counts[number])
            return false;
    for (uint64_t number = 0; number < split->classes; number++)
        coded += classes[number].alphabet > 1 ? counts[number] : 0;
    if (split->affine && (!take(4 * coded, split->size, &position) ||
                          !halves_are_valid(payload + split->after, coded)))
        return false;
    const uint8_t *run_count = payload + split->run_counts;
    for (uint64_t number = 0; number < split->classes; number++, codes++) {
        uint64_t alphabet = classes[number].alphabet, count = alphabet > 1 ? counts[number] * split->symbols : 0;
        *codes = (SplitCodes){.symbols = count};
        if (classes[number].sparse) {
            uint64_t runs = run_count[0] | run_count[1] << 8 | run_count[2] << 16 | (uint64_t)run_count[3] << 24;
            run_count += 4;
            codes->runs_start = position;
            if (!take(runs, split->size, &position) ||
                !kernels()->sparse_valid(payload + codes->runs_start, runs, codes->symbols, &count))
                return false;
            codes->runs_stop = position;
            alphabet--;
        }
        uint64_t per_byte = 1;
        for (uint64_t most = alphabet; alphabet > 1 && most * alphabet <= 256; most *= alphabet)
            per_byte++;
        uint64_t size = alphabet > 1 ? count / per_byte + (count % per_byte != 0) : 0;
        codes->packed_start = position;
        if (!take(size, split->size, &position))
            return false;
        codes->packed_stop = position;
        if (size > 0 && !packed_is_valid(payload + codes->packed_start, size, count, alphabet, per_byte))
            return false;
    }
    return position == split->size;
}

static void split_item(void *context, size_t worker, size_t item) {
    (void)worker;
    const Splitting *all = context;
    const Split *split = &all->splits[item];
    all->good[item] = split_one(all->memory + split->place, split, all->classes + split->first_class,
                                all->codes + split->first_class);
}

static bool split_fits(const Split *split, const SplitClass *classes, uint64_t class_count, uint64_t memory_size) {
    uint64_t size = split->size, sparse = 0;
    if (split->place > memory_size || size > memory_size - split->place || split->after > size ||
        split->classes < 1 || split->classes > 255 || split->first_class > class_count ||
        split->classes > class_count - split->first_class || split->symbols < 1 || split->symbols > 1024 ||
        split->patches > UINT32_MAX)
        return false;
    for (uint64_t number = 0; number < split->classes; number++) {
        const SplitClass *own = &classes[split->first_class + number];
        if (own->alphabet < 1 || own->alphabet > 256 || (own->sparse && own->alphabet < 2))
            return false;
        sparse += own->sparse != 0;
    }
    return split->run_counts <= split->after && 4 * sparse <= split->after - split->run_counts &&
           (split->classes == 1 || (split->class_map <= split->after &&
                                    split->patches <= split->after - split->class_map));
}

static PyObject *split_payloads(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer memory, splits, classes, codes;
    unsigned int workers;
    if (!PyArg_ParseTuple(arguments, "y*y*y*w*I", &memory, &splits, &classes, &codes, &workers))
        return NULL;
    size_t count = (size_t)splits.len / sizeof(Split), class_count = (size_t)classes.len / sizeof(SplitClass);
    bool fits = workers > 0 && (size_t)splits.len == count * sizeof(Split) &&
                (size_t)classes.len == class_count * sizeof(SplitClass) &&
                (size_t)codes.len == class_count * sizeof(SplitCodes);
    for (size_t item = 0; fits && item < count; item++)
        fits = split_fits((const Split *)splits.buf + item, classes.buf, class_count, (uint64_t)memory.len);
    PyObject *result = NULL;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "sizes of memory, payloads, classes and results do not agree");
    else
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
    if (result != NULL) {
        Splitting all = {memory.buf, splits.buf, classes.buf, codes.buf, (uint8_t *)PyBytes_AsString(result)};
        WITHOUT_LOCK(memory.len, share_work(count, workers, split_item, &all));
    }
    PyBuffer_Release(&memory);
    PyBuffer_Release(&splits);
    PyBuffer_Release(&classes);
    PyBuffer_Release(&codes);
    return result;
}

PyMethodDef symbol_methods[] = {
    {"count_bytes", count_bytes, METH_VARARGS, NULL},
    {"measure_runs", measure_runs, METH_VARARGS, NULL},
    {"split_payloads", split_payloads, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

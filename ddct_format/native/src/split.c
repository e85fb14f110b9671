#include "split.h"

#include "kernels.h"

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

static bool one_fits(const Split *split, const SplitClass *classes, uint64_t class_count, uint64_t memory_size) {
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

bool splits_fit(const Splits *splits, size_t count, uint64_t memory_size) {
    bool fits = splits->rows.len == (Py_ssize_t)(count * sizeof(Split)) && splits->good.len == (Py_ssize_t)count &&
                splits->classes.len % (Py_ssize_t)sizeof(SplitClass) == 0;
    size_t class_count = (size_t)splits->classes.len / sizeof(SplitClass);
    fits = fits && splits->codes.len == (Py_ssize_t)(class_count * sizeof(SplitCodes));
    const Split *rows = splits->rows.buf;
    for (size_t item = 0; fits && item < count; item++)
        fits = rows[item].classes == 0 || one_fits(&rows[item], splits->classes.buf, class_count, memory_size);
    return fits;
}

void split_item(const Splits *splits, size_t item, const uint8_t *memory) {
    const Split *split = (const Split *)splits->rows.buf + item;
    ((uint8_t *)splits->good.buf)[item] =
        split->classes > 0 && split_one(memory + split->place, split,
                                        (const SplitClass *)splits->classes.buf + split->first_class,
                                        (SplitCodes *)splits->codes.buf + split->first_class);
}

int get_splits(PyObject *object, void *address) {
    Splits *splits = address;
    return PyArg_ParseTuple(object, "y*y*w*w*", &splits->rows, &splits->classes, &splits->codes, &splits->good);
}

void release_splits(Splits *splits) {
    PyBuffer_Release(&splits->rows);
    PyBuffer_Release(&splits->classes);
    PyBuffer_Release(&splits->codes);
    PyBuffer_Release(&splits->good);
}

static PyObject *split_payloads(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer memory;
    Splits splits;
    if (!PyArg_ParseTuple(arguments, "y*O&", &memory, get_splits, &splits))
        return NULL;
    size_t count = (size_t)splits.good.len;
    bool fits = splits_fit(&splits, count, (uint64_t)memory.len);
    if (fits)
        WITHOUT_LOCK(memory.len, for (size_t item = 0; item < count; item++) split_item(&splits, item, memory.buf));
    PyBuffer_Release(&memory);
    release_splits(&splits);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "sizes of memory, payloads, classes and results do not agree");
        return NULL;
    }
    Py_RETURN_NONE;
}

PyMethodDef split_methods[] = {
    {"split_payloads", split_payloads, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

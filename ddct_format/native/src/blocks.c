/* Which neighbouring sections of a payload share a block of a zstd frame: as ddct_format/encode/blocks.py explains and
 * does it, in integers, of 2^-16 bits where they are estimates. */
#include "arguments.h"

enum { FRACTION = 16, DIGITS = 12, RAW_BYTES = 3 };

typedef struct estimates {
    const int64_t *logarithms; /* of 0 to 4095 */
    const int64_t *overheads;  /* of 0 to 256 different bytes */
} estimates;

/* n log2 n, with the logarithm of the leading twelve digits. */
static int64_t weighted(const estimates *known, uint64_t number) {
    int shift = 0;
    while (number >> shift >> DIGITS)
        shift++;
    return (int64_t)number * (known->logarithms[number >> shift] + ((int64_t)shift << FRACTION));
}

/* Of the bytes of `left`, and of `right` unless that is NULL, in one block. */
static int64_t block_bits(const estimates *known, const uint64_t *left, const uint64_t *right) {
    uint64_t total = 0, largest = 0;
    int64_t of_each = 0;
    unsigned different = 0;
    for (int byte = 0; byte < 256; byte++) {
        uint64_t count = left[byte] + (right == NULL ? 0 : right[byte]);
        if (count == 0)
            continue;
        total += count;
        largest = count > largest ? count : largest;
        of_each += weighted(known, count);
        different++;
    }
    int64_t of_all = weighted(known, total);
    int64_t bits = of_all - of_each;
    if (2 * largest > total) /* a bit tells whether it is the most frequent byte, instead of less */
        bits += ((int64_t)total << FRACTION) -
                (of_all - weighted(known, largest) - weighted(known, total - largest));
    bits += known->overheads[different];
    int64_t raw = (int64_t)(8 * (total + RAW_BYTES)) << FRACTION;
    return bits < raw ? bits : raw;
}

typedef struct block {
    uint64_t counts[256];
    int64_t bits;
    int64_t with_next; /* both in one block */
    uint64_t first;    /* the section that it begins with */
} block;

/* Merges neighbours, the best pair first, as long as that saves bits; how many blocks are left. */
static size_t merge_blocks(const estimates *known, block *blocks, size_t *order, size_t count) {
    for (size_t i = 0; i < count; i++) {
        order[i] = i;
        blocks[i].bits = block_bits(known, blocks[i].counts, NULL);
        if (i + 1 < count)
            blocks[i].with_next = block_bits(known, blocks[i].counts, blocks[i + 1].counts);
    }
    while (count > 1) {
        size_t best = 0;
        int64_t most = INT64_MIN;
        for (size_t i = 0; i + 1 < count; i++) {
            int64_t saved = blocks[order[i]].bits + blocks[order[i + 1]].bits - blocks[order[i]].with_next;
            if (saved > most) {
                most = saved;
                best = i;
            }
        }
        if (most < 0)
            break;
        block *merged = &blocks[order[best]], *other = &blocks[order[best + 1]];
        for (int byte = 0; byte < 256; byte++)
            merged->counts[byte] += other->counts[byte];
        merged->bits = merged->with_next;
        count--;
        for (size_t i = best + 1; i < count; i++)
            order[i] = order[i + 1];
        if (best + 1 < count)
            merged->with_next = block_bits(known, merged->counts, blocks[order[best + 1]].counts);
        if (best > 0)
            blocks[order[best - 1]].with_next = block_bits(known, blocks[order[best - 1]].counts, merged->counts);
    }
    return count;
}

static bool ends_fit(const uint64_t *ends, size_t count, uint64_t size) {
    for (size_t i = 0; i < count; i++)
        if (ends[i] <= (i == 0 ? 0 : ends[i - 1]))
            return false;
    return count > 0 && ends[count - 1] == size;
}

static PyObject *list_firsts(const block *blocks, const size_t *order, size_t count) {
    PyObject *firsts = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; firsts != NULL && i < count; i++) {
        PyObject *first = PyLong_FromUnsignedLongLong(blocks[order[i]].first);
        if (first == NULL || PyList_SetItem(firsts, (Py_ssize_t)i, first) < 0)
            Py_CLEAR(firsts);
    }
    return firsts;
}

static PyObject *share_blocks(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data, ends, logarithms, overheads;
    if (!PyArg_ParseTuple(arguments, "y*y*y*y*", &data, &ends, &logarithms, &overheads))
        return NULL;
    PyObject *firsts = NULL;
    size_t count = (size_t)ends.len / sizeof(uint64_t);
    const uint64_t *end = ends.buf;
    block *blocks = NULL;
    size_t *order = NULL;
    if ((size_t)ends.len != count * sizeof(uint64_t) || !ends_fit(end, count, (uint64_t)data.len) ||
        logarithms.len != (1 << DIGITS) * (Py_ssize_t)sizeof(int64_t) ||
        overheads.len != 257 * (Py_ssize_t)sizeof(int64_t)) {
        PyErr_SetString(PyExc_ValueError, "sections must end one after another, the last with the data");
    } else if ((blocks = PyMem_Calloc(count, sizeof *blocks)) == NULL ||
               (order = PyMem_Calloc(count, sizeof *order)) == NULL) {
        PyErr_NoMemory();
    } else {
        const estimates known = {logarithms.buf, overheads.buf};
        size_t left;
        WITHOUT_LOCK(data.len, {
            for (size_t i = 0; i < count; i++) {
                uint64_t start = i == 0 ? 0 : end[i - 1];
                blocks[i].first = i;
                for (uint64_t place = start; place < end[i]; place++)
                    blocks[i].counts[((const uint8_t *)data.buf)[place]]++;
            }
            left = merge_blocks(&known, blocks, order, count);
        });
        firsts = list_firsts(blocks, order, left);
    }
    PyMem_Free(order);
    PyMem_Free(blocks);
    PyBuffer_Release(&overheads);
    PyBuffer_Release(&logarithms);
    PyBuffer_Release(&ends);
    PyBuffer_Release(&data);
    return firsts;
}

PyMethodDef block_methods[] = {
    {"share_blocks", share_blocks, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

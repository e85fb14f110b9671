/* Chunks of an archive (sections 4 and 6): checksum, frame, and raw bytes, many of them without the interpreter's lock.
 *
 * The zstd library is the system's, if there is one: the caller passes the addresses of its functions. Only what is
 * plainly right is taken; anything else is left to the careful path in Python, which says what is wrong with it. */
#include "arguments.h"
#include "parallel.h"
#include "split.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    void *(*create)(void);
    size_t (*destroy)(void *context);
    size_t (*decompress)(void *context, void *out, size_t room, const void *in, size_t size);
    size_t (*frame_size)(const void *in, size_t size);
} Zstd;

enum { MAX_WINDOW = 8 << 20 };

static uint32_t crc_tables[8][256];

static void fill_crc_tables(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
        crc_tables[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = crc_tables[table - 1][byte];
            crc_tables[table][byte] = before >> 8 ^ crc_tables[0][before & 255];
        }
}

static uint32_t crc32c_portable(const uint8_t *data, size_t size) {
    uint32_t crc = ~0u;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word = 0;
        for (int byte = 7; byte >= 0; byte--)
            word = word << 8 | data[byte];
        word ^= crc;
        crc = 0;
        for (int byte = 0; byte < 8; byte++)
            crc ^= crc_tables[7 - byte][word >> (8 * byte) & 255];
    }
    while (size--)
        crc = crc >> 8 ^ crc_tables[0][(crc ^ *data++) & 255];
    return ~crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse(const uint8_t *data, size_t size) {
    uint64_t crc = 0xFFFFFFFFu, word;
    for (; size >= 8; data += 8, size -= 8) {
        memcpy(&word, data, 8);
        crc = __builtin_ia32_crc32di(crc, word);
    }
    while (size--)
        crc = __builtin_ia32_crc32qi((uint32_t)crc, *data++);
    return ~(uint32_t)crc;
}
#endif

static uint32_t crc32c(const uint8_t *data, size_t size) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("sse4.2"))
        return crc32c_sse(data, size);
#endif
    return crc32c_portable(data, size);
}

/* Whether a frame header (RFC 8878, 3.1.1.1) states this content size, no dictionary and no larger window. */
static bool header_is_plain(const uint8_t *frame, size_t size, uint64_t raw_size) {
    if (size < 14 || memcmp(frame, "\x28\xB5\x2F\xFD", 4) != 0)
        return false;
    uint8_t flags = frame[4];
    bool single = flags >> 5 & 1;
    if (flags & 0x0B) /* dictionary, or the reserved bit */
        return false;
    const uint8_t *field = frame + 5;
    if (!single) {
        uint64_t base = 1ull << (10 + (*field >> 3));
        if (base + base / 8 * (*field & 7) > MAX_WINDOW)
            return false;
        field++;
    }
    int length = flags >> 6 == 0 ? single : 1 << (flags >> 6);
    uint64_t content = 0;
    for (int byte = length - 1; byte >= 0; byte--)
        content = content << 8 | field[byte];
    return length > 0 && content + (length == 2 ? 256 : 0) == raw_size;
}

/* Whether a chunk is as it was written, and either raw bytes or one plain frame that may be decompressed. */
static bool chunk_is_plain(const uint8_t *piece, uint64_t size, uint64_t raw_size, uint32_t checksum, const Zstd *zstd) {
    return size > 0 && size <= raw_size && crc32c(piece, size) == checksum &&
           (size == raw_size || (header_is_plain(piece, size, raw_size) && zstd->frame_size(piece, size) == size));
}

/* Consecutive chunks, whose bytes `stored` holds, into as many raw bytes; without `out` they are only checked. */
static bool inflate_all(void *context, const uint8_t *stored, const uint64_t *offsets, const uint32_t *checksums,
                        size_t count, uint64_t chunk_size, uint8_t *out, uint64_t out_size, const Zstd *zstd) {
    bool good = out == NULL || context != NULL;
    for (size_t chunk = 0; good && chunk < count; chunk++) {
        const uint8_t *piece = stored + (offsets[chunk] - offsets[0]);
        uint64_t size = offsets[chunk + 1] - offsets[chunk], begin = chunk * chunk_size;
        uint64_t raw_size = out_size - begin < chunk_size ? out_size - begin : chunk_size;
        good = chunk_is_plain(piece, size, raw_size, checksums[chunk], zstd);
        if (!good || out == NULL)
            continue;
        if (size == raw_size)
            memcpy(out + begin, piece, size);
        else
            good = zstd->decompress(context, out + begin, raw_size, piece, size) == raw_size;
    }
    return good;
}

static bool inflate_alone(const uint8_t *stored, const uint64_t *offsets, const uint32_t *checksums, size_t count,
                          uint64_t chunk_size, uint8_t *out, uint64_t out_size, const Zstd *zstd) {
    void *context = zstd->create();
    bool good = inflate_all(context, stored, offsets, checksums, count, chunk_size, out, out_size, zstd);
    if (context != NULL)
        zstd->destroy(context);
    return good;
}

static Zstd zstd_at(const unsigned long long *functions) {
    Zstd zstd;
    memcpy(&zstd.create, &functions[0], sizeof zstd.create);
    memcpy(&zstd.destroy, &functions[1], sizeof zstd.destroy);
    memcpy(&zstd.decompress, &functions[2], sizeof zstd.decompress);
    memcpy(&zstd.frame_size, &functions[3], sizeof zstd.frame_size);
    return zstd;
}

static PyObject *inflate_chunks(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer stored, offsets, checksums, out;
    unsigned long long chunk_size, functions[4];
    if (!PyArg_ParseTuple(arguments, "y*y*y*Kw*(KKKK)", &stored, &offsets, &checksums, &chunk_size, &out, &functions[0],
                          &functions[1], &functions[2], &functions[3]))
        return NULL;
    Zstd zstd = zstd_at(functions);
    size_t count = (size_t)checksums.len / 4;
    const uint64_t *places = offsets.buf;
    bool fits = chunk_size > 0 && (size_t)offsets.len == 8 * (count + 1) && (size_t)checksums.len == 4 * count &&
                count > 0 && (uint64_t)out.len > (count - 1) * chunk_size && (uint64_t)out.len <= count * chunk_size &&
                places[count] - places[0] == (uint64_t)stored.len;
    for (size_t chunk = 0; fits && chunk < count; chunk++)
        fits = places[chunk] <= places[chunk + 1];
    bool good = false;
    if (fits)
        WITHOUT_LOCK(out.len, good = inflate_alone(stored.buf, places, checksums.buf, count, chunk_size, out.buf,
                                                   (uint64_t)out.len, &zstd));
    PyBuffer_Release(&stored);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&checksums);
    PyBuffer_Release(&out);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "sizes of chunks, checksums and output do not agree");
        return NULL;
    }
    return PyBool_FromLong(good);
}

/* Payloads of a file. A piece is some consecutive chunks of one of them, read with one call. */
enum { PIECE_BYTES = 1 << 18 };

typedef struct {
    uint64_t first, place, size; /* chunk, byte of the output, raw bytes */
} Payload;

typedef struct {
    uint32_t payload, chunk; /* the first chunk, counted from the payload's own first */
} Piece;

typedef struct {
    int descriptor;
    const uint64_t *offsets;
    const uint32_t *checksums;
    const Payload *payloads;
    const Piece *pieces;
    uint64_t chunk_size, piece_chunks, room;
    bool as_stored;         /* the output takes the chunks as they lie in the file, one after another */
    uint8_t *out, *scratch; /* room bytes for each worker */
    void **contexts;
    uint8_t *bad;                 /* one for each piece */
    atomic_uint_fast32_t *missing; /* pieces of each payload */
    const Splits *splits;
    Zstd zstd;
} Inflation;

static uint64_t chunks_of(uint64_t size, uint64_t chunk_size) {
    return size / chunk_size + (size % chunk_size != 0);
}

static bool read_all(int descriptor, uint8_t *into, uint64_t size, uint64_t offset) {
    while (size > 0) {
        ssize_t done = pread(descriptor, into, size, (off_t)offset);
        if (done <= 0)
            return false;
        into += done, size -= (uint64_t)done, offset += (uint64_t)done;
    }
    return true;
}

static void inflate_piece(void *context, size_t worker, size_t item) {
    const Inflation *all = context;
    const Payload *payload = &all->payloads[all->pieces[item].payload];
    uint64_t begin = all->pieces[item].chunk, count = chunks_of(payload->size, all->chunk_size) - begin;
    count = count < all->piece_chunks ? count : all->piece_chunks;
    const uint64_t *offsets = all->offsets + payload->first + begin;
    uint8_t *stored = all->as_stored ? all->out + payload->place + (offsets[0] - all->offsets[payload->first])
                                     : all->scratch + worker * all->room;
    uint64_t start = begin * all->chunk_size, size = payload->size - start;
    size = size < count * all->chunk_size ? size : count * all->chunk_size;
    uint8_t *raw = all->as_stored ? NULL : all->out + payload->place + start;
    if (raw != NULL && all->contexts[worker] == NULL)
        all->contexts[worker] = all->zstd.create();
    all->bad[item] = !read_all(all->descriptor, stored, offsets[count] - offsets[0], offsets[0]) ||
                     !inflate_all(all->contexts[worker], stored, offsets, all->checksums + payload->first + begin,
                                  count, all->chunk_size, raw, size, &all->zstd);
    /* Who brings the last piece looks at the whole, while the others go on. */
    size_t number = all->pieces[item].payload;
    if (atomic_fetch_sub(&all->missing[number], 1) == 1 && all->splits != NULL)
        split_item(all->splits, number, all->out);
}

static void inflate_pieces(Inflation *all, size_t pieces, size_t workers) {
    share_work(pieces, workers, inflate_piece, all);
    for (size_t worker = 0; worker < workers; worker++)
        if (all->contexts[worker] != NULL)
            all->zstd.destroy(all->contexts[worker]);
}

/* Whether sizes and places agree; counts the pieces, and the most stored bytes of one. */
static bool measure_payloads(Inflation *all, size_t count, uint64_t chunks, uint64_t out_size, size_t *pieces) {
    *pieces = 0;
    for (size_t number = 0; number < count; number++) {
        const Payload *payload = &all->payloads[number];
        uint64_t own = chunks_of(payload->size, all->chunk_size);
        if (payload->first > chunks || own > chunks - payload->first || payload->place > out_size || own > UINT32_MAX)
            return false;
        const uint64_t *offsets = all->offsets + payload->first;
        for (uint64_t chunk = 0; chunk < own; chunk++)
            if (offsets[chunk] > offsets[chunk + 1] || offsets[chunk + 1] - offsets[chunk] > all->chunk_size)
                return false;
        if ((all->as_stored ? offsets[own] - offsets[0] : payload->size) > out_size - payload->place)
            return false;
        *pieces += (size_t)chunks_of(own, all->piece_chunks);
    }
    all->room = all->piece_chunks * all->chunk_size;
    return count <= UINT32_MAX;
}

static PyObject *inflate_payloads(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer offsets, checksums, payloads, out;
    Splits splits;
    unsigned long long chunk_size, functions[4];
    unsigned int workers;
    int descriptor, as_stored;
    if (!PyArg_ParseTuple(arguments, "iy*y*y*Kw*I(KKKK)O&p", &descriptor, &offsets, &checksums, &payloads, &chunk_size,
                          &out, &workers, &functions[0], &functions[1], &functions[2], &functions[3], get_splits,
                          &splits, &as_stored))
        return NULL;
    size_t count = (size_t)payloads.len / sizeof(Payload), pieces = 0, chunks = (size_t)checksums.len / 4;
    Inflation all = {.descriptor = descriptor, .offsets = offsets.buf, .checksums = checksums.buf,
                     .payloads = payloads.buf, .chunk_size = chunk_size, .out = out.buf, .zstd = zstd_at(functions),
                     .as_stored = as_stored != 0};
    bool fits = chunk_size > 0 && workers > 0 && (size_t)payloads.len == count * sizeof(Payload) &&
                (size_t)checksums.len == 4 * chunks && (size_t)offsets.len == 8 * (chunks + 1);
    if (fits) {
        all.piece_chunks = chunk_size < PIECE_BYTES ? PIECE_BYTES / chunk_size : 1;
        all.splits = splits.good.len > 0 && !as_stored ? &splits : NULL;
        fits = measure_payloads(&all, count, chunks, (uint64_t)out.len, &pieces) &&
               (all.splits == NULL || splits_fit(all.splits, count, (uint64_t)out.len));
    }
    PyObject *result = NULL;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "sizes of chunks, checksums, payloads and output do not agree");
    } else {
        workers = workers < pieces ? workers : (unsigned int)(pieces + !pieces);
        Piece *list = calloc(pieces + 1, sizeof(Piece));
        all.bad = calloc(pieces + 1, 1);
        all.missing = calloc(count + 1, sizeof *all.missing);
        all.contexts = calloc(workers, sizeof(void *));
        all.scratch = malloc(as_stored ? 1 : workers * all.room);
        if (list != NULL && all.bad != NULL && all.missing != NULL && all.contexts != NULL && all.scratch != NULL) {
            size_t piece = 0;
            for (uint32_t number = 0; number < count; number++) {
                uint64_t own = chunks_of(all.payloads[number].size, chunk_size);
                atomic_init(&all.missing[number], (uint32_t)chunks_of(own, all.piece_chunks));
                for (uint64_t chunk = 0; chunk < own; chunk += all.piece_chunks)
                    list[piece++] = (Piece){number, (uint32_t)chunk};
            }
            all.pieces = list;
            WITHOUT_LOCK(UINT64_MAX, inflate_pieces(&all, pieces, workers));
            result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
        } else {
            PyErr_NoMemory();
        }
        if (result != NULL) {
            char *good = PyBytes_AsString(result);
            memset(good, 1, count);
            for (size_t piece = 0; piece < pieces; piece++)
                if (all.bad[piece]) {
                    good[list[piece].payload] = 0;
                    if (all.splits != NULL)
                        ((char *)splits.good.buf)[list[piece].payload] = 0;
                }
        }
        free(list);
        free(all.bad);
        free(all.missing);
        free(all.contexts);
        free(all.scratch);
    }
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&checksums);
    PyBuffer_Release(&payloads);
    PyBuffer_Release(&out);
    release_splits(&splits);
    return result;
}

static PyObject *crc32c_of(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data;
    int portable;
    if (!PyArg_ParseTuple(arguments, "y*p", &data, &portable))
        return NULL;
    uint32_t crc = portable ? crc32c_portable(data.buf, (size_t)data.len) : crc32c(data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

PyMethodDef inflate_methods[] = {
    {"inflate_chunks", inflate_chunks, METH_VARARGS, NULL},
    {"inflate_payloads", inflate_payloads, METH_VARARGS, NULL},
    {"crc32c", crc32c_of, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

void prepare_checksums(void) { fill_crc_tables(); }

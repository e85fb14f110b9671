/* The C reader under libFuzzer: see README.md. Inputs are those of seeds.py --raw: u32 length of the archive, the
 * archive, then the bytes of the base tensors, one after the other in the order in which the archive needs them. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ddct.h"

enum { BUDGET = 64 << 20, PREAMBLE = 64 };

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t read_u32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void write_u32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t crc32c(const uint8_t *data, size_t size) {
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static size_t archive_size(const uint8_t *data, size_t size) {
    size_t stated = size < 4 ? 0 : read_u32(data);
    return stated > size - 4 ? size - 4 : stated;
}

/* Sizes and checksums that match what the archive holds, so that mutations reach the code behind the checks. */
static void reseal(uint8_t *archive, size_t size) {
    if (size < PREAMBLE)
        return;
    size_t metadata = read_u32(archive + 40), table = read_u32(archive + 52);
    if (metadata > size - PREAMBLE || table > size - PREAMBLE - metadata)
        return;
    uint8_t *entries = archive + PREAMBLE + metadata;
    size_t position = PREAMBLE + metadata + table;
    for (size_t entry = 0; entry + 8 <= table; entry += 8) {
        size_t stored = read_u32(entries + entry);
        if (stored > size - position)
            stored = size - position;
        write_u32(entries + entry + 4, crc32c(archive + position, stored));
        position += stored;
    }
    write_u32(archive + 32, (uint32_t)size);
    write_u32(archive + 36, 0);
    write_u32(archive + 48, crc32c(archive + PREAMBLE, metadata));
    write_u32(archive + 56, crc32c(entries, table));
    write_u32(archive + 60, crc32c(archive, 60));
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    (void)seed;
    size = LLVMFuzzerMutate(data, size, max_size);
    if (size >= 4)
        reseal(data + 4, archive_size(data, size));
    return size;
}

static void decode(const ddct_archive *archive, uint32_t index, const uint8_t **base, size_t *base_size) {
    ddct_tensor tensor;
    if (ddct_get_tensor(archive, index, &tensor) != DDCT_OK)
        abort(); /* an index below the number of tensors always names one */
    if (tensor.bytes > BUDGET || tensor.base_bytes > *base_size)
        return;
    uint8_t *out = malloc(tensor.bytes + 1);
    ddct_error error;
    if (out != NULL)
        ddct_decode(archive, index, 0, *base, tensor.base_bytes, out, tensor.bytes, &error);
    if (out != NULL && tensor.view_rows > 1 && tensor.bytes != 0) {
        uint64_t row = tensor.bytes / tensor.view_rows, base_row = tensor.base_bytes / tensor.view_rows;
        ddct_decode_rows(archive, index, 0, 1, 1, *base + base_row, base_row, out, row, &error);
    }
    free(out);
    *base += tensor.base_bytes;
    *base_size -= tensor.base_bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4)
        return 0;
    size_t length = archive_size(data, size);
    const uint8_t *base = data + 4 + length;
    size_t base_size = size - 4 - length;
    ddct_options options = {.budget = BUDGET};
    ddct_archive *archive = NULL;
    ddct_error error;
    if (ddct_open_memory(data + 4, length, &options, &archive, &error) != DDCT_OK)
        return 0;
    ddct_summary summary;
    ddct_get_summary(archive, &summary);
    ddct_verify(archive, &error);
    for (uint32_t i = 0; i < summary.tensors && i < 64; i++)
        decode(archive, i, &base, &base_size);
    ddct_close(archive);
    return 0;
}

/* CRC-32C and SHA-256 over plain buffers. */
#ifndef DDCT_DIGEST_H
#define DDCT_DIGEST_H

#include "ddct.h"

uint32_t ddct_crc32c(const void *data, size_t size);

typedef struct ddct_sha256 {
    uint32_t state[8];
    uint64_t total;
    size_t pending; /* bytes of `block` that wait for the rest of it */
    uint8_t block[64];
} ddct_sha256;

void ddct_sha256_begin(ddct_sha256 *hash);
void ddct_sha256_update(ddct_sha256 *hash, const void *data, size_t size);
void ddct_sha256_end(ddct_sha256 *hash, uint8_t digest[32]);

#endif

/* SHA-256 (FIPS 180-4) of sixteen leaves at once, one in each 32-bit lane; included by kernels_body.h. About twice
 * as fast as the processor's instructions for SHA-256 are on one leaf. */
static const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
static const uint32_t sha256_start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

#define ADD _mm512_add_epi32
#define XOR3(A, B, C) _mm512_ternarylogic_epi32(A, B, C, 0x96)
#define SUM0(X) XOR3(_mm512_ror_epi32(X, 2), _mm512_ror_epi32(X, 13), _mm512_ror_epi32(X, 22))
#define SUM1(X) XOR3(_mm512_ror_epi32(X, 6), _mm512_ror_epi32(X, 11), _mm512_ror_epi32(X, 25))
#define GAMMA0(X) XOR3(_mm512_ror_epi32(X, 7), _mm512_ror_epi32(X, 18), _mm512_srli_epi32(X, 3))
#define GAMMA1(X) XOR3(_mm512_ror_epi32(X, 17), _mm512_ror_epi32(X, 19), _mm512_srli_epi32(X, 10))
#define CHOICE(E, F, G) _mm512_ternarylogic_epi32(E, F, G, 0xCA)
#define MAJORITY(A, B, C) _mm512_ternarylogic_epi32(A, B, C, 0xE8)

/* Rows become columns. */
INLINE void transpose_words(__m512i w[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(w[i], w[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(w[i], w[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        w[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        w[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        w[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        w[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int half = 0; half < 16; half += 8)
        for (int i = half; i < half + 4; i++) {
            t[i] = _mm512_shuffle_i32x4(w[i], w[i + 4], 0x88);
            t[i + 4] = _mm512_shuffle_i32x4(w[i], w[i + 4], 0xDD);
        }
    for (int i = 0; i < 8; i++) {
        w[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        w[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xDD);
    }
}

/* Words as bytes in memory are big-endian; this turns them round, either way. */
INLINE __m512i turn_bytes(__m512i words) {
    return _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1,
                                                                          2, 3)));
}

#define ROUND(A, B, C, D, E, F, G, H, I)                                                                            \
    do {                                                                                                            \
        __m512i first = ADD(ADD(H, ADD(w[I], _mm512_set1_epi32((int)sha256_constants[r + (I)]))),                   \
                            ADD(SUM1(E), CHOICE(E, F, G)));                                                         \
        D = ADD(D, first);                                                                                          \
        H = ADD(first, ADD(SUM0(A), MAJORITY(A, B, C)));                                                            \
        if (r < 48)                                                                                                 \
            w[I] = ADD(ADD(w[I], w[((I) + 9) & 15]), ADD(GAMMA0(w[((I) + 1) & 15]), GAMMA1(w[((I) + 14) & 15])));   \
    } while (0)

/* Add blocks of 64 bytes of the leaves at `from[0]` to `from[15]` to their states. */
static void add_blocks(__m512i state[8], const uint8_t *const from[16], size_t blocks, size_t step) {
    __m512i a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6],
            h = state[7];
    for (size_t n = 0; n < blocks; n++) {
        __m512i w[16], before[8] = {a, b, c, d, e, f, g, h};
        for (int i = 0; i < 16; i++)
            w[i] = _mm512_loadu_si512(from[i] + step * n);
        transpose_words(w);
        for (int i = 0; i < 16; i++)
            w[i] = turn_bytes(w[i]);
        for (int r = 0; r < 64; r += 16) {
            ROUND(a, b, c, d, e, f, g, h, 0);
            ROUND(h, a, b, c, d, e, f, g, 1);
            ROUND(g, h, a, b, c, d, e, f, 2);
            ROUND(f, g, h, a, b, c, d, e, 3);
            ROUND(e, f, g, h, a, b, c, d, 4);
            ROUND(d, e, f, g, h, a, b, c, 5);
            ROUND(c, d, e, f, g, h, a, b, 6);
            ROUND(b, c, d, e, f, g, h, a, 7);
            ROUND(a, b, c, d, e, f, g, h, 8);
            ROUND(h, a, b, c, d, e, f, g, 9);
            ROUND(g, h, a, b, c, d, e, f, 10);
            ROUND(f, g, h, a, b, c, d, e, 11);
            ROUND(e, f, g, h, a, b, c, d, 12);
            ROUND(d, e, f, g, h, a, b, c, 13);
            ROUND(c, d, e, f, g, h, a, b, 14);
            ROUND(b, c, d, e, f, g, h, a, 15);
        }
        a = ADD(a, before[0]);
        b = ADD(b, before[1]);
        c = ADD(c, before[2]);
        d = ADD(d, before[3]);
        e = ADD(e, before[4]);
        f = ADD(f, before[5]);
        g = ADD(g, before[6]);
        h = ADD(h, before[7]);
    }
    const __m512i after[8] = {a, b, c, d, e, f, g, h};
    memcpy(state, after, sizeof after);
}

/* The digests of `count` leaves of `size` bytes, a multiple of 64, that follow one another. */
static void leaf_digests(const uint8_t *data, size_t size, size_t count, uint8_t *digests) {
    uint8_t padding[64] = {0x80};
    for (int i = 0; i < 8; i++)
        padding[56 + i] = (uint8_t)((uint64_t)size * 8 >> (56 - 8 * i));
    for (size_t first = 0; first < count; first += 16) {
        const size_t here = count - first < 16 ? count - first : 16;
        const uint8_t *from[16], *ends[16];
        for (size_t lane = 0; lane < 16; lane++) { /* lanes without a leaf repeat the last one */
            from[lane] = data + (first + (lane < here ? lane : here - 1)) * size;
            ends[lane] = padding;
        }
        __m512i state[8], words[16];
        for (int i = 0; i < 8; i++)
            state[i] = _mm512_set1_epi32((int)sha256_start[i]);
        add_blocks(state, from, size / 64, 64);
        add_blocks(state, ends, 1, 0);
        for (int i = 0; i < 16; i++)
            words[i] = turn_bytes(state[i % 8]);
        transpose_words(words);
        for (size_t lane = 0; lane < here; lane++)
            memcpy(digests + (first + lane) * 32, &words[lane], 32);
    }
}

#undef ADD
#undef XOR3
#undef SUM0
#undef SUM1
#undef GAMMA0
#undef GAMMA1
#undef CHOICE
#undef MAJORITY
#undef ROUND

/* See run_vectors.h. */
#include "run_vectors.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")
#endif

static inline __m512i count_up(void) {
    uint8_t lanes[64];
    for (int l = 0; l < 64; l++)
        lanes[l] = (uint8_t)l;
    return _mm512_loadu_si512(lanes);
}

size_t pack_runs_vbmi2(const uint8_t *symbols, size_t values, const uint8_t *class_map, size_t patches, int number,
                       uint8_t *runs, uint8_t *others) {
    const __m512i lanes = count_up(), one = _mm512_set1_epi8(1), before = _mm512_sub_epi8(lanes, one);
    uint8_t *run = runs;
    size_t position = 0, next = 0; /* of the class's symbols: where the patch begins, and what no run has reached yet */
    for (size_t i = 0; i < patches; i++) {
        if (class_map[i] != number)
            continue;
        const uint8_t *patch = symbols + i * values;
        for (size_t v = 0; v < values; v += 64) {
            const __m512i all = _mm512_loadu_si512(patch + v);
            const __mmask64 mask = _mm512_test_epi8_mask(all, all);
            if (!mask)
                continue;
            const size_t first = position + v, count = (size_t)_mm_popcnt_u64(mask);
            /* Where each stands, less where the one before it stands, less one. */
            const __m512i places = _mm512_maskz_compress_epi8(mask, lanes);
            const __m512i gaps =
                _mm512_sub_epi8(_mm512_sub_epi8(places, _mm512_permutexvar_epi8(before, places)), one);
            size_t gap = first + (size_t)__builtin_ctzll(mask) - next;
            next = first + 64 - (size_t)__builtin_clzll(mask);
            for (; gap >= 255; gap -= 255)
                *run++ = 255;
            _mm512_storeu_si512(run, gaps);
            *run = (uint8_t)gap;
            run += count;
            _mm512_storeu_si512(others, _mm512_sub_epi8(_mm512_maskz_compress_epi8(mask, all), one));
            others += count;
        }
        position += values;
    }
    return (size_t)(run - runs);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

/* A patch's values as symbols, with what choosing levels and classes takes; included by encode_quantise_body.h. */

#if defined(USE_AVX512)
/* Quantise a patch's values; its activity. 64 at a time: counts are of bytes, and of their masks. */
ALWAYS_INLINE int32_t quantise_patch(const float *values, uint32_t count, float rounding, uint8_t *symbols,
                                     running_sums *sums, int32_t *histogram, double *many) {
    const __m512i gather_parts = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i zero = _mm512_setzero_si512();
    __m512i activity = zero, largest = zero;
    __m512 energy = (__m512)sums->energy, small = (__m512)sums->small, few[3];
    int32_t found[3] = {0, 0, 0}, others = 0;
    uint64_t rare[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH / 64];
    for (int m = 0; m < 3; m++)
        few[m] = (__m512)sums->few[m];
    for (uint32_t i = 0; i < count; i += 64) {
        __m512i parts[4];
        for (int p = 0; p < 4; p++) {
            __m512 value = _mm512_loadu_ps(values + i + 16 * p), size = _mm512_abs_ps(value);
            __m512 shifted = _mm512_min_ps(_mm512_add_ps(size, _mm512_set1_ps(rounding)), _mm512_set1_ps(127.0f));
            __m512i magnitude = _mm512_cvttps_epi32(shifted);
            __mmask16 other = _mm512_test_epi32_mask(magnitude, magnitude);
            __mmask16 above = _mm512_mask_cmp_ps_mask(other, value, _mm512_setzero_ps(), _CMP_GT_OQ);
            __m512i symbol = _mm512_add_epi32(magnitude, magnitude);
            parts[p] = _mm512_mask_sub_epi32(symbol, above, symbol, _mm512_set1_epi32(1));
            energy = _mm512_fmadd_ps(size, size, energy);
            small = _mm512_mask_add_ps(small, _knot_mask16(other), small, size);
            for (int m = 0; m < 3; m++)
                few[m] = _mm512_mask_add_ps(few[m], _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(m + 1)), few[m], size);
        }
        __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(parts[0], parts[1]), _mm512_packs_epi32(parts[2], parts[3]));
        bytes = _mm512_permutexvar_epi32(gather_parts, bytes);
        _mm512_storeu_si512(symbols + i, bytes);
        __m512i magnitudes = _mm512_avg_epu8(bytes, zero);
        activity = _mm512_add_epi64(activity, _mm512_sad_epu8(magnitudes, zero));
        largest = _mm512_max_epu8(largest, magnitudes);
        for (int m = 0; m < 3; m++)
            found[m] += __builtin_popcountll(_mm512_cmpeq_epi8_mask(magnitudes, _mm512_set1_epi8((char)(m + 1))));
        rare[i / 64] = _mm512_cmpgt_epu8_mask(magnitudes, _mm512_set1_epi8(3));
    }
    sums->energy = (floats)energy;
    sums->small = (floats)small;
    for (int m = 0; m < 3; m++) {
        sums->few[m] = (floats)few[m];
        histogram[m + 1] = found[m];
        others += found[m];
    }
    int32_t top = 3;
    if (_mm512_cmpgt_epu8_mask(largest, _mm512_set1_epi8(3))) {
        uint8_t lanes[64];
        memcpy(lanes, &largest, sizeof lanes);
        for (int l = 0; l < 64; l++)
            top = lanes[l] > top ? lanes[l] : top;
        memset(histogram + 4, 0, ((size_t)top - 3) * sizeof *histogram);
        for (uint32_t i = 0; i < count; i += 64)
            for (uint64_t mask = rare[i / 64]; mask; mask &= mask - 1) {
                uint32_t place = i + (uint32_t)__builtin_ctzll(mask);
                int magnitude = (symbols[place] + 1) / 2;
                histogram[magnitude]++;
                many[magnitude] += (double)fabsf(values[place]);
                others++;
            }
    }
    histogram[0] = (int32_t)count - others;
    histogram[MOST_MAGNITUDES] = top;
    return (int32_t)_mm512_reduce_add_epi64(activity);
}
#else
/* Which byte of memory the lowest bit set belongs to. */
ALWAYS_INLINE uint32_t place_of_bit(uint64_t word) {
    const uint32_t byte = (uint32_t)__builtin_ctzll(word) / 8;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return 7 - byte;
#else
    return byte;
#endif
}

/* Quantise a patch's values; its activity. */
ALWAYS_INLINE int32_t quantise_patch(const float *values, uint32_t count, float rounding, uint8_t *symbols,
                                     running_sums *sums, int32_t *histogram, double *many) {
    integers activity = {0}, largest = {0}, found[3] = {{0}, {0}, {0}};
    for (uint32_t i = 0; i < count; i += WIDE) {
        floats value = load_floats(values + i), size = absolute(value);
        floats shifted = size + every(rounding);
        shifted = choose(shifted > every(127.0f), every(127.0f), shifted);
        integers magnitude = __builtin_convertvector(shifted, integers);
        integers above = (value > every(0.0f)) & (magnitude != 0);
        octets symbol = __builtin_convertvector(2 * magnitude + above, octets);
        memcpy(symbols + i, &symbol, sizeof symbol);
        activity += magnitude;
        integers larger = magnitude > largest;
        largest = (magnitude & larger) | (largest & ~larger);
        sums->energy += size * size;
        sums->small += (floats)((integers)size & (magnitude == 0));
        for (int m = 0; m < 3; m++) {
            integers here = magnitude == m + 1;
            found[m] -= here;
            sums->few[m] += (floats)((integers)size & here);
        }
    }
    int32_t top = 0, others = 0;
    for (int l = 0; l < WIDE; l++)
        top = largest[l] > top ? largest[l] : top;
    for (int m = 0; m < 3; m++) {
        histogram[m + 1] = sum_integers(found[m]);
        others += histogram[m + 1];
    }
    for (int32_t m = 4; m <= top; m++)
        histogram[m] = 0;
    if (top > 3)
        for (uint32_t i = 0; i < count; i += 8) {
            uint64_t word;
            memcpy(&word, symbols + i, sizeof word);
            /* The highest bit of each byte above 6. */
            word = (((word & 0x7F7F7F7F7F7F7F7Full) + 0x7979797979797979ull) | word) & 0x8080808080808080ull;
            for (; word; word &= word - 1) {
                uint32_t place = i + place_of_bit(word);
                int magnitude = (symbols[place] + 1) / 2;
                histogram[magnitude]++;
                many[magnitude] += (double)fabsf(values[place]);
                others++;
            }
        }
    histogram[0] = (int32_t)count - others;
    histogram[MOST_MAGNITUDES] = top;
    return sum_integers(activity);
}
#endif

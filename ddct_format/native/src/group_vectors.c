/* See group_vectors.h. */
#include "group_vectors.h"

#include <string.h>

bool narrow_groups_of(const uint8_t *group_of, size_t contexts, narrow_groups *table) {
    size_t first = 0, last = contexts - 1;
    while (first < last && group_of[first] == group_of[first + 1])
        first++;
    while (last > first && group_of[last] == group_of[last - 1])
        last--;
    if (last - first >= sizeof table->groups)
        return false;
    uint8_t largest = 0;
    for (size_t i = 0; i < sizeof table->groups; i++) {
        table->groups[i] = group_of[first + i < last ? first + i : last];
        largest = table->groups[i] > largest ? table->groups[i] : largest;
    }
    table->first = (uint16_t)first;
    table->count = (uint16_t)(largest + 1);
    return true;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,avx512vbmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,avx512vbmi2")
#endif

enum { LANES = 64, CLASS = 8 /* groups whose presence a byte tells */ };

static inline __m512i load(const void *from) { return _mm512_loadu_si512(from); }

/* Lanes of the vector that begins with element `i`. */
static inline __mmask64 lanes(size_t count, size_t i) {
    return count - i < LANES ? ((uint64_t)1 << (count - i)) - 1 : ~(uint64_t)0;
}

/* The groups of two vectors of contexts less the first. */
static inline __m512i look_up(const narrow_groups *table, __m512i a, __m512i b) {
    const __m512i last = _mm512_set1_epi16(255), halves = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    const __m512i low0 = load(table->groups), low1 = load(table->groups + 64);
    const __m512i high0 = load(table->groups + 128), high1 = load(table->groups + 192);
    __m512i place = _mm512_packus_epi16(_mm512_min_epu16(a, last), _mm512_min_epu16(b, last));
    place = _mm512_permutexvar_epi64(halves, place);
    __m512i low = _mm512_permutex2var_epi8(low0, place, low1), high = _mm512_permutex2var_epi8(high0, place, high1);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(place), low, high);
}

static void find_groups(const narrow_groups *table, const uint16_t *contexts, uint32_t row_key, size_t count,
                        uint8_t *groups) {
    const __m512i first = _mm512_set1_epi16((short)table->first), key = _mm512_set1_epi16((short)row_key);
    for (size_t i = 0; i < count; i += LANES) {
        const __m512i a = _mm512_add_epi16(load(contexts + i), key);
        const __m512i b = _mm512_add_epi16(load(contexts + i + LANES / 2), key);
        _mm512_storeu_si512(groups + i, look_up(table, _mm512_subs_epu16(a, first), _mm512_subs_epu16(b, first)));
    }
    memset(groups + count, groups[0], -count % LANES);
}

static void find_groups_16(const narrow_groups *table, const ddct_ulp_code *code, const uint8_t *patterns,
                           uint32_t row_key, const uint8_t *column_keys, size_t count, uint8_t *groups) {
    const __m512i first = _mm512_set1_epi16((short)table->first), one = _mm512_set1_epi16(1);
    const __m512i largest = _mm512_set1_epi16((short)code->exponent_mask);
    const __m512i start = _mm512_set1_epi16((short)(4 * code->exponent_mask + row_key));
    const __m128i fraction = _mm_cvtsi32_si128((int)code->fraction);
    for (size_t i = 0; i < count; i += LANES) {
        const uint64_t valid = lanes(count, i);
        __m512i places[2];
        for (int half = 0; half < 2; half++) {
            const __mmask32 used = (uint32_t)(valid >> LANES / 2 * half);
            const size_t from = i + LANES / 2 * (size_t)half;
            const __m512i pattern = _mm512_maskz_loadu_epi16(used, patterns + 2 * from);
            const __m512i exponent = _mm512_and_si512(_mm512_srl_epi16(pattern, fraction), largest);
            __m512i context = _mm512_sub_epi16(start, _mm512_slli_epi16(_mm512_max_epu16(exponent, one), 2));
            if (column_keys != NULL)
                context = _mm512_add_epi16(context, _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(used, column_keys + from)));
            places[half] = _mm512_subs_epu16(context, first);
        }
        _mm512_storeu_si512(groups + i, look_up(table, places[0], places[1]));
    }
    memset(groups + count, groups[0], -count % LANES);
}

static size_t list_groups(const narrow_groups *table, const uint8_t *groups, size_t count, uint8_t *present) {
    const __m512i bits = _mm512_set1_epi64((long long)0x8040201008040201), low = _mm512_set1_epi8(CLASS - 1);
    size_t found = 0;
    for (int begin = 0; begin < table->count; begin += CLASS * CLASS) {
        __m512i seen[CLASS] = {_mm512_setzero_si512()};
        for (int class = 1; class < CLASS; class++)
            seen[class] = _mm512_setzero_si512();
        for (size_t i = 0; i < count; i += LANES) {
            __m512i group = _mm512_sub_epi8(load(groups + i), _mm512_set1_epi8((char)begin));
            __m512i bit = _mm512_shuffle_epi8(bits, _mm512_and_si512(group, low));
            __m512i number = _mm512_andnot_si512(low, group);
            for (int class = 0; class < CLASS; class++)
                seen[class] = _mm512_mask_or_epi64(
                    seen[class], 0xFF, seen[class],
                    _mm512_maskz_mov_epi8(_mm512_cmpeq_epi8_mask(number, _mm512_set1_epi8((char)(class * CLASS))), bit));
        }
        for (int class = 0; class < CLASS; class++) {
            uint64_t word = (uint64_t)_mm512_reduce_or_epi64(seen[class]);
            word |= word >> 32;
            word |= word >> 16;
            word |= word >> 8;
            for (uint32_t left = word & 255; left; left &= left - 1)
                present[found++] = (uint8_t)(begin + class * CLASS + __builtin_ctz(left));
        }
    }
    return found;
}

static void count_groups(const narrow_groups *table, const uint8_t *groups, size_t count, uint64_t *counts) {
    uint8_t present[256];
    size_t found = list_groups(table, groups, count, present);
    for (size_t n = 0; n < found; n++) {
        const __m512i group = _mm512_set1_epi8((char)present[n]);
        uint64_t members = 0;
        for (size_t i = 0; i < count; i += LANES)
            members += (uint64_t)_mm_popcnt_u64(_mm512_cmpeq_epi8_mask(load(groups + i), group));
        counts[present[n]] += members;
    }
    counts[groups[0]] -= -count % LANES; /* what the last vector was filled up with */
}

/* The numbers of the lanes of `wanted`, of the vector that begins with element `i`; how many they are. */
static inline size_t list_lanes(uint64_t wanted, size_t i, uint16_t *out) {
    static const uint8_t numbers[LANES] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                           16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                           32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                           48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    size_t found = 0;
    if (wanted == 0)
        return 0;
    for (int half = 0; half < 2; half++) {
        const uint32_t members = (uint32_t)(wanted >> LANES / 2 * half);
        const __m512i number = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(numbers + LANES / 2 * half)));
        const __m512i placed = _mm512_add_epi16(number, _mm512_set1_epi16((short)i));
        _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi16(members, placed));
        found += (size_t)_mm_popcnt_u32(members);
    }
    return found;
}

static size_t take_symbols(const narrow_groups *table, const uint8_t *groups, size_t count, uint32_t first_long,
                           const uint8_t **next, uint8_t *symbols, uint16_t *long_ones) {
    uint8_t present[256];
    uint8_t wanted[256][LANES] __attribute__((aligned(64)));
    const uint8_t *places[256];
    size_t found = list_groups(table, groups, count, present), longs = 0;
    for (size_t n = 0; n < found; n++) {
        places[n] = next[present[n]];
        _mm512_store_si512(wanted[n], _mm512_set1_epi8((char)present[n]));
    }
    const __m512i least = _mm512_set1_epi8((char)first_long);
    for (size_t i = 0; i < count; i += LANES) {
        const __m512i group = load(groups + i);
        __m512i symbol = _mm512_setzero_si512();
        for (size_t n = 0; n < found; n++) {
            const uint64_t members = _mm512_cmpeq_epi8_mask(group, _mm512_load_si512(wanted[n]));
            symbol = _mm512_mask_expand_epi8(symbol, members, load(places[n]));
            places[n] += _mm_popcnt_u64(members);
        }
        _mm512_storeu_si512(symbols + i, symbol);
        if (first_long < 256)
            longs += list_lanes(lanes(count, i) & _mm512_cmpge_epu8_mask(symbol, least), i, long_ones + longs);
    }
    for (size_t n = 0; n < found; n++)
        next[present[n]] = places[n];
    next[groups[0]] -= -count % LANES; /* what the last vector was filled up with */
    return longs;
}

static size_t put_symbols(const narrow_groups *table, const uint8_t *groups, const uint8_t *symbols, size_t count,
                          uint8_t (*waiting)[WAITING_SYMBOLS], uint32_t *counts, uint8_t *present) {
    const size_t found = list_groups(table, groups, count, present);
    for (size_t n = 0; n < found; n++) {
        const __m512i wanted = _mm512_set1_epi8((char)present[n]);
        uint8_t *out = waiting[present[n]] + counts[present[n]];
        for (size_t i = 0; i < count; i += LANES) {
            const uint64_t members = _mm512_cmpeq_epi8_mask(load(groups + i), wanted);
            _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(members, load(symbols + i)));
            out += _mm_popcnt_u64(members);
        }
        counts[present[n]] = (uint32_t)(out - waiting[present[n]]);
    }
    counts[groups[0]] -= (uint32_t)(-count % LANES); /* what the last vector was filled up with */
    return found;
}

static size_t list_long_symbols(const uint8_t *symbols, size_t count, uint32_t first_long, uint16_t *long_ones) {
    const __m512i least = _mm512_set1_epi8((char)first_long);
    size_t found = 0;
    for (size_t i = 0; first_long < 256 && i < count; i += LANES)
        found += list_lanes(lanes(count, i) & _mm512_cmpge_epu8_mask(load(symbols + i), least), i, long_ones + found);
    return found;
}

/* Places in the order of the values, from the most negative one on, as in section 7.3.3, but counted from -2^15. */
static inline __m512i place_of(__m512i pattern, __m512i half, __mmask32 *negative) {
    *negative = _mm512_cmpge_epu16_mask(pattern, half);
    const __m512i below = _mm512_sub_epi16(half, _mm512_set1_epi16(1));
    return _mm512_xor_si512(_mm512_mask_sub_epi16(pattern, *negative, below, pattern), _mm512_set1_epi16((short)0x8000));
}

static bool store_targets_16(const ddct_ulp_code *code, const uint8_t *patterns, const uint16_t *magnitudes,
                             const uint8_t *symbols, size_t count, uint8_t *out) {
    const __m512i one = _mm512_set1_epi16(1), top = _mm512_set1_epi16((short)0x8000);
    const __m512i half = _mm512_set1_epi16((short)(1u << (code->width - 1))), below = _mm512_sub_epi16(half, one);
    const __m512i least = _mm512_sub_epi16(top, half), most = _mm512_add_epi16(half, below);
    const __m128i shift = _mm_cvtsi32_si128((int)code->shift);
    __mmask32 outside = 0;
    for (size_t i = 0; i < count; i += LANES / 2) {
        const __mmask32 valid = (uint32_t)lanes(count, i);
        const __m512i pattern = _mm512_maskz_loadu_epi16(valid, patterns + 2 * i), magnitude = load(magnitudes + i);
        const __m512i symbol = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(symbols + i)));
        __mmask32 negative;
        const __m512i from = place_of(_mm512_srl_epi16(pattern, shift), half, &negative);
        const __mmask32 down = negative ^ _mm512_test_epi16_mask(symbol, one);
        const __m512i to = _mm512_mask_sub_epi16(_mm512_add_epi16(from, magnitude), down, from, magnitude);
        outside |= valid & ((down & _mm512_cmplt_epu16_mask(from, magnitude)) | (~down & _mm512_cmplt_epu16_mask(to, from)) |
                            _mm512_cmpgt_epu16_mask(_mm512_sub_epi16(to, least), most));
        __m512i target = _mm512_xor_si512(to, top);
        target = _mm512_mask_sub_epi16(target, _mm512_movepi16_mask(target), below, target);
        _mm512_mask_storeu_epi16(out + 2 * i, valid, _mm512_sll_epi16(target, shift));
    }
    return outside == 0;
}

/* How many of 16 bits are 0 above the highest one: 16 for 0. */
static inline __m512i leading_zeros_16(__m512i values) {
    const __m512i above = _mm512_set1_epi32(16);
    const __m256i low = _mm512_castsi512_si256(values), high = _mm512_extracti64x4_epi64(values, 1);
    const __m512i a = _mm512_sub_epi32(_mm512_lzcnt_epi32(_mm512_cvtepu16_epi32(low)), above);
    const __m512i b = _mm512_sub_epi32(_mm512_lzcnt_epi32(_mm512_cvtepu16_epi32(high)), above);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
}

void ulp_elements_16_vbmi2(const ulp_pair *pair, size_t first, size_t count, int32_t row_key, const uint8_t *col_keys,
                           ulp_piece *piece) {
    enum { ELEMENTS = LANES / 2 };
    const uint8_t *before = pair->before + 2 * first, *target = pair->target + 2 * first;
    const __m128i fraction = _mm_cvtsi32_si128((int)pair->fraction), shift = _mm_cvtsi32_si128((int)pair->shift);
    const __m128i mantissa = _mm_cvtsi32_si128((int)pair->mantissa);
    const __m512i largest = _mm512_set1_epi16((short)pair->largest_exponent), one = _mm512_set1_epi16(1);
    const __m512i key = _mm512_set1_epi16((short)row_key), most = _mm512_set1_epi16(15 - (short)pair->mantissa);
    const __m512i half = _mm512_set1_epi16((short)(1u << (pair->width - 1)));
    for (size_t i = 0; i < count; i += ELEMENTS) {
        const __mmask32 valid = count - i < ELEMENTS ? ((uint32_t)1 << (count - i)) - 1 : ~(uint32_t)0;
        const __m512i p = _mm512_maskz_loadu_epi16(valid, before + 2 * i), q = _mm512_maskz_loadu_epi16(valid, target + 2 * i);
        __m512i exponent = _mm512_max_epu16(_mm512_and_si512(_mm512_srl_epi16(p, fraction), largest), one);
        __m512i context = _mm512_add_epi16(_mm512_slli_epi16(_mm512_sub_epi16(largest, exponent), 2), key);
        if (col_keys != NULL)
            context = _mm512_add_epi16(context, _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(valid, col_keys + i)));
        const __m512i low = _mm512_srl_epi16(p, shift), high = _mm512_srl_epi16(q, shift);
        __mmask32 negative, ignored;
        const __m512i from = place_of(low, half, &negative), to = place_of(high, half, &ignored);
        const __m512i magnitude = _mm512_sub_epi16(_mm512_max_epu16(from, to), _mm512_min_epu16(from, to));
        const __mmask32 towards_zero =
            (negative & _mm512_cmpgt_epu16_mask(to, from)) | (~negative & _mm512_cmplt_epu16_mask(to, from));
        const __m512i extra_bits = _mm512_subs_epu16(most, leading_zeros_16(magnitude));
        const __m512i code = _mm512_add_epi16(_mm512_srlv_epi16(magnitude, extra_bits), _mm512_sll_epi16(extra_bits, mantissa));
        const __m512i twice = _mm512_add_epi16(code, code);
        const __m512i symbol = _mm512_mask_sub_epi16(twice, towards_zero, twice, one);
        const __m512i extra =
            _mm512_and_si512(magnitude, _mm512_sub_epi16(_mm512_sllv_epi16(one, extra_bits), one));
        _mm512_storeu_si512(piece->context + i, context);
        _mm256_storeu_si256((void *)(piece->symbol + i), _mm512_cvtepi16_epi8(symbol));
        _mm256_storeu_si256((void *)(piece->extra_bits + i), _mm512_cvtepi16_epi8(extra_bits));
        _mm512_storeu_si512(piece->extra + i, _mm512_cvtepu16_epi32(_mm512_castsi512_si256(extra)));
        _mm512_storeu_si512(piece->extra + i + ELEMENTS / 2, _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(extra, 1)));
    }
}

const group_vectors group_vectors_vbmi2 = {
    .find = find_groups,
    .find_16 = find_groups_16,
    .count = count_groups,
    .take = take_symbols,
    .put = put_symbols,
    .list_long = list_long_symbols,
    .store_16 = store_targets_16,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

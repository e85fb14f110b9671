/* Vectors of 32-bit integers, with what plain C cannot say: a pair of products and its sum in one instruction. Included
 * by kernels_body.h once per instruction set. A name ends in the number of its lanes; `i16x2` lanes hold two int16. */
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));

/* Loads and stores of any alignment. Compilers copy a memcpy() of a vector in halves, and the load of the whole then waits. */
#define DEFINE_ACCESS(VECTOR)                                                                                       \
    typedef VECTOR any_##VECTOR __attribute__((aligned(1), may_alias));                                             \
    INLINE VECTOR load_##VECTOR(const void *from) { return *(const any_##VECTOR *)from; }                           \
    INLINE void store_##VECTOR(void *to, VECTOR v) { *(any_##VECTOR *)to = v; }
DEFINE_ACCESS(i32x4)
DEFINE_ACCESS(i32x8)
DEFINE_ACCESS(f32x4)
DEFINE_ACCESS(f32x8)

#if defined(USE_SSE2) || defined(USE_AVX2) || defined(USE_AVX512)
/* sum + low·low + high·high of each lane. */
INLINE i32x4 add_products4(i32x4 sum, i32x4 a, i32x4 b) {
#if defined(USE_AVX512)
    return (i32x4)_mm_dpwssd_epi32((__m128i)sum, (__m128i)a, (__m128i)b);
#else
    return sum + (i32x4)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
}
INLINE i32x4 broadcast4(int32_t x) { return (i32x4)_mm_set1_epi32(x); }
INLINE i32x4 reverse4(i32x4 v) { return (i32x4)_mm_shuffle_epi32((__m128i)v, 0x1B); }
INLINE f32x4 to_float4(i32x4 v) { return (f32x4)_mm_cvtepi32_ps((__m128i)v); }
#else
INLINE i32x4 add_products4(i32x4 sum, i32x4 a, i32x4 b) {
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
}
INLINE i32x4 broadcast4(int32_t x) { return (i32x4){x, x, x, x}; }
INLINE i32x4 reverse4(i32x4 v) { return (i32x4){v[3], v[2], v[1], v[0]}; }
INLINE f32x4 to_float4(i32x4 v) { return __builtin_convertvector(v, f32x4); }
#endif

#if defined(USE_AVX2) || defined(USE_AVX512)
INLINE i32x8 add_products8(i32x8 sum, i32x8 a, i32x8 b) {
#if defined(USE_AVX512)
    return (i32x8)_mm256_dpwssd_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#else
    return sum + (i32x8)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
INLINE i32x8 broadcast8(int32_t x) { return (i32x8)_mm256_set1_epi32(x); }
INLINE i32x8 reverse8(i32x8 v) {
    return (i32x8)_mm256_permutevar8x32_epi32((__m256i)v, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
INLINE f32x8 to_float8(i32x8 v) { return (f32x8)_mm256_cvtepi32_ps((__m256i)v); }
#endif

#if defined(USE_AVX512)
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef float f32x16 __attribute__((vector_size(64)));
INLINE i32x16 add_products16(i32x16 sum, i32x16 a, i32x16 b) {
    return (i32x16)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
INLINE i32x16 broadcast16(int32_t x) { return (i32x16)_mm512_set1_epi32(x); }
INLINE f32x16 to_float16(i32x16 v) { return (f32x16)_mm512_cvtepi32_ps((__m512i)v); }
#endif

/* The widest vectors. */
#if defined(USE_AVX512)
#define OF_WIDTH(NAME) NAME##16
enum { WIDE_LANES = 16 };
typedef i32x16 i32_wide;
typedef f32x16 f32_wide;
#elif defined(USE_AVX2)
#define OF_WIDTH(NAME) NAME##8
enum { WIDE_LANES = 8 };
typedef i32x8 i32_wide;
typedef f32x8 f32_wide;
#else
#define OF_WIDTH(NAME) NAME##4
enum { WIDE_LANES = 4 };
typedef i32x4 i32_wide;
typedef f32x4 f32_wide;
#endif
DEFINE_ACCESS(i32_wide)
DEFINE_ACCESS(f32_wide)

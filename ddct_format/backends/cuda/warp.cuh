// What decoding and encoding share: short names, products of matrices in a warp, copies into shared memory.

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define THREADS 256
#define WARPS (THREADS / 32)
#define ALL 0xFFFFFFFFu

__device__ __forceinline__ u32 permute(u32 low, u32 high, u32 selector)
{
    u32 result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
    return result;
}

__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 pair(float low, float high)
{
    u32 result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

__device__ __forceinline__ void pairs(const float (&left)[4], const float (&right)[4], u32 (&operand)[4])
{
    operand[0] = pair(left[0], left[1]);
    operand[1] = pair(left[2], left[3]);
    operand[2] = pair(right[0], right[1]);
    operand[3] = pair(right[2], right[3]);
}

__device__ __forceinline__ void copy_16(void* target, const void* source)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(target)), "l"(source));
}

template <int SIZE> __device__ __forceinline__ void copy_small(void* target, const void* source) // 4 or 8 bytes
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((u32)__cvta_generic_to_shared(target)), "l"(source),
                 "n"(SIZE));
}

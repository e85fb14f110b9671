// Encoding with patches of 16 x 16 in one pass: delta -> forward DCT -> symbols, packed, and the sums of encoder.py.
//
// Macros: TYPE: what is encoded: 1 a BF16, 2 an F16 tensor and a base of the same type, 3 a residual in float32, made
// before. AFFINE: the quantiser. VECTOR: rows may be
// read 16 bytes at a time. STAGES: strips in shared memory, of a warp.
//
// Only decoding must be exact. The delta is rounded to the element type, in which differences of neighbouring numbers
// are exact, or to float16; the first product and the coefficients are float16. That is noise of 2^-12 of a patch, and
// of 2^-9 of those weights that more than doubled or halved: far below any quantiser's.
//
// Lane 4g + t brings columns 2t, 2t + 1, 2t + 8 and 2t + 9 of a patch's rows g and g + 8, and gets the coefficients of
// columns 4t to 4t + 3 of these rows: the accumulators of the first product are, lane by lane, an operand of the second.

struct Encode { // see fused_encoder.py, which fills it
    const void *base, *target;
    i64 rows, cols, down, across;
    const float* table; // [28][32], see Tables
    void* symbols;      // 128 bytes a patch, four bits each, 15 for what stands in `escapes`; affine: 64 bytes, two bits
    double* totals;     // see levels.cuh and affine.cuh
    int* activity;
    int* counts;  // [BINS][128]
    u64* escapes; // place << 8 | symbol
    u32* escaped;
    i64 capacity;
    const u8* alphabets;
    u16 *minima, *steps;
    float first, second; // what the two products are multiplied with
    u32 dead_zone, fineness; // pairs of float16, see levels.cuh
};

struct Tables {
    u32 high[4], low[4], second[4]; // the first matrix in two parts
};

__device__ __forceinline__ u32 to_operand(float low, float high)
{
#if TYPE == 1
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
#else
    return pair(low, high);
#endif
}

__device__ __forceinline__ float from_half(u32 bits)
{
    float result;
    asm("{.reg .b16 a; cvt.u16.u32 a, %1; cvt.f32.f16 %0, a;}" : "=f"(result) : "r"(bits));
    return result;
}

__device__ __forceinline__ void load_tables(const Encode& encode, int lane, Tables& tables)
{
    for (int n = 0; n < 4; n++) {
        float even = encode.table[2 * n * 32 + lane] * encode.first;
        float odd = encode.table[(2 * n + 1) * 32 + lane] * encode.first;
        tables.high[n] = to_operand(even, odd);
        float high_even, high_odd;
#if TYPE == 1
        high_even = __uint_as_float(tables.high[n] << 16), high_odd = __uint_as_float(tables.high[n] & 0xFFFF0000u);
#else
        high_even = from_half(tables.high[n] & 0xFFFF), high_odd = from_half(tables.high[n] >> 16);
#endif
        tables.low[n] = to_operand(even - high_even, odd - high_odd);
        tables.second[n] = pair(encode.table[(8 + 2 * n) * 32 + lane] * encode.second,
                                encode.table[(9 + 2 * n) * 32 + lane] * encode.second);
    }
}

__device__ __forceinline__ void multiply_first(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
#if TYPE == 1
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    multiply(sum, a, b0, b1);
#endif
}

__device__ __forceinline__ void multiply_halves(u32 (&sum)[2], const u32 (&a)[4], u32 b0, u32 b1) // sum is only written
{
    asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %8};"
        : "=r"(sum[0]), "=r"(sum[1]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}

// Four patches side by side at a time, which pass through shared memory: whole lines come in, operands go out. Pieces of
// 16 bytes are swizzled by row, so that no banks clash.
#define STRIP 4
#define SIZE (TYPE == 3 ? 4 : 2)
#define PIECES (4 * SIZE) // of a row
#define COPIES (TYPE == 3 ? 1 : 2)

struct Stage {
    uint4 tensors[COPIES][16][PIECES];
};

__device__ __forceinline__ void load_tiles(u32 (&tiles)[4], const uint4* place)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"((u32)__cvta_generic_to_shared(place)) : "memory");
}

// The delta of patch n: columns 2t and 2t + 1 of row g, of row g + 8, and columns 2t + 8 and 2t + 9 of both.
__device__ __forceinline__ void load_delta(const Stage& stage, int n, int lane, u32 (&delta)[4])
{
#if TYPE == 3
    int g = lane / 4, t = lane % 4;
    for (int k = 0; k < 4; k++) {
        int row = g + k % 2 * 8, col = 16 * n + k / 2 * 8 + 2 * t;
        float2 two = ((const float2*)&stage.tensors[0][row][col / 4 ^ row & 7])[t % 2];
        delta[k] = pair(two.x, two.y);
    }
#else
    int row = lane % 16, piece = (2 * n + lane / 16) ^ (row & 7);
    u32 target[4], base[4];
    load_tiles(target, &stage.tensors[0][row][piece]);
    load_tiles(base, &stage.tensors[1][row][piece]);
    for (int k = 0; k < 4; k++)
#if TYPE == 1
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(delta[k]) : "r"(base[k]), "r"(0xBF80BF80u), "r"(target[k]));
#else
        asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(delta[k]) : "r"(target[k]), "r"(base[k]));
#endif
#endif
}

// Coefficients: values[n][h] are columns 4t + 2n and 4t + 2n + 1 of row g + 8h, a pair of float16.
__device__ __forceinline__ void transform(const Tables& tables, const u32 (&delta)[4], u32 (&values)[2][2])
{
    float sums[2][4] = {};
    for (int h = 0; h < 2; h++) multiply_first(sums[h], tables.low, delta[h], delta[2 + h]);
    for (int h = 0; h < 2; h++) multiply_first(sums[h], tables.high, delta[h], delta[2 + h]);
    for (int n = 0; n < 2; n++)
        multiply_halves(values[n], tables.second, pair(sums[0][2 * n], sums[0][2 * n + 1]),
                        pair(sums[1][2 * n], sums[1][2 * n + 1]));
}

struct Strip {
    u32 down, strip;
    int patches;
};

struct Walk { // over the strips of a warp
    u32 down, strip, step_down, step_strip, strips;

    __device__ __forceinline__ explicit Walk(const Encode& encode)
    {
        u32 warps = gridDim.x * WARPS, number = blockIdx.x * WARPS + threadIdx.x / 32;
        strips = ((u32)encode.across + STRIP - 1) / STRIP;
        down = number / strips, strip = number % strips;
        step_down = warps / strips, step_strip = warps % strips;
    }

    __device__ __forceinline__ bool advance() // whether another row of strips has begun besides
    {
        down += step_down, strip += step_strip;
        if (strip < strips) return false;
        strip -= strips, down++;
        return true;
    }
};

// Copies strips into stages, in order.
struct Fetch {
    Walk walk;
    const u8* place; // of this lane's first piece
    i64 step, wrap, stride, to_base;
    u32 whole_down, whole_strips;

    __device__ __forceinline__ Fetch(const Encode& encode, int lane) : walk(encode)
    {
        const i64 width = 16 * STRIP * SIZE, row = encode.cols * SIZE;
        stride = 32 / PIECES * row;
        step = walk.step_down * 16 * row + walk.step_strip * width, wrap = 16 * row - walk.strips * width;
        place = (const u8*)encode.target + (walk.down * 16ll + lane / PIECES) * row + walk.strip * width;
        place += lane % PIECES * 16;
        to_base = (const u8*)encode.base - (const u8*)encode.target;
        whole_down = VECTOR ? (u32)(encode.rows / 16) : 0, whole_strips = (u32)(encode.cols / (16 * STRIP));
    }

    __device__ __forceinline__ void next(const Encode& encode, Stage& stage, int lane)
    {
        if (walk.down < whole_down && walk.strip < whole_strips) {
            const u8* line = place;
            for (int n = 0; n < 16 * PIECES / 32; n++, line += stride) {
                int row = n * (32 / PIECES) + lane / PIECES, piece = lane % PIECES ^ row & 7;
                copy_16(&stage.tensors[0][row][piece], line);
                if (COPIES == 2) copy_16(&stage.tensors[1][row][piece], line + to_base);
            }
        } else if (walk.down < (u32)encode.down) {
            copy_ragged(encode, stage, lane);
        }
        asm volatile("cp.async.commit_group;");
        place += step;
        if (walk.advance()) place += wrap;
    }

    __device__ __noinline__ void copy_ragged(const Encode& encode, Stage& stage, int lane) // zeros beyond the view
    {
        i64 first = walk.down * 16ll, left = walk.strip * (16ll * STRIP);
#pragma unroll 1
        for (int n = lane; n < 1024; n += 32) {
            int row = n / 64, col = n % 64, piece = col * SIZE / 16 ^ row & 7, at = col % (16 / SIZE);
            bool inside = first + row < encode.rows && left + col < encode.cols;
            i64 element = (first + row) * encode.cols + left + col;
#if TYPE == 3
            ((float*)&stage.tensors[0][row][piece])[at] = inside ? ((const float*)encode.target)[element] : 0.0f;
#else
            ((u16*)&stage.tensors[0][row][piece])[at] = inside ? ((const u16*)encode.target)[element] : 0;
            ((u16*)&stage.tensors[1][row][piece])[at] = inside ? ((const u16*)encode.base)[element] : 0;
#endif
        }
    }
};

// Calls work(values, strip, told) with the coefficients of each strip that is this warp's; the next ones are on their way
// then, and so is what tell(strip), called long before, loads.
template <typename Tell, typename Work>
__device__ __forceinline__ void for_each_strip(const Encode& encode, const Tables& tables, int lane, Tell tell, Work work)
{
    extern __shared__ uint4 memory[];
    Stage* stages = (Stage*)memory + threadIdx.x / 32 * STAGES;
    Fetch fetch(encode, lane);
    Walk walk(encode);
    u32 across = (u32)encode.across, told[STAGES - 1];
    auto look = [&](const Walk& at) { return Strip{at.down, at.strip, min(STRIP, (int)(across - at.strip * STRIP))}; };
    auto ask = [&]() { return fetch.walk.down < (u32)encode.down ? tell(look(fetch.walk)) : 0; };
    for (int n = 0; n < STAGES - 1; n++) {
        told[n] = ask();
        fetch.next(encode, stages[n], lane);
    }
    u32 turn = 0, free = STAGES - 1;
    while (walk.down < (u32)encode.down) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncwarp();
        u32 mine = told[0];
        for (int n = 1; n < STAGES - 1; n++) told[n - 1] = told[n];
        told[STAGES - 2] = ask();
        fetch.next(encode, stages[free], lane);
        u32 values[STRIP][2][2];
#pragma unroll
        for (int n = 0; n < STRIP; n++) {
            u32 delta[4];
            load_delta(stages[turn], n, lane, delta);
            transform(tables, delta, values[n]);
        }
        free = turn, turn = turn + 1 == STAGES ? 0 : turn + 1;
        work(values, look(walk), mine);
        walk.advance();
    }
}

__device__ __forceinline__ u32 add_halves(u32 a, u32 b)
{
    u32 result;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

__device__ __forceinline__ u32 subtract_halves(u32 a, u32 b)
{
    u32 result;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

__device__ __forceinline__ u32 multiply_halves(u32 a, u32 b)
{
    u32 result;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

__device__ __forceinline__ u32 fma_halves(u32 a, u32 b, u32 c)
{
    u32 result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

__device__ __forceinline__ u32 abs_halves(u32 a)
{
    u32 result;
    asm("abs.f16x2 %0, %1;" : "=r"(result) : "r"(a));
    return result;
}

__device__ __forceinline__ u32 min_halves(u32 a, u32 b)
{
    u32 result;
    asm("min.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

__device__ __forceinline__ u32 max_halves(u32 a, u32 b)
{
    u32 result;
    asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

// The low bytes of four float16, for columns 4t, 4t + 2, 4t + 1 and 4t + 3 of a row.
__device__ __forceinline__ u32 low_bytes(u32 first, u32 second) { return permute(first, second, 0x6240); }

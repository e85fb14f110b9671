// Quantising in steps: magnitudes up to 127, most of them up to 3.
//
// The usual patch has no magnitude above 3. For it all is done on four coefficients at a time: magnitudes are bytes, of
// which only two bits are set, and for the sums values are bytes too, SHIFT + fineness * (|v| - dead zone), rounded: about
// 60 for a step. What is larger is taken out of both, and treated one by one.

#define BINS 36
#define KEPT 16 // magnitudes that a block counts by itself
#define LARGEST 127
#define SHIFT 30 // what a value of |v| = dead zone is as a byte
#define TOTALS 8 // of values: all, those of odd m, those with m >= 2, those of m = 3; squares; squares of what is larger

struct Block {
    double warps[WARPS][6];
    u8 bins[3 * 256 + 4]; // of small activities
    int counts[BINS][KEPT]; // 0 to 3: all, odd m, m >= 2, m = 3; then of the magnitude
    float sums[LARGEST + 1];
};

__device__ __forceinline__ int bin_of(int activity)
{
    if (!activity) return 0;
    int octave = 31 - __clz(activity);
    float power = __uint_as_float((127 + octave) << 23), value = (float)activity;
    return 2 * octave + 1 + (value >= power * 1.1892071f) + (value >= power * 1.6817928f);
}

__device__ __forceinline__ u32 sum_bytes(u32 a, u32 b, u32 sum) { return __dp4a(a, b, sum); }

// Of the lane's eight: the one in column 4t + k % 4 of row g + 8 * (k / 4).
__device__ __forceinline__ u32 half_of(const u32 (&four)[2][2], int k)
{
    u32 left = k & 4 ? four[0][1] : four[0][0], right = k & 4 ? four[1][1] : four[1][0];
    return (k & 2 ? right : left) >> (k & 1) * 16 & 0xFFFF;
}

__device__ __forceinline__ u32 magnitude_of(const u32 (&whole)[2][2], int k) // NaN has the largest
{
    return min(half_of(whole, k) - 0x6600, (u32)LARGEST);
}

struct Sums { // of a lane
    u32 all, odd, upper, three;
    u64 squares;
    float large;
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) encode_strips(const __grid_constant__ Encode encode)
{
    __shared__ Block block;
    int lane = threadIdx.x % 32;
    Tables tables;
    load_tables(encode, lane, tables);
    for (int n = threadIdx.x; n < BINS * KEPT; n += THREADS) (&block.counts[0][0])[n] = 0;
    for (int n = threadIdx.x; n <= LARGEST; n += THREADS) block.sums[n] = 0;
    for (int n = threadIdx.x; n <= 3 * 256; n += THREADS) block.bins[n] = (u8)bin_of(n);
    __syncthreads();
    Sums sums = {};
    u32 dead_zone = encode.dead_zone, fineness = encode.fineness;

    auto nothing = [](const Strip&) { return 0u; };
    for_each_strip(encode, tables, lane, nothing, [&](const u32(&values)[STRIP][2][2], const Strip& strip, u32) {
        u32 first = strip.down * (u32)encode.across + strip.strip * STRIP;
        u16* out = (u16*)encode.symbols + (u64)first * 64 + lane;
        u32 counted = 0, large = 0; // of the patch lane / 4: counts, and of magnitudes above 3: sum << 9 | count
        u32 squares = 0;
#pragma unroll
        for (int n = 0; n < STRIP; n++) {
            if (n >= strip.patches) break;
            u32 whole[2][2], fine[2][2]; // 1536 + m, 1024 + value
            for (int k = 0; k < 4; k++) {
                u32 beyond = subtract_halves(abs_halves(values[n][k / 2][k % 2]), dead_zone);
                whole[k / 2][k % 2] = add_halves(beyond, 0x66006600u);
                fine[k / 2][k % 2] = fma_halves(beyond, fineness, 0x641E641Eu); // 1024 + SHIFT
            }
            u32 magnitudes[2], bytes[2], negative[2];
            for (int h = 0; h < 2; h++) {
                magnitudes[h] = low_bytes(whole[0][h], whole[1][h]);
                bytes[h] = low_bytes(fine[0][h], fine[1][h]);
                negative[h] = permute(values[n][0][h], values[n][1][h], 0xFBD9); // 255 where it is
            }
            u32 high = 0;
            for (int k = 0; k < 4; k++) high |= whole[k / 2][k % 2] ^ 0x66006600u;
            bool any_large = __any_sync(ALL, high & 0xFFFCFFFCu);
            u32 nibbles[2] = {0, 0}, which = 0; // which[4h + right]: those in column 4t + right, row g + 8h
            if (__builtin_expect(any_large, 0)) {
                for (int k = 0; k < 8; k++)
                    if (magnitude_of(whole, k) > 3) which |= 1u << k;
                u32 more = 0;
                for (u32 rest = which; rest; rest &= rest - 1) {
                    int k = __ffs(rest) - 1, h = k / 4, right = k % 4;
                    u32 magnitude = magnitude_of(whole, k);
                    float value = from_half(half_of(values[n], k));
                    u32 symbol = 2 * magnitude - (value > 0), erase = ~(255u << (right / 2 + right % 2 * 2) * 8);
                    more += magnitude << 9 | 1;
                    sums.large = fmaf(value, value, sums.large);
                    u32 nibble = min(symbol, 15u) << right * 4;
                    if (h) magnitudes[1] &= erase, bytes[1] &= erase, nibbles[1] |= nibble;
                    else magnitudes[0] &= erase, bytes[0] &= erase, nibbles[0] |= nibble;
                    atomicAdd(&block.sums[magnitude], fabsf(value));
                    if (symbol < 15) continue;
                    u32 place = atomicAdd(encode.escaped, 1u);
                    u64 element = (u64)(first + n) * 256 + (lane / 4 + h * 8) * 16 + lane % 4 * 4 + right;
                    if (place < encode.capacity) encode.escapes[place] = element << 8 | symbol;
                    if (!(fabsf(value) < 3e38f)) atomicOr(encode.escaped, 1u << 30); // beyond float16: this is of no use
                }
                more = __reduce_add_sync(ALL, more);
                if (lane / 4 == n) large = more;
            }
            u32 odd_count = 0, upper_count = 0, three_count = 0;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 m = magnitudes[h], odd = m & 0x01010101u, upper = m >> 1 & 0x01010101u, three = odd & upper;
                u32 symbols = m + m - ((odd | upper) & ~negative[h]);
                out[n * 64 + h * 32] = (u16)((symbols + (symbols >> 12)) | nibbles[h]);
                odd_count = sum_bytes(odd, 0x01010101u, odd_count);
                upper_count = sum_bytes(upper, 0x01010101u, upper_count);
                three_count = sum_bytes(three, 0x01010101u, three_count);
                sums.all = sum_bytes(bytes[h], 0x01010101u, sums.all);
                sums.odd = sum_bytes(bytes[h], odd, sums.odd);
                sums.upper = sum_bytes(bytes[h], upper, sums.upper);
                sums.three = sum_bytes(bytes[h], three, sums.three);
                squares = sum_bytes(bytes[h], bytes[h], squares);
            }
            u32 total = __reduce_add_sync(ALL, odd_count | upper_count << 10 | three_count << 20);
            if (lane / 4 == n) counted = total;
            if (__builtin_expect(any_large, 0)) { // the patch's bin is known now
                u32 more = __shfl_sync(ALL, large, 4 * n) >> 9;
                int bin = bin_of((total & 1023) + 2 * (total >> 10 & 1023) + more);
for (; which; which &= which - 1) {
                    u32 magnitude = magnitude_of(whole, __ffs(which) - 1);
                    atomicAdd(magnitude < KEPT ? &block.counts[bin][magnitude]
                                               : &encode.counts[bin * (LARGEST + 1) + magnitude], 1);
                }
            }
        }
        sums.squares += squares;
        if (lane < 4 * strip.patches) {
            int kind = lane % 4;
            int activity = (int)((counted & 1023) + 2 * (counted >> 10 & 1023) + (large >> 9));
            int bin = activity <= 3 * 256 ? block.bins[activity] : bin_of(activity);
            atomicAdd(&block.counts[bin][kind], kind ? (int)(counted >> 10 * (kind - 1) & 1023) : 256 - (int)(large & 511));
            if (kind == 0) encode.activity[first + lane / 4] = activity;
        }
    });

    double own[] = {(double)sums.all,   (double)sums.odd,     (double)sums.upper,
                    (double)sums.three, (double)sums.squares, (double)sums.large};
    for (int n = 0; n < 6; n++) {
        for (int distance = 16; distance; distance /= 2) own[n] += __shfl_xor_sync(ALL, own[n], distance);
        if (lane == 0) block.warps[threadIdx.x / 32][n] = own[n];
    }
    __syncthreads();
    if (threadIdx.x < 6) {
        double total = 0;
        for (int warp = 0; warp < WARPS; warp++) total += block.warps[warp][threadIdx.x];
        atomicAdd(encode.totals + threadIdx.x, total);
    }
    for (int n = threadIdx.x; n <= LARGEST; n += THREADS)
        if (block.sums[n]) atomicAdd(encode.totals + TOTALS + n, (double)block.sums[n]);
    for (int n = threadIdx.x; n < BINS * KEPT; n += THREADS) {
        const int(&counts)[KEPT] = block.counts[n / KEPT];
        int magnitude = n % KEPT, counted = counts[magnitude];
        if (magnitude == 0) counted -= counts[1] + counts[2] - counts[3];
        if (magnitude == 1 || magnitude == 2) counted -= counts[3];
        if (counted) atomicAdd(encode.counts + n / KEPT * (LARGEST + 1) + magnitude, counted);
    }
}

/* The quantiser of the paper: symbols between the least and the largest value of each patch; included by encode_body.h,
 * whose rules for floating-point arithmetic it shares. */
/* To the nearest binary16, ties to even; beyond its range the largest one. */
ALWAYS_INLINE uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float size = fabsf(value);
    if (size >= 65504.0f)
        return sign | 0x7BFF;
    if (size < 0x1p-14f) /* multiples of 2^-24: the sum's fraction is the result */
        size += 0.5f;
    memcpy(&bits, &size, sizeof bits);
    if (size >= 0.5f && fabsf(value) < 0x1p-14f)
        return sign | (uint16_t)(bits - 0x3F000000u);
    bits += 0xFFF + (bits >> 13 & 1);
    return sign | (uint16_t)((bits - (112u << 23)) >> 13);
}

ALWAYS_INLINE float from_half(uint16_t stored) {
    uint8_t bytes[2];
    memcpy(bytes, &stored, sizeof stored);
    return element(ELEMENT_F16, bytes, 0);
}

/* Least and largest value. */
ALWAYS_INLINE void find_extremes(const float *values, uint32_t count, float *low, float *high) {
    floats least = load_floats(values), most = least;
    for (uint32_t i = WIDE; i < count; i += WIDE) {
        floats value = load_floats(values + i);
        least = choose(value < least, value, least);
        most = choose(value > most, value, most);
    }
    *low = least[0];
    *high = most[0];
    for (int l = 1; l < WIDE; l++) {
        *low = least[l] < *low ? least[l] : *low;
        *high = most[l] > *high ? most[l] : *high;
    }
}

/* Symbols of a patch, and its values in place of which they stand. */
ALWAYS_INLINE void quantise_between(float *values, uint32_t count, float low, float width, int largest,
                                    uint8_t *symbols) {
    const float inverse = width > 0 ? 1.0f / width : 0.0f;
    const floats most = every((float)largest);
    for (uint32_t i = 0; i < count; i += WIDE) {
        floats ratio = (load_floats(values + i) - low) * inverse + 0.5f;
        ratio = choose(ratio > every(0.0f), ratio, every(0.0f));
        ratio = choose(ratio < most, ratio, most);
        integers number = __builtin_convertvector(ratio, integers);
        octets symbol = __builtin_convertvector(number, octets);
        memcpy(symbols + i, &symbol, sizeof symbol);
        store_floats(values + i, __builtin_convertvector(number, floats) * width + low);
    }
}

/* B^T . in . B for the mirrored basis of size 16. `rows` is the basis. */
ALWAYS_INLINE void restore_16(const float *basis, const floats *rows, const float *in, float *out) {
    floats lines[16];
    float once[16 * 16];
    for (int k = 0; k < 16; k++)
        lines[k] = load_floats(in + k * 16);
    for (int n = 0; n < 8; n++) {
        floats even = {0}, odd = {0};
        for (int k = 0; k < 16; k += 2) {
            even += basis[k * 16 + n] * lines[k];
            odd += basis[(k + 1) * 16 + n] * lines[k + 1];
        }
        store_floats(once + n * 16, even + odd);
        store_floats(once + (15 - n) * 16, even - odd);
    }
    for (int r = 0; r < 16; r += 2) {
        floats first = {0}, second = {0};
        for (int n = 0; n < 16; n++) {
            first += once[r * 16 + n] * rows[n];
            second += once[(r + 1) * 16 + n] * rows[n];
        }
        store_floats(out + r * 16, first);
        store_floats(out + (r + 1) * 16, second);
    }
}

/* Adds a patch's sums; a whole patch is a single row of all its values. */
ALWAYS_INLINE void add_affine_sums(const float *decoded, const float *taken, size_t stride, size_t height, size_t width,
                                   affine_result *result) {
    floats magnitude = {0}, energy = {0}, aligned = {0};
    for (size_t r = 0; r < height; r++, decoded += stride, taken += stride) {
        size_t c = 0;
        for (; c + WIDE <= width; c += WIDE) {
            floats value = load_floats(decoded + c);
            magnitude += absolute(value);
            energy += value * value;
            aligned += value * load_floats(taken + c);
        }
        for (; c < width; c++) {
            magnitude[0] += fabsf(decoded[c]);
            energy[0] += decoded[c] * decoded[c];
            aligned[0] += decoded[c] * taken[c];
        }
    }
    result->magnitude += sum_floats(magnitude);
    result->energy += sum_floats(energy);
    result->aligned += sum_floats(aligned);
}

static void encode_affine(const encode_band *band, const quantise_plan *plan, const float *basis,
                          const uint8_t *alphabets, float *work, affine_result *result) {
    uint32_t patch = plan->patch, count = patch * patch;
    size_t across = (band->cols + patch - 1) / patch, stride = row_stride(band->cols, patch);
    floats turned[16], basis_rows[16];
    float taken[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH], values[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
    const residual_columns columns = {0};
    turn_matrix(plan, turned);
    const bool mirrored = basis != NULL && plan->mirrored && patch == 16;
    for (int k = 0; mirrored && k < 16; k++)
        basis_rows[k] = load_floats(basis + k * 16);
    result->magnitude = result->energy = result->aligned = 0;
    size_t number = 0;
    for (size_t first = 0; first < band->rows; first += patch) {
        residual_rows(band, plan, first, &columns, work, stride);
        for (size_t column = 0; column < across; column++, number++) {
            uint8_t *symbols = result->symbols + number * count;
            int largest = alphabets[number] - 1;
            if (largest <= 0) {
                memset(symbols, 0, count);
                result->minima[number] = result->steps[number] = 0;
                continue;
            }
            for (uint32_t r = 0; r < patch; r++)
                memcpy(taken + r * patch, work + r * stride + column * patch, patch * sizeof(float));
            transform_values(plan, turned, taken, patch, values);
            float low, high;
            find_extremes(values, count, &low, &high);
            uint16_t minimum = to_half(low), step = to_half((high - low) / (float)largest);
            result->minima[number] = minimum;
            result->steps[number] = step;
            quantise_between(values, count, from_half(minimum), from_half(step), largest, symbols);
            const float *decoded = values;
            float restored[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
            if (basis != NULL) {
                if (mirrored)
                    restore_16(basis, basis_rows, values, restored);
                else
                    two_sided(basis, true, patch, 1.0f, values, patch, restored);
                decoded = restored;
            }
            size_t height = band->rows - first < patch ? band->rows - first : patch;
            size_t width = band->cols - column * patch < patch ? band->cols - column * patch : patch;
            bool whole = height == patch && width == patch;
            add_affine_sums(decoded, taken, patch, whole ? 1 : height, whole ? count : width, result);
        }
    }
}

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

static void encode_affine(const encode_band *band, const quantise_plan *plan, const float *basis,
                          const uint8_t *alphabets, float *work, affine_result *result) {
    uint32_t patch = plan->patch, count = patch * patch;
    size_t across = (band->cols + patch - 1) / patch, stride = across * patch;
    floats turned[16];
    float taken[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH], values[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
    turn_matrix(plan, turned);
    result->magnitude = result->energy = result->aligned = 0;
    size_t number = 0;
    for (size_t first = 0; first < band->rows; first += patch) {
        residual_rows(band, plan, first, work, stride);
        for (size_t column = 0; column < across; column++, number++) {
            uint8_t *symbols = result->symbols + number * count;
            int largest = alphabets[number] - 1;
            if (largest <= 0) {
                memset(symbols, 0, count);
                result->minima[number] = result->steps[number] = 0;
                continue;
            }
            take_patch(plan, work, stride, band->cols, column * patch, taken);
            transform_values(plan, turned, taken, values);
            float low = values[0], high = values[0];
            for (uint32_t i = 1; i < count; i++) {
                low = values[i] < low ? values[i] : low;
                high = values[i] > high ? values[i] : high;
            }
            uint16_t minimum = to_half(low), step = to_half((high - low) / (float)largest);
            result->minima[number] = minimum;
            result->steps[number] = step;
            low = from_half(minimum);
            float width = from_half(step), inverse = width > 0 ? 1.0f / width : 0.0f;
            for (uint32_t i = 0; i < count; i++) {
                float ratio = (values[i] - low) * inverse + 0.5f;
                ratio = ratio < 0 ? 0 : ratio;
                int symbol = (int)ratio;
                symbol = symbol > largest ? largest : symbol;
                symbols[i] = (uint8_t)symbol;
                values[i] = (float)symbol * width + low;
            }
            const float *decoded = values;
            float restored[ENCODE_MAX_PATCH * ENCODE_MAX_PATCH];
            if (basis != NULL) {
                two_sided(basis, true, patch, 1.0f, values, restored);
                decoded = restored;
            }
            size_t height = band->rows - first < patch ? band->rows - first : patch;
            size_t width_inside = band->cols - column * patch < patch ? band->cols - column * patch : patch;
            for (size_t r = 0; r < height; r++) {
                float magnitude = 0, energy = 0, aligned = 0;
                for (size_t c = 0; c < width_inside; c++) {
                    float value = decoded[r * patch + c];
                    magnitude += fabsf(value);
                    energy += value * value;
                    aligned += value * taken[r * patch + c];
                }
                result->magnitude += (double)magnitude;
                result->energy += (double)energy;
                result->aligned += (double)aligned;
            }
        }
    }
}

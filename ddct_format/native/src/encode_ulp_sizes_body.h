/* How large the residuals of rows are, for the keys of ulp.v1; included by kernels_body.h, once per instruction set. */

/* Of each row the weighted sum of |target - base|, of at most 2^60; what is not finite counts as 0. `work` holds a row. */
static void ulp_row_sizes(const encode_band *band, const float *weights, float *work, float *sizes) {
    enum { INFINITE = 0x7F800000, LARGEST = 0x5D800000 }; /* patterns: integers in the order of the values */
    for (size_t row = 0; row < band->rows; row++) {
        row_difference(band, row, 1.0f, work);
        floats sums = {0};
        size_t c = 0;
        for (; c + WIDE <= band->cols; c += WIDE) {
            integers size = (integers)absolute(load_floats(work + c));
            integers finite = size < INFINITE, small = size < LARGEST;
            size = ((size & small) | (LARGEST & ~small)) & finite;
            sums += (floats)size * load_floats(weights + c);
        }
        double sum = sum_floats(sums);
        for (; c < band->cols; c++) {
            float size = fabsf(work[c]);
            if (size < INFINITY)
                sum += (double)(fminf(size, 0x1p60f) * weights[c]);
        }
        sizes[row] = (float)sum;
    }
}

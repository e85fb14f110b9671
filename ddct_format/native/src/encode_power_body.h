/* A power iteration: a band's delta D times some vectors, and the product with its transpose, both from the same few rows
 * of D while they are in the cache; included by encode_body.h, whose rules for floating-point arithmetic it shares. */
enum { POWER_ROWS = 8, POWER_VECTORS = 3 }; /* sums of so many rows and vectors fit the registers of AVX-512 */

/* Columns [0, 16 * vectors) of D.V for POWER_ROWS rows. */
ALWAYS_INLINE void project_rows(const float *rows, size_t cols, int vectors, const float *from, size_t stride,
                                float *projected) {
    floats sums[POWER_ROWS][POWER_VECTORS] = {{{0}}};
    for (size_t c = 0; c < cols; c++, from += stride) {
        floats factor[POWER_VECTORS];
        for (int v = 0; v < vectors; v++)
            factor[v] = load_floats(from + v * WIDE);
        for (int r = 0; r < POWER_ROWS; r++)
            for (int v = 0; v < vectors; v++)
                sums[r][v] += rows[(size_t)r * cols + c] * factor[v];
    }
    for (int r = 0; r < POWER_ROWS; r++)
        for (int v = 0; v < vectors; v++)
            store_floats(projected + (size_t)r * stride + v * WIDE, sums[r][v]);
}

/* D^T times what these rows gave is added to the same columns of the result. */
ALWAYS_INLINE void return_rows(const float *rows, size_t cols, int vectors, const float *projected, size_t stride,
                               float *returned) {
    floats factors[POWER_ROWS][POWER_VECTORS];
    for (int r = 0; r < POWER_ROWS; r++)
        for (int v = 0; v < vectors; v++)
            factors[r][v] = load_floats(projected + (size_t)r * stride + v * WIDE);
    for (size_t c = 0; c < cols; c++, returned += stride)
        for (int v = 0; v < vectors; v++) {
            floats sum = load_floats(returned + v * WIDE);
            for (int r = 0; r < POWER_ROWS; r++)
                sum += rows[(size_t)r * cols + c] * factors[r][v];
            store_floats(returned + v * WIDE, sum);
        }
}

/* Squares of the rows of the work memory. */
static void add_squares(const float *rows, size_t cols, double *row_squares, double *col_squares) {
    floats sums[POWER_ROWS] = {{0}};
    size_t c = 0;
    for (; c + WIDE <= cols; c += WIDE) {
        floats column = {0};
        for (int r = 0; r < POWER_ROWS; r++) {
            floats value = load_floats(rows + (size_t)r * cols + c), square = value * value;
            sums[r] += square;
            column += square;
        }
        doubles total;
        memcpy(&total, col_squares + c, sizeof total);
        total += __builtin_convertvector(column, doubles);
        memcpy(col_squares + c, &total, sizeof total);
    }
    for (int r = 0; r < POWER_ROWS; r++)
        row_squares[r] = sum_floats(sums[r]);
    for (; c < cols; c++)
        for (int r = 0; r < POWER_ROWS; r++) {
            double value = (double)rows[(size_t)r * cols + c];
            row_squares[r] += value * value;
            col_squares[c] += value * value;
        }
}

static void encode_power(const encode_band *band, float scale, size_t stride, const float *vectors, float *work,
                         power_result *result) {
    size_t cols = band->cols;
    memset(result->returned, 0, cols * stride * sizeof *result->returned);
    memset(result->col_squares, 0, cols * sizeof *result->col_squares);
    for (size_t first = 0; first < band->rows; first += POWER_ROWS) {
        size_t height = band->rows - first < POWER_ROWS ? band->rows - first : POWER_ROWS;
        for (size_t r = 0; r < height; r++) {
            float *row = work + r * cols;
            row_difference(band, first + r, row);
            for (size_t c = 0; c < cols; c++)
                row[c] *= scale;
        }
        memset(work + height * cols, 0, (POWER_ROWS - height) * cols * sizeof *work);
        double squares[POWER_ROWS];
        add_squares(work, cols, squares, result->col_squares);
        memcpy(result->row_squares + first, squares, height * sizeof *squares);
        float *projected = work + POWER_ROWS * cols;
        for (size_t k = 0; k < stride; k += POWER_VECTORS * WIDE)
            switch ((stride - k) / WIDE) {
            case 1:
                project_rows(work, cols, 1, vectors + k, stride, projected + k);
                return_rows(work, cols, 1, projected + k, stride, result->returned + k);
                break;
            case 2:
                project_rows(work, cols, 2, vectors + k, stride, projected + k);
                return_rows(work, cols, 2, projected + k, stride, result->returned + k);
                break;
            default:
                project_rows(work, cols, 3, vectors + k, stride, projected + k);
                return_rows(work, cols, 3, projected + k, stride, result->returned + k);
            }
        memcpy(result->projected + first * stride, projected, height * stride * sizeof *projected);
    }
}

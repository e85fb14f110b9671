/* A power iteration: a band's delta D times some vectors, and the product with its transpose, both from the same few rows
 * of D while they are in the cache; included by encode_body.h, whose rules for floating-point arithmetic it shares. */
enum { POWER_ROWS = 8, POWER_VECTORS = 3 }; /* sums of so many rows and vectors fit the registers of AVX-512 */
enum { POWER_BLOCK = 128 };                 /* columns whose vectors, or results, stay in the first-level cache */

/* The products of POWER_ROWS rows and some columns with 16 * vectors columns of V are added to D.V. */
ALWAYS_INLINE void project_rows(const float *rows, size_t pitch, size_t count, int vectors, const float *from,
                                size_t stride, float *projected) {
    floats sums[POWER_ROWS][POWER_VECTORS];
    for (int r = 0; r < POWER_ROWS; r++)
        for (int v = 0; v < vectors; v++)
            sums[r][v] = load_floats(projected + (size_t)r * stride + v * WIDE);
    for (size_t c = 0; c < count; c++, from += stride) {
        floats factor[POWER_VECTORS];
        for (int v = 0; v < vectors; v++)
            factor[v] = load_floats(from + v * WIDE);
        for (int r = 0; r < POWER_ROWS; r++)
            for (int v = 0; v < vectors; v++)
                sums[r][v] += rows[(size_t)r * pitch + c] * factor[v];
    }
    for (int r = 0; r < POWER_ROWS; r++)
        for (int v = 0; v < vectors; v++)
            store_floats(projected + (size_t)r * stride + v * WIDE, sums[r][v]);
}

/* D^T times what these rows gave is added to the same columns of the result. */
ALWAYS_INLINE void return_rows(const float *rows, size_t pitch, size_t count, int vectors, float *returned,
                               size_t stride, float *projected) {
    floats factors[POWER_ROWS][POWER_VECTORS];
    for (int r = 0; r < POWER_ROWS; r++)
        for (int v = 0; v < vectors; v++)
            factors[r][v] = load_floats(projected + (size_t)r * stride + v * WIDE);
    for (size_t c = 0; c < count; c++, returned += stride)
        for (int v = 0; v < vectors; v++) {
            floats sum = load_floats(returned + v * WIDE);
            for (int r = 0; r < POWER_ROWS; r++)
                sum += rows[(size_t)r * pitch + c] * factors[r][v];
            store_floats(returned + v * WIDE, sum);
        }
}

/* Squares of the rows of the work memory. */
static void add_squares(const float *rows, size_t cols, size_t pitch, double *row_squares, double *col_squares) {
    floats sums[POWER_ROWS] = {{0}};
    size_t c = 0;
    for (; c + WIDE <= cols; c += WIDE) {
        floats column = {0};
        for (int r = 0; r < POWER_ROWS; r++) {
            floats value = load_floats(rows + (size_t)r * pitch + c), square = value * value;
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
            double value = (double)rows[(size_t)r * pitch + c];
            row_squares[r] += value * value;
            col_squares[c] += value * value;
        }
}

/* STEP for a group of rows, block by block of columns. OF_COLUMNS is indexed by columns, `projected` by rows. */
#define FOR_BLOCKS(STEP, OF_COLUMNS)                                                                                      \
    for (size_t c = 0; c < cols; c += POWER_BLOCK) {                                                                \
        size_t count = cols - c < POWER_BLOCK ? cols - c : POWER_BLOCK;                                             \
        for (size_t k = 0; k < stride; k += POWER_VECTORS * WIDE)                                                   \
            for (size_t r = 0; r < height; r += POWER_ROWS) {                                                       \
                const float *rows = work + r * pitch + c;                                                           \
                switch ((stride - k) / WIDE) {                                                                      \
                case 1:                                                                                             \
                    STEP(rows, pitch, count, 1, (OF_COLUMNS) + c * stride + k, stride, projected + r * stride + k);          \
                    break;                                                                                          \
                case 2:                                                                                             \
                    STEP(rows, pitch, count, 2, (OF_COLUMNS) + c * stride + k, stride, projected + r * stride + k);          \
                    break;                                                                                          \
                default:                                                                                            \
                    STEP(rows, pitch, count, 3, (OF_COLUMNS) + c * stride + k, stride, projected + r * stride + k);          \
                }                                                                                                   \
            }                                                                                                       \
    }

static void encode_power(const encode_band *band, float scale, size_t stride, const float *vectors, size_t group,
                         float *work, power_result *result) {
    size_t cols = band->cols, pitch = cols + WIDE; /* of work's rows: powers of two would meet in the same cache sets */
    float *projected = work + group * pitch;
    memset(result->returned, 0, cols * stride * sizeof *result->returned);
    memset(result->col_squares, 0, cols * sizeof *result->col_squares);
    for (size_t first = 0; first < band->rows; first += group) {
        size_t filled = band->rows - first < group ? band->rows - first : group;
        size_t height = (filled + POWER_ROWS - 1) / POWER_ROWS * POWER_ROWS;
        for (size_t r = 0; r < filled; r++) {
            float *row = work + r * pitch;
            row_difference(band, first + r, scale, row);
        }
        memset(work + filled * pitch, 0, (height - filled) * pitch * sizeof *work);
        memset(projected, 0, height * stride * sizeof *projected);
        for (size_t r = 0; r < height; r += POWER_ROWS) {
            double squares[POWER_ROWS];
            add_squares(work + r * pitch, cols, pitch, squares, result->col_squares);
            memcpy(result->row_squares + first + r, squares,
                   (filled - r < POWER_ROWS ? filled - r : POWER_ROWS) * sizeof *squares);
        }
        FOR_BLOCKS(project_rows, vectors)
        FOR_BLOCKS(return_rows, result->returned)
        memcpy(result->projected + first * stride, projected, filled * stride * sizeof *projected);
    }
}
#undef FOR_BLOCKS

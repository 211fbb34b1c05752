// Products whose rows are squares of 2x2 outputs of a 3x3 convolution, by 16 multiplications in place of 36: F(2x2, 3x3) of
// Winograd's minimal filtering (Lavin and Gray, 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1).
//
// A square reads 4x4 places. Their rows are transformed (B^T d B), each of the 16 results is multiplied with weights that
// were transformed before they were packed (G g G^T), and the products are transformed back (A^T m A) to four rows of
// outputs, which end as any product's do. Included by isa.cpp, after rows.h.

namespace SM_NAMESPACE {

constexpr int64_t TOGETHER = 24;  // squares whose transformed rows are in a cache; a multiple of every block's rows
static_assert(CHUNK % TOGETHER == 0, "parts that fill a chunk");
constexpr int FACTORS = 16;
constexpr int64_t MOST_COLUMNS = 64;  // of a block

// B^T d B of a vector of channels of the 4x4 rows that a square reads. to: of the first result, `apart` from one to the next.
template <int W>
static inline void transform_inputs(const float* const* x, int64_t k, float* to, int64_t apart) {
    using V = typename Vector<W>::type;
    V d[4][4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        V column[4];
#pragma GCC unroll 4
        for (int a = 0; a < 4; a++) column[a] = *reinterpret_cast<const V*>(x[(4 * a + b) * TOGETHER] + k);
        d[0][b] = column[0] - column[2];
        d[1][b] = column[1] + column[2];
        d[2][b] = column[2] - column[1];
        d[3][b] = column[1] - column[3];
    }
#pragma GCC unroll 4
    for (int a = 0; a < 4; a++) {
        const V all[4] = {d[a][0] - d[a][2], d[a][1] + d[a][2], d[a][2] - d[a][1], d[a][1] - d[a][3]};
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) *reinterpret_cast<V*>(to + (4 * a + b) * apart + k) = all[b];
    }
}

// A^T m A of a vector of columns; m: of the first product, `apart` from one to the next. to: four rows, `pitch` apart.
template <int W>
static inline void transform_outputs(const float* m, int64_t apart, float* to, int64_t pitch) {
    using V = typename Vector<W>::type;
    V half[2][4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        V column[4];
#pragma GCC unroll 4
        for (int a = 0; a < 4; a++) column[a] = *reinterpret_cast<const V*>(m + (4 * a + b) * apart);
        half[0][b] = column[0] + column[1] + column[2];
        half[1][b] = column[1] - column[2] - column[3];
    }
#pragma GCC unroll 2
    for (int a = 0; a < 2; a++) {
        *reinterpret_cast<V*>(to + 2 * a * pitch) = half[a][0] + half[a][1] + half[a][2];
        *reinterpret_cast<V*>(to + (2 * a + 1) * pitch) = half[a][1] - half[a][2] - half[a][3];
    }
}

// Rows of transformed inputs, as multiply_chunk reads them.
struct Transformed {
    int64_t n_segments;
    const Segment* segments;
};

// Some of a product's squares, by columns.
struct Squares {
    const float* const* rows;  // transformed ones, (FACTORS, CHUNK)
    const Product& p;
    int64_t start, count;
    float* room;  // (FACTORS + 4, TOGETHER, MOST_COLUMNS)
    double* sums;

    template <int W, int MR, int NV>
    void columns(int64_t first, const float* panel, int64_t panel_stride, int64_t width) const {
        constexpr int64_t WIDE = NV * W, APART = TOGETHER * WIDE;
        static_assert(WIDE <= MOST_COLUMNS && TOGETHER % MR == 0, "blocks that fill the room");
        const int64_t rest = p.columns % PANEL;
        const int64_t weights = p.depth * (p.columns - rest + (rest > 8 ? PANEL : rest ? 8 : 0));  // of a factor
        const Segment all = {nullptr, nullptr, 0, 0, p.depth};
        for (int u = 0; u < FACTORS; u++)
            multiply_chunk<Floats<W>, MR, NV>(rows + u * CHUNK, Transformed{1, &all}, count, false, panel + u * weights,
                                              panel_stride, width, room + u * APART);
        float* outputs = room + FACTORS * APART;
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < WIDE; j += W)
                transform_outputs<W>(room + i * WIDE + j, APART, outputs + 4 * i * WIDE + j, WIDE);
        const int64_t wide = std::min<int64_t>(WIDE, p.columns - first);
        if (wide == WIDE && (first + wide <= p.split || first >= p.split))
            finish_all<W, NV>(p, 4 * start, 4 * count, first, outputs, WIDE, sums);
        else
            finish_part(p, 4 * start, 4 * count, first, wide, outputs, WIDE, sums);
    }
};

// Squares [start, start + count), count <= TOGETHER.
static void squares(const Product& p, int64_t start, int64_t count, double* sums) {
    const int64_t row = (p.depth + 15) / 16 * 16, apart = TOGETHER * row;
    static thread_local std::vector<float> memory;
    memory.resize(FACTORS * apart + (FACTORS + 4) * TOGETHER * MOST_COLUMNS + 16);
    float* inputs = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / sizeof(float);
    const float *zeros = zero_row(longest(p)), *x[FACTORS * TOGETHER], *rows[FACTORS * CHUNK];
    int64_t channel = 0;
    for (int64_t s = 0; s < p.n_segments; s++) {
        const int64_t length = p.segments[s].length;
        for (int place = 0; place < FACTORS; place++) {
            Segment one = p.segments[s];
            one.offset += place / 4 * p.pitch + place % 4;
            locate(one, p.pos + start, count, zeros, x + place * TOGETHER);
        }
        for (int64_t i = 0; i < count; i++) {
            float* to = inputs + i * row + channel;
            int64_t k = 0;
            for (; k + SM_WIDTH <= length; k += SM_WIDTH) transform_inputs<SM_WIDTH>(x + i, k, to, apart);
            for (; k + 4 <= length; k += 4) transform_inputs<4>(x + i, k, to, apart);
            for (; k < length; k++) transform_inputs<1>(x + i, k, to, apart);
        }
        channel += length;
    }
    for (int u = 0; u < FACTORS; u++)
        for (int64_t i = 0; i < TOGETHER; i++)
            rows[u * CHUNK + i] = inputs + u * apart + std::min(i, count - 1) * row;
    by_columns(Squares{rows, p, start, count, inputs + FACTORS * apart, sums}, p.columns, p.depth, p.packed);
}

// Rows [start, start + count), count <= CHUNK. rows: room for (segments, CHUNK) pointers.
void chunk(const Product& p, int64_t start, int64_t count, const float** rows, double* sums) {
    if (p.pitch) {
        for (int64_t i = 0; i < count; i += TOGETHER) squares(p, start + i, std::min(TOGETHER, count - i), sums);
        return;
    }
    pointers(p, start, count, zero_row(longest(p)), rows);
    if (p.at0) ask_for_outputs(p, start, count);
    if (p.group) return (p.group == 2 ? grouped<SM_WIDTH, 2> : grouped<SM_WIDTH, 4>)(rows, p, start, count, sums);
    by_columns(Chunk{rows, p, start, count, sums}, p.columns, p.depth, p.packed);
}

}  // namespace SM_NAMESPACE

// The product of gathered rows with packed weights by dot products: of pairs of channels in bfloat16, summed in float32
// (AVX512-BF16), or of four in int8, summed in int32 (AVX512-VNNI): the blocks of rows.h, of these instead of numbers. Only
// outputs that are asked for are computed, wherever their rows lie. On other processors the same code runs by plain vectors:
// to be tested there. Included after packed.h.

namespace SM_NAMESPACE {

// What a product multiplies: as many of a row's channels as four bytes have. U has the sum of their products.
template <class U>
struct Groups {
    using Number = typename U::Number;
    using Factor = Words;
    using Sum = typename U::Sum;
    using Sums = typename U::Sums;
    static constexpr int WIDTH = 16, NUMBERS = 4 / sizeof(Number);
    static Factor everywhere(const Number* group) {
        uint32_t all;
        std::memcpy(&all, group, 4);
        return all - Words{};
    }
    static Sums add(Sums sum, Factor a, Factor b) { return U::add(sum, a, b); }
    static int64_t steps(const PackedSegment<Number>& one) { return (one.channels + NUMBERS - 1) / NUMBERS; }
    static int64_t packed_steps(const PackedSegment<Number>& one) { return one.length / NUMBERS; }
};

// The NV panels from column `first` on of `count` outputs from `start` on. rows: pointers, (segments, CHUNK).
template <class U, int MR, int NV>
static void dot_columns(const typename U::Number* const* rows, const PackedProduct<typename U::Number>& p, int64_t start,
                        int64_t count, int64_t first, int64_t depth, double* sums) {
    alignas(64) typename U::Sum tiles[CHUNK * NV * PANEL];
    int64_t listed[CHUNK];
    for (int64_t i = 0; i < count; i++) listed[i] = start + i;
    multiply_chunk<Groups<U>, MR, NV>(rows, p, count, first == 0, p.packed + first * depth, PANEL * depth,
                                      Groups<U>::NUMBERS * PANEL, tiles);
    finish_panels<U, NV>(p, listed, count, first, tiles, NV * PANEL, sums);
}

// Rows of `add` and of the outputs are asked for: where few are kept, no row is near the one before.
template <class P>
static inline void ask_for_outputs(const P& p, int64_t start, int64_t count) {
    if (!p.at) return;
    const int64_t size = size_out(p);
    for (int64_t r = start; r < start + count; r++) {
        for (int64_t j = 0; p.add && j < p.columns; j += 32) __builtin_prefetch(p.add + p.at[r] * p.add_stride + j);
        const char* row = static_cast<const char*>(p.out) + p.at[r] * p.stride * size;
        for (int64_t j = 0; j < p.columns * size; j += 64) __builtin_prefetch(row + j, 1);
    }
}

// As tile_rows.
template <class U>
static void rows_by_dots(const PackedProduct<typename U::Number>& p, std::atomic<int64_t>& next, double* sums) {
    const int64_t depth = depth_of(p);
    const auto* zeros = zeros_for(p);
    std::vector<const typename U::Number*> room(p.n_segments * CHUNK + 1);
    auto** rows = room.data();
    in_chunks(p, next, [&](int64_t start, int64_t end) {
        const int64_t count = std::min<int64_t>(CHUNK, end - start);
        pointers(p, start, count, zeros, rows);
        ask_for_outputs(p, start, count);
        int64_t first = 0;
        for (; p.columns - first > 3 * PANEL; first += 2 * PANEL)
            dot_columns<U, 12, 2>(rows, p, start, count, first, depth, sums);
        for (; p.columns - first > 2 * PANEL; first += 3 * PANEL)
            dot_columns<U, 8, 3>(rows, p, start, count, first, depth, sums);
        for (; p.columns - first > PANEL; first += 2 * PANEL)
            dot_columns<U, 12, 2>(rows, p, start, count, first, depth, sums);
        if (first < p.columns) dot_columns<U, 12, 1>(rows, p, start, count, first, depth, sums);
        return start + count;
    });
}

extern const TileRows emulated_dot_rows = rows_by_dots<PlainBfloat16>;
extern const ByteRows emulated_byte_rows = rows_by_dots<PlainInt8>;
#ifdef SM_BFLOAT16
extern const TileRows dot_rows = rows_by_dots<OwnBfloat16>;
extern const ByteRows byte_rows = rows_by_dots<OwnInt8>;
#else
extern const TileRows dot_rows = nullptr;
extern const ByteRows byte_rows = nullptr;
#endif

}  // namespace SM_NAMESPACE

// The product of gathered rows with packed weights, both in bfloat16 and summed in float32, by dot products of pairs of
// channels (AVX512-BF16): the blocks of rows.h, of pairs instead of numbers. Only outputs that are asked for are computed,
// wherever their rows lie. On other processors the same code runs by plain vectors: to be tested there. Included after
// tiles.h.

namespace SM_NAMESPACE {

// What a product multiplies: pairs of a row's channels. U has the sum of a pair's two products.
template <class U>
struct Pairs {
    static constexpr int WIDTH = 16, NUMBERS = 2;
    using Number = uint16_t;
    using Factor = Words;
    static Factor everywhere(const Number* pair) {
        uint32_t both;
        std::memcpy(&both, pair, 4);
        return both - Words{};
    }
    static Vector<16>::type add(Vector<16>::type sum, Factor a, Factor b) { return U::add(sum, a, b); }
    static int64_t steps(const TileSegment& one) { return (one.channels + 1) / 2; }
    static int64_t packed_steps(const TileSegment& one) { return one.length / 2; }
};

// The NV panels from column `first` on of `count` outputs from `start` on. rows: pointers, (segments, CHUNK).
template <class U, int MR, int NV>
static void dot_columns(const uint16_t* const* rows, const TileProduct& p, int64_t start, int64_t count, int64_t first,
                        int64_t depth, double* sums) {
    alignas(64) float tiles[CHUNK * NV * PANEL];
    int64_t listed[CHUNK];
    for (int64_t i = 0; i < count; i++) listed[i] = start + i;
    multiply_chunk<Pairs<U>, MR, NV>(rows, p, count, first == 0, p.packed + first * depth, PANEL * depth, 2 * PANEL,
                                     tiles);
    finish_panels<U, NV>(p, listed, count, first, tiles, NV * PANEL, sums);
}

// Rows of `add` and of the outputs are asked for: where few are kept, no row is near the one before.
static inline void ask_for_outputs(const TileProduct& p, int64_t start, int64_t count) {
    if (!p.at) return;
    for (int64_t r = start; r < start + count; r++)
        for (int64_t j = 0; j < p.columns; j += 32) {
            if (p.add) __builtin_prefetch(p.add + p.at[r] * p.add_stride + j);
            __builtin_prefetch(p.out + p.at[r] * p.stride + j, 1);
        }
}

// As tile_rows.
template <class U>
static void rows_by_dots(const TileProduct& p, std::atomic<int64_t>& next, double* sums) {
    const int64_t depth = depth_of(p);
    const uint16_t* zeros = zeros_for(p);
    std::vector<const uint16_t*> room(p.n_segments * CHUNK + 1);
    const uint16_t** rows = room.data();
    const int64_t chunks = (p.rows + TAKEN - 1) / TAKEN;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
        const int64_t end = std::min(p.rows, (i + 1) * TAKEN);
        clear_rest(p, i * TAKEN, end);
        for (int64_t start = i * TAKEN, count; start < end && p.columns; start += count) {
            count = std::min<int64_t>(CHUNK, end - start);
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
        }
    }
}

extern const TileRows emulated_dot_rows = rows_by_dots<PlainBfloat16>;
#ifdef SM_BFLOAT16
extern const TileRows dot_rows = rows_by_dots<OwnBfloat16>;
#else
extern const TileRows dot_rows = nullptr;
#endif

}  // namespace SM_NAMESPACE

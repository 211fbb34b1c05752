// What products of packed numbers share (tiles.h, dots.h), in bfloat16 and in int8: the way through a product's outputs, and
// from sums to outputs. Included after int8.h.
#include <atomic>

namespace SM_NAMESPACE {

using sm::ByteProduct;
using sm::PackedProduct;
using sm::PackedSegment;
using sm::TAKEN;
using sm::TileProduct;
using sm::TileSegment;

// Computes chunks of TAKEN outputs until there are none left; sums: (columns), or null.
using TileRows = void (*)(const TileProduct&, std::atomic<int64_t>&, double*);
using ByteRows = void (*)(const ByteProduct&, std::atomic<int64_t>&, double*);

// The way of sixteen outputs into memory, in either type.
template <class U, class P>
static inline void put(const P&, Vector<16>::type v, uint16_t* to) {
    U::round(reinterpret_cast<const float*>(&v), to);
}
template <class U, class P>
static inline void put(const P& p, Vector<16>::type v, uint8_t* to) {
    to_bytes(v, static_cast<float>(p.steps), static_cast<float>(p.out_zero), to);
}

// Bias, addition, activation and rounding of NV panels of columns from `first` on, the last of which may be a part of one, of
// `count` outputs: those of the product's rows `rows` (below zero: none), to numbers of type Out. tile: their sums, `pitch`
// numbers from row to row.
template <class U, class Out, int NV, class P>
static void finish_panels(const P& p, const int64_t* rows, int64_t count, int64_t first, const typename U::Sum* tile,
                          int64_t pitch, double* sums) {
    using V = Vector<16>::type;
    const bool cut = p.activation & 1;  // relu, relu6
    const V zero = {}, slope = static_cast<float>(p.activation == 2 ? p.slope : cut ? 0.0 : 1.0) - zero;
    const V top = (p.activation == 3 ? 6.0f : std::numeric_limits<float>::infinity()) - zero;
    V bias[NV], scale[NV], sum[NV];
    Ints shift[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
        bias[j] = p.bias ? *reinterpret_cast<const V*>(p.bias + first + j * PANEL) : zero;
        scale[j] = p.scales ? *reinterpret_cast<const V*>(p.scales + first + j * PANEL) : zero;
        shift[j] = p.shift ? *reinterpret_cast<const Ints*>(p.shift + first + j * PANEL) : Ints{};
        sum[j] = zero;
    }
    const int64_t rest = std::min(PANEL, p.columns - first - (NV - 1) * PANEL);  // columns of the last panel
    const int32_t* const at = p.at;
    const uint16_t* const add = p.add ? p.add + first : nullptr;
    Out* const out = static_cast<Out*>(p.out) + (p.places ? 0 : first);
    const int32_t* const places = p.places ? p.places + first : nullptr;
    const int64_t stride = p.stride, add_stride = p.add_stride;
    for (int64_t i = 0; i < count; i++, tile += pitch) {
        if (rows[i] < 0) continue;
        const int64_t row = at ? at[rows[i]] : rows[i];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            const bool whole = j + 1 < NV || rest == PANEL;
            V v = U::real(tile + j * PANEL, scale[j], shift[j]) + bias[j], more = zero;
            if (add && whole)
                U::widen(add + row * add_stride + j * PANEL, reinterpret_cast<float*>(&more));
            else if (add)
                for (int64_t k = 0; k < rest; k++) more[k] = widened(add[row * add_stride + j * PANEL + k]);
            v += more;
            v = v > zero ? (v > top ? top : v) : (cut ? zero : v * slope);
            sum[j] += v;
            Out* const to = out + row * stride;
            if (whole && !places) {
                put<U>(p, v, to + j * PANEL);
                continue;
            }
            Out panel[PANEL];
            put<U>(p, v, panel);
            if (places)
                for (int64_t k = 0; k < (whole ? PANEL : rest); k++) to[places[j * PANEL + k]] = panel[k];
            else
                std::memcpy(to + j * PANEL, panel, rest * sizeof(Out));
        }
    }
    if (sums)
        for (int j = 0; j < NV; j++)
            for (int64_t k = 0; k < (j + 1 < NV ? PANEL : rest); k++) sums[first + j * PANEL + k] += sum[j][k];
}

// The same, to numbers of the type that the product says.
template <class U, int NV>
static void finish_panels(const TileProduct& p, const int64_t* rows, int64_t count, int64_t first, const float* tile,
                          int64_t pitch, double* sums) {
    finish_panels<U, uint16_t, NV>(p, rows, count, first, tile, pitch, sums);
}
template <class U, int NV>
static void finish_panels(const ByteProduct& p, const int64_t* rows, int64_t count, int64_t first, const int32_t* tile,
                          int64_t pitch, double* sums) {
    (p.steps ? finish_panels<U, uint8_t, NV, ByteProduct> : finish_panels<U, uint16_t, NV, ByteProduct>)(
        p, rows, count, first, tile, pitch, sums);
}

// Numbers that an output reads, of all segments, up to whole tiles.
template <class P>
static inline int64_t depth_of(const P& p) {
    int64_t depth = 0;
    for (int64_t s = 0; s < p.n_segments; s++) depth += p.segments[s].length;
    return depth;
}

// What is read where there is no row: a row, as long as any segment's, of what stands for zero. Valid in this thread until
// the next call with a greater length.
template <class Number>
static inline const Number* zeros_for(const PackedProduct<Number>& p) {
    int64_t length = 0;
    for (int64_t s = 0; s < p.n_segments; s++) length = std::max(length, p.segments[s].length);
    if (!p.zero) return reinterpret_cast<const Number*>(zero_row((length * sizeof(Number) + 3) / 4 + 1));
    static thread_local std::vector<Number> row;
    row.assign(std::max<size_t>(row.size(), length), static_cast<Number>(p.zero));
    return row.data();
}

// Bytes of a number of the outputs.
static inline int64_t size_out(const TileProduct&) { return 2; }
static inline int64_t size_out(const ByteProduct& p) { return p.steps ? 1 : 2; }

// Zeros where the product's rows [start, end) have no outputs.
template <class P>
static inline void clear_rest(const P& p, int64_t start, int64_t end) {
    const int64_t from = p.places ? 0 : p.columns, size = size_out(p);
    if (p.clear > from)
        for (int64_t r = start; r < end; r++)
            std::memset(static_cast<char*>(p.out) + ((p.at ? p.at[r] : r) * p.stride + from) * size,
                        static_cast<int>(size == 1 ? p.out_zero : 0), size * (p.clear - from));
}

// Chunks of TAKEN outputs until there are none left. some(start, end) computes some of [start, end), and says where it
// stopped.
template <class P, class Some>
static inline void in_chunks(const P& p, std::atomic<int64_t>& next, const Some& some) {
    const int64_t chunks = (p.rows + TAKEN - 1) / TAKEN;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
        int64_t start = i * TAKEN;
        const int64_t end = std::min(p.rows, start + TAKEN);
        clear_rest(p, start, end);
        while (start < end && p.columns) start = some(start, end);
    }
}

}  // namespace SM_NAMESPACE

// The product of gathered rows with packed weights, written once for every vector width.
//
// A block of MR output rows times NV vectors of columns lives in registers; input rows are read through pointers, so
// that nothing is gathered into memory first. Included with SM_NAMESPACE and SM_WIDTH (floats of a vector) defined.
#ifdef __AVX__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "problem.h"

namespace SM_NAMESPACE {

using sm::PANEL;
using sm::Product;
using sm::Segment;

template <int W>
struct Vector {
    typedef float type __attribute__((vector_size(W * 4), aligned(4), may_alias));
    typedef int32_t order __attribute__((vector_size(W * 4)));
};

template <int W>
using Width = std::integral_constant<int, W>;

// block(Width<…>, k) for vectors that cover columns [from, to), none of which begins before `first`. Where columns are no
// multiple of W the last vector overlaps the one before, or all are narrower: what a block writes it may write twice.
template <int W, class Block>
static inline void over_columns(int64_t first, int64_t from, int64_t to, const Block& block) {
    if constexpr (W > 1) {
        if (to - first < W) return over_columns<W / 2>(first, from, to, block);
    }
    int64_t k = from;
    for (; k + W <= to; k += W) block(Width<W>{}, k);
    if (k < to) block(Width<W>{}, to - W);
}

template <int W>
struct Pairs {
    typedef uint64_t type __attribute__((vector_size(W * 4)));
};

constexpr int CHUNK = 48;  // rows whose pointers are kept while all panels pass by; a multiple of every block's rows
constexpr int64_t NEAREST = 4096;  // floats of weights that stay in the nearest cache beside the rows
constexpr int MAX_ZEROS = 4096;

alignas(64) static const float few_zeros[MAX_ZEROS] = {};

// A row of `length` zeros, read where nothing lies. Valid in this thread until the next call with a greater length.
static inline const float* zero_row(int64_t length) {
    if (length <= MAX_ZEROS) return few_zeros;
    static thread_local std::vector<float> more;
    if (static_cast<int64_t>(more.size()) < length) more.assign(length, 0.0f);
    return more.data();
}

static inline int64_t longest(const Product& p) {
    int64_t length = 0;
    for (int64_t s = 0; s < p.n_segments; s++) length = std::max(length, p.segments[s].length);
    return length;
}

// Four numbers, in every four of a vector.
template <int W>
struct Spread {
    static typename Vector<W>::type four(const float* x) {
        typename Vector<W>::type all;
#if SM_WIDTH == 16 && defined(__AVX512F__)
        if constexpr (W == 16) return _mm512_broadcast_f32x4(_mm_loadu_ps(x));
#elif SM_WIDTH == 8 && defined(__AVX__)
        if constexpr (W == 8) return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x));
#endif
        for (int i = 0; i < W; i += 4) std::memcpy(reinterpret_cast<float*>(&all) + i, x, 16);
        return all;
    }
};

// What a product multiplies, and how: a row's NUMBERS at every step along the depth, with WIDTH sums. Here G numbers in
// float32, which lie side by side in a vector for each of its W / G columns, whose sums are added up at the end. Sum, Sums: a
// sum, and as many as a vector has.
template <int W, int G = 1>
struct Floats {
    static constexpr int WIDTH = W, NUMBERS = G;
    using Number = float;
    using Factor = typename Vector<W>::type;
    using Sum = float;
    using Sums = Factor;
    static Factor everywhere(const float* x) {
        if constexpr (G == 1) {
            return *x - Factor{};
        } else if constexpr (G == 2) {
            uint64_t pair;
            std::memcpy(&pair, x, sizeof(pair));
            return reinterpret_cast<Factor>(pair - typename Pairs<W>::type{});
        } else {
            return Spread<W>::four(x);
        }
    }
    static Sums add(Sums sum, Factor a, Factor b) { return sum + a * b; }
    static int64_t steps(const Segment& one) { return one.length / G; }
    static int64_t packed_steps(const Segment& one) { return one.length / G; }  // those that have weights
};

// Vector registers, and steps along the depth for which the weights of NV vectors are held beside MR * NV sums: an input
// row's pointer, which waits in memory where rows are many, is fetched once for all of them.
constexpr int REGISTERS = SM_WIDTH == 16 ? 32 : 16;
constexpr int steps_of(int sums, int vectors) {
    const int left = (REGISTERS - 1 - sums) / vectors;
    return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// sums (MR, NV) += STEPS steps of every row, from step `k` on, times their weights.
template <class A, int MR, int NV, int STEPS>
static inline __attribute__((always_inline)) void add_steps(typename A::Sums (&sum)[MR][NV],
                                                            const typename A::Number* const (&x)[MR], int64_t k,
                                                            const typename A::Number* w, int64_t panel_stride,
                                                            int64_t width) {
    using F = typename A::Factor;
    constexpr int W = A::WIDTH, PER = W >= PANEL ? 1 : PANEL / W;  // vectors of a panel
    F b[STEPS][NV];
#pragma GCC unroll 4
    for (int n = 0; n < STEPS; n++)
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++)
            b[n][j] = *reinterpret_cast<const F*>(w + n * width + (j / PER) * panel_stride + (j % PER) * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int n = 0; n < STEPS; n++) {
            const F a = A::everywhere(x[i] + (k + n) * A::NUMBERS);
#pragma GCC unroll 8
            for (int j = 0; j < NV; j++) sum[i][j] = A::add(sum[i][j], a, b[n][j]);
        }
}

// tile (MR, NV * W) += rows . weights over the segments [from, to); from 0 on it starts at zero.
// rows: pointers, (segments, CHUNK), from this block's first row on.
template <class A, int MR, int NV, class P>
static void block(const typename A::Number* const* rows, const P& p, int64_t from, int64_t to,
                  const typename A::Number* w, int64_t panel_stride, int64_t width, typename A::Sum* tile) {
    constexpr int W = A::WIDTH, STEPS = steps_of(MR * NV, NV);
    using V = typename A::Sums;
    V sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) sum[i][j] = from ? *reinterpret_cast<V*>(tile + (i * NV + j) * W) : V{};
    for (int64_t s = from; s < to; s++) {
        const typename A::Number* x[MR];
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) x[i] = rows[s * CHUNK + i];
        const int64_t length = A::steps(p.segments[s]);
        int64_t k = 0;
        for (; k + STEPS <= length; k += STEPS, w += STEPS * width)
            add_steps<A, MR, NV, STEPS>(sum, x, k, w, panel_stride, width);
        if constexpr (STEPS > 1)
            for (; k < length; k++, w += width) add_steps<A, MR, NV, 1>(sum, x, k, w, panel_stride, width);
        w += (A::packed_steps(p.segments[s]) - length) * width;
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) *reinterpret_cast<V*>(tile + (i * NV + j) * W) = sum[i][j];
}

static inline float activate(const Product& p, float v, int64_t column) {
    if (p.activation == 1) return v > 0 ? v : 0;
    if (p.activation == 3) return v > 0 ? (v > 6 ? 6 : v) : 0;
    return p.activation == 2 && v < 0 ? v * (p.slopes ? p.slopes[column] : static_cast<float>(p.slope)) : v;
}

// Bias, addition, activation, and the way to the outputs, of columns [first, first + count) of one row.
static void finish(const Product& p, int64_t r, int64_t first, int64_t count, const float* v, double* sums) {
    const int64_t row0 = p.at0 ? p.at0[r] : r, more = p.add_map ? p.add_map[row0] : row0;
    for (int64_t j = first; j < first + count; j++) {
        float value = v[j - first] + (p.bias ? p.bias[j] : 0);
        if (p.add) value += p.add[more * p.add_stride + j];
        value = activate(p, value, j);
        if (sums) sums[j] += value;
        if (j < p.split)
            p.out0[row0 * p.stride0 + j] = value;
        else
            p.out1[(p.at1 ? p.at1[r] : r) * p.stride1 + j - p.split] = value;
    }
}

// The same for `count` rows whose NV * W columns from `first` on all go to one output. tiles: `pitch` numbers from row to
// row.
template <int W, int NV>
static void finish_all(const Product& p, int64_t start, int64_t count, int64_t first, const float* tiles, int64_t pitch,
                       double* sums) {
    using V = typename Vector<W>::type;
    const bool left = first < p.split;
    float* out = left ? p.out0 + first : p.out1 + (first - p.split);
    const int32_t* at = left ? p.at0 : p.at1;
    const int64_t stride = left ? p.stride0 : p.stride1;
    const bool cut = p.activation & 1;  // relu, relu6
    const V zero = {}, slope = static_cast<float>(p.activation == 2 ? p.slope : cut ? 0.0 : 1.0) - zero;
    const V top = (p.activation == 3 ? 6.0f : std::numeric_limits<float>::infinity()) - zero;
    V bias[NV], sum[NV], slopes[NV];
    for (int j = 0; j < NV; j++) {
        slopes[j] = p.slopes ? *reinterpret_cast<const V*>(p.slopes + first + j * W) : slope;
        bias[j] = p.bias ? *reinterpret_cast<const V*>(p.bias + first + j * W) : zero;
        sum[j] = zero;
    }
    for (int64_t i = 0; i < count; i++, tiles += pitch) {
        const int64_t r = start + i;
        float* to = out + (at ? at[r] : r) * stride;
        const int64_t row0 = p.at0 ? p.at0[r] : r;
        const float* more = p.add ? p.add + (p.add_map ? p.add_map[row0] : row0) * p.add_stride + first : nullptr;
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) {
            V v = *reinterpret_cast<const V*>(tiles + j * W) + bias[j];
            if (more) v += *reinterpret_cast<const V*>(more + j * W);
            v = v > zero ? (v > top ? top : v) : (cut ? zero : v * slopes[j]);
            sum[j] += v;
            *reinterpret_cast<V*>(to + j * W) = v;
        }
    }
    if (sums)
        for (int j = 0; j < NV; j++)
            for (int k = 0; k < W; k++) sums[first + j * W + k] += sum[j][k];
}

// The same for any `wide` columns from `first` on: vectors as wide as fit on either side of the split, then one by one.
static void finish_part(const Product& p, int64_t start, int64_t count, int64_t first, int64_t wide, const float* tiles,
                        int64_t pitch, double* sums) {
    for (int64_t j = 0, taken; j < wide; j += taken) {
        const int64_t column = first + j;
        const int64_t left = (column < p.split ? std::min(first + wide, p.split) : first + wide) - column;
        taken = left >= SM_WIDTH ? SM_WIDTH : left >= 4 ? (left >= 8 && SM_WIDTH > 8 ? 8 : 4) : left;
        if (taken == SM_WIDTH)
            finish_all<SM_WIDTH, 1>(p, start, count, column, tiles + j, pitch, sums);
        else if (taken == 8)
            finish_all<8, 1>(p, start, count, column, tiles + j, pitch, sums);
        else if (taken == 4)
            finish_all<4, 1>(p, start, count, column, tiles + j, pitch, sums);
        else
            for (int64_t i = 0; i < count; i++) finish(p, start + i, column, taken, tiles + i * pitch + j, sums);
    }
}

// Whether a segment reads almost the same rows as the one before, or the one before that, where taps of two buffers are
// taken in turn: a tap one or two places further.
template <class P>
static inline bool follows(const P& p, int64_t s) {
    for (int64_t t = s - 1; t >= 0 && t >= s - 2; t--)
        if (p.segments[s].base == p.segments[t].base) return p.segments[s].offset - p.segments[t].offset <= 2;
    return false;
}

// tiles (count, NV * W) = all rows of a chunk times NV vectors of columns. Segments are taken in groups whose weights fit
// the nearest cache, the sums waiting in `tiles` meanwhile; rows are asked for, where `ahead` says so, while the ones before
// are computed.
template <class A, int MR, int NV, class P>
static void multiply_chunk(const typename A::Number* const* rows, const P& p, int64_t count, bool ahead,
                           const typename A::Number* panel, int64_t panel_stride, int64_t width,
                           typename A::Sum* tiles) {
    constexpr int64_t GROUP = NEAREST / (NV * A::WIDTH);  // steps of a group
    constexpr int64_t LINE = 64 / (A::NUMBERS * sizeof(typename A::Number));  // steps of a line of the cache
    int64_t from = 0;
    do {
        int64_t to = from, depth = 0;
        do {
            depth += to < p.n_segments ? A::packed_steps(p.segments[to]) : 0;
            to++;
        } while (to < p.n_segments && depth + A::packed_steps(p.segments[to]) <= GROUP);
        to = std::min(to, p.n_segments);
        for (int64_t i = 0; i < count; i += MR) {
            const bool more = i + MR < count;  // else the next group's first rows are asked for
            for (int64_t s = more ? from : to; ahead && s < (more ? to : std::min(to + 1, p.n_segments)); s++)
                for (int64_t j = (more ? i + MR : 0) + (follows(p, s) ? MR - 1 : 0), end = more ? i + 2 * MR : MR; j < end;
                     j++)
                    for (int64_t k = 0; k < A::steps(p.segments[s]); k += LINE)
                        __builtin_prefetch(rows[s * CHUNK + j] + k * A::NUMBERS);
            block<A, MR, NV>(rows + i, p, from, to, panel, panel_stride, width, tiles + i * NV * A::WIDTH);
        }
        panel += depth * width;
        from = to;
    } while (from < p.n_segments);
}

// A chunk of a product's rows, by columns.
struct Chunk {
    const float* const* rows;
    const Product& p;
    int64_t start, count;
    double* sums;

    // All rows times the NV vectors of columns from `first` on.
    template <int W, int MR, int NV>
    void columns(int64_t first, const float* panel, int64_t panel_stride, int64_t width) const {
        alignas(64) float tiles[CHUNK * NV * W];
        const int64_t wide = std::min<int64_t>(NV * W, p.columns - first);
        multiply_chunk<Floats<W>, MR, NV>(rows, p, count, first == 0, panel, panel_stride, width, tiles);
        if (wide == NV * W && (first + wide <= p.split || first >= p.split))
            finish_all<W, NV>(p, start, count, first, tiles, NV * W, sums);
        else
            finish_part(p, start, count, first, wide, tiles, NV * W, sums);
    }
};

// All columns of what is `given`, in blocks of rows and columns that fill the registers. panel: packed weights (depth, columns).
template <class Given>
static void by_columns(const Given& given, int64_t columns, int64_t depth, const float* panel) {
    int64_t first = 0;
    const int64_t stride = depth * PANEL;
#if SM_WIDTH == 16
    // sm_pack lays the last panel 8 wide where 8 or fewer columns are left: a call takes it in only where it is wider.
    for (; columns - first > 3 * PANEL + 8; first += 4 * PANEL, panel += 4 * stride)
        given.template columns<16, 6, 4>(first, panel, stride, PANEL);
    for (; columns - first > 2 * PANEL + 8; first += 3 * PANEL, panel += 3 * stride)
        given.template columns<16, 8, 3>(first, panel, stride, PANEL);
    for (; columns - first > PANEL + 8; first += 2 * PANEL, panel += 2 * stride)
        given.template columns<16, 12, 2>(first, panel, stride, PANEL);
    for (; columns - first > 8; first += PANEL, panel += stride)
        given.template columns<16, 12, 1>(first, panel, stride, PANEL);
    if (first < columns) given.template columns<8, 12, 1>(first, panel, stride, 8);
#elif SM_WIDTH == 8
    for (; columns - first > 8; first += PANEL, panel += stride) given.template columns<8, 6, 2>(first, panel, stride, PANEL);
    if (first < columns) given.template columns<8, 12, 1>(first, panel, stride, 8);
#else
    for (; columns - first > 8; first += PANEL, panel += stride) given.template columns<4, 4, 4>(first, panel, stride, PANEL);
    if (first < columns) given.template columns<4, 6, 2>(first, panel, stride, 8);
#endif
}

// The sums of neighbours of two vectors.
template <int W>
static inline typename Vector<W>::type pair_sums(typename Vector<W>::type a, typename Vector<W>::type b) {
#ifdef __clang__
    typename Vector<W>::type even, odd;
    for (int i = 0; i < W / 2; i++)
        even[i] = a[2 * i], odd[i] = a[2 * i + 1], even[W / 2 + i] = b[2 * i], odd[W / 2 + i] = b[2 * i + 1];
    return even + odd;
#else
    typename Vector<W>::order even;
    for (int i = 0; i < W; i++) even[i] = 2 * i;
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
#endif
}

// All columns of a chunk's rows, G steps of the depth at a time: VECTORS times 16 / G columns, as many as the product has or
// a few more. Packed weights: at every step the vectors, of G weights of each column.
template <int W, int G, int VECTORS>
static void grouped(const float* const* rows, const Product& p, int64_t start, int64_t count, double* sums) {
    constexpr int ALL = VECTORS * 16, NV = ALL / W, MOST = W == 16 ? 24 : 12;
    constexpr int MR = std::min(12, MOST / NV >= 8 ? MOST / NV / 4 * 4 : MOST / NV);
    static_assert(MR >= 1 && CHUNK % MR == 0, "blocks that fill a chunk");
    using V = typename Vector<W>::type;
    alignas(64) float tiles[CHUNK * ALL];
    multiply_chunk<Floats<W, G>, MR, NV>(rows, p, count, true, p.packed, PANEL, ALL, tiles);
    // The sums of every G neighbours, in place: an output is written where what it is made of has been read.
    for (int n = G; n > 1; n /= 2) {
        float* to = tiles;
        const float* from = tiles;
        for (int64_t left = count * ALL * n / G; left > 0; left -= 2 * W, from += 2 * W, to += W)
            *reinterpret_cast<V*>(to) =
                pair_sums<W>(*reinterpret_cast<const V*>(from), *reinterpret_cast<const V*>(from + W));
    }
    finish_part(p, start, count, 0, p.columns, tiles, ALL / G, sums);
}

template <int W, int G>
static void grouped(const float* const* rows, const Product& p, int64_t start, int64_t count, double* sums) {
    const int64_t vectors = (p.columns * G + 15) / 16;
    (vectors == 1 ? grouped<W, G, 1> : vectors == 2 ? grouped<W, G, 2> : grouped<W, G, 3>)(rows, p, start, count, sums);
}

// Pointers to the rows that the `count` outputs at `pos`, which rise, read by one segment, if nothing is left out of the
// buffer between the first of them and the last: they follow from the first.
template <class S, class T>
static inline bool locate_together(const S& one, const int32_t* pos, int64_t count, const T** rows) {
    const int64_t first = pos[0] + one.offset, last = pos[count - 1] + one.offset;
    const int64_t from = one.map ? one.map[first] : first, to = one.map ? one.map[last] : last;
    if (from < 0 || to - from != last - first) return false;
    const T* base = one.base + (from - pos[0]) * one.stride;
    const int32_t stride = static_cast<int32_t>(one.stride);
    for (int64_t i = 0; i < count; i++) rows[i] = base + static_cast<int64_t>(pos[i]) * stride;
    return true;
}

// The same for any outputs; `zeros` where there is no row.
template <class S, class T>
static void locate(const S& one, const int32_t* pos, int64_t count, const T* zeros, const T** rows) {
    constexpr int64_t NEAR = 8;  // pointers of a vector
    if (locate_together(one, pos, count, rows)) return;
    for (int64_t start = 0; start < count; start += NEAR, pos += NEAR, rows += NEAR) {
        const int64_t left = std::min(NEAR, count - start);
        if (left == NEAR && locate_together(one, pos, NEAR, rows)) continue;
        for (int64_t i = 0; i < left; i++) {
            const int64_t at = pos[i] + one.offset, found = one.map ? one.map[at] : at;
            // Chosen by its bits: what is kept of a mask no branch foresees.
            const uintptr_t row = reinterpret_cast<uintptr_t>(one.base) + found * one.stride * sizeof(T);
            const uintptr_t none = static_cast<uintptr_t>(found >> 63);
            rows[i] = reinterpret_cast<const T*>((row & ~none) | (reinterpret_cast<uintptr_t>(zeros) & none));
        }
    }
}

// Pointers (segments, CHUNK) to the rows that the outputs [start, start + count) read, to zeros beyond them.
template <class P, class T>
static void pointers(const P& p, int64_t start, int64_t count, const T* zeros, const T** rows) {
    for (int64_t s = 0; s < p.n_segments; s++, rows += CHUNK) {
        locate(p.segments[s], p.pos + start, count, zeros, rows);
        for (int64_t i = count; i < CHUNK; i++) rows[i] = zeros;
    }
}

// What is added to the outputs of a chunk, and where they go, is asked for: scattered rows are in no near cache.
static inline void ask_for_outputs(const Product& p, int64_t start, int64_t count) {
    for (int64_t r = start; r < start + count; r++) {
        const int64_t row = p.at0[r];
        const float* add = p.add + (p.add_map ? p.add_map[row] : row) * p.add_stride;
        for (int64_t j = 0; p.add && j < p.columns; j += 16) __builtin_prefetch(add + j);
        for (int64_t j = 0; j < p.split; j += 16) __builtin_prefetch(p.out0 + row * p.stride0 + j, 1);
    }
}

// Depth-wise sums of one row in NV vectors of columns from `k` on. x: rows of the segments, null for a row of zeros.
template <int W, int NV>
static inline void depth_block(const Product& p, const float* const* x, int64_t n, int64_t k, float* to) {
    using V = typename Vector<W>::type;
    const V zero = {};
    V v[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) v[j] = p.bias ? *reinterpret_cast<const V*>(p.bias + k + j * W) : zero;
    for (int64_t s = 0; s < n; s++) {
        if (!x[s]) continue;
        const float *in = x[s] + k, *w = p.packed + s * p.columns + k;
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++)
            v[j] += *reinterpret_cast<const V*>(in + j * W) * *reinterpret_cast<const V*>(w + j * W);
    }
    if (p.activation) {
        const bool cut = p.activation & 1;
        V slopes[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++)
            slopes[j] = p.slopes ? *reinterpret_cast<const V*>(p.slopes + k + j * W) : static_cast<float>(p.slope) - zero;
        const V top = (p.activation == 3 ? 6.0f : std::numeric_limits<float>::infinity()) - zero;
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) v[j] = v[j] > zero ? (v[j] > top ? top : v[j]) : (cut ? zero : v[j] * slopes[j]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) *reinterpret_cast<V*>(to + j * W) = v[j];
}

// Depth-wise: every column has its own weight in every segment; packed is (segments, columns). All columns go to out0.
void depthwise(const Product& p, int64_t start, int64_t count) {
    constexpr int W = SM_WIDTH;
    const int64_t n = p.n_segments;
    std::vector<const float*> listed(n);
    const float** x = listed.data();
    for (int64_t r = start; r < start + count; r++) {
        for (int64_t s = 0; s < n; s++) {
            const Segment& one = p.segments[s];
            const int64_t at = p.pos[r] + one.offset;
            const int64_t found = one.map ? one.map[at] : at;
            x[s] = found < 0 ? nullptr : one.base + found * one.stride;
        }
        float* to = p.out0 + (p.at0 ? p.at0[r] : r) * p.stride0;
        int64_t k = 0;
        for (; k + 4 * W <= p.columns; k += 4 * W) depth_block<W, 4>(p, x, n, k, to + k);
        over_columns<W>(0, k, p.columns, [&](auto wide, int64_t at) { depth_block<wide.value, 1>(p, x, n, at, to + at); });
    }
}

}  // namespace SM_NAMESPACE

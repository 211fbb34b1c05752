// An inverted residual's parts, written once for every vector width: expansion into a ring of lines, and the depth-wise
// convolution with the projection behind it, a few places at a time, so that neither is ever held for a whole picture.
//
// Included with SM_NAMESPACE and SM_WIDTH defined, after rows.h.
#include "problem.h"

namespace SM_NAMESPACE {

using sm::Inverted;

// Depth-wise sums of N neighbours of one line, W channels from k on: `in` has their 3 x ((N - 1) S + 3) places, line by
// line; out rows are `stride` floats apart. relu6 of it.
template <int W, int N, int S>
static inline void neighbour_sums(const Inverted& p, const float* const* in, int64_t k, float* out, int64_t stride) {
    constexpr int READ = (N - 1) * S + 3;
    using V = typename Vector<W>::type;
    const V zero = {}, top = 6.0f - zero;
    V sum[N];
    for (int i = 0; i < N; i++) sum[i] = *reinterpret_cast<const V*>(p.taps_bias + k);
#pragma GCC unroll 3
    for (int line = 0; line < 3; line++) {
        V w[3];
#pragma GCC unroll 3
        for (int t = 0; t < 3; t++) w[t] = *reinterpret_cast<const V*>(p.taps + (3 * line + t) * p.middle + k);
#pragma GCC unroll 16
        for (int column = 0; column < READ; column++) {
            const V x = *reinterpret_cast<const V*>(in[line * READ + column] + k);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) {
                const int t = column - i * S;
                if (t >= 0 && t < 3) sum[i] += x * w[t];
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
        const V v = sum[i] > zero ? (sum[i] > top ? top : sum[i]) : zero;
        *reinterpret_cast<V*>(out + i * stride + k) = v;
    }
}

// The same for channels [from, to).
template <int N, int S>
static void neighbours(const Inverted& p, const float* const* in, int64_t from, int64_t to, float* out,
                       int64_t stride) {
    over_columns<SM_WIDTH>(from, from, to,
                           [&](auto wide, int64_t k) { neighbour_sums<wide.value, N, S>(p, in, k, out, stride); });
}

// The rows that N neighbours from output (y, x) on read, zeros outside of the picture.
template <int N, int S>
static void around(const Inverted& p, const sm::Ring& ring, int64_t sample, int64_t y, int64_t x, const float** in) {
    constexpr int READ = (N - 1) * S + 3;
    const float* zeros = zero_row(p.middle);
    for (int line = 0; line < 3; line++) {
        const int64_t row = y * S + line - 1;
        const bool there = row >= 0 && row < p.height;
        const float* base = there ? ring.base + ((sample * p.height + row) * p.width % ring.places) * p.middle : zeros;
        for (int column = 0; column < READ; column++) {
            const int64_t at = x * S + column - 1;
            in[line * READ + column] = there && at >= 0 && at < p.width ? base + at * p.middle : zeros;
        }
    }
}

template <int S>
static void depthwise_places(const Inverted& p, const sm::Ring& ring, const int32_t* at, int64_t count, int64_t from,
                             int64_t to, float* out) {
    const float* in[3 * (3 * S + 3)];
    const int64_t places = p.out_height * p.out_width;
    for (int64_t i = 0; i < count;) {
        const int64_t sample = at[i] / places, y = at[i] % places / p.out_width, x = at[i] % p.out_width;
        float* row = out + i * p.middle;
        if (i + 4 <= count && at[i + 3] - at[i] == 3 && x + 4 <= p.out_width) {
            around<4, S>(p, ring, sample, y, x, in);
            neighbours<4, S>(p, in, from, to, row, p.middle);
            i += 4;
        } else {
            around<1, S>(p, ring, sample, y, x, in);
            neighbours<1, S>(p, in, from, to, row, p.middle);
            i++;
        }
    }
}

// A 1x1 product of `count` rows of a buffer, which lie at `pos`.
static void point_product(const float* base, int64_t stride, int64_t length, const int32_t* pos, int64_t count,
                          const float* packed, const float* bias, int64_t columns, int64_t activation, float* out,
                          const int32_t* at, int64_t out_stride, const float* add, int64_t add_stride) {
    const Segment segment{base, nullptr, stride, 0, length};
    Product q{};
    q.rows = count, q.pos = pos, q.n_segments = 1, q.segments = &segment, q.depth = length, q.columns = columns;
    q.packed = packed, q.bias = bias, q.activation = activation, q.split = columns;
    q.out0 = out, q.at0 = at, q.stride0 = out_stride, q.add = add, q.add_stride = add_stride;
    const float* rows[CHUNK + 1];
    chunk(q, 0, count, rows, nullptr);
}

// Expand `count` <= CHUNK input places; of dropped ones the channels that are dense, the others are zero.
void expand(const Inverted& p, const sm::Ring& ring, const int32_t* pos, int64_t count, bool kept) {
    int32_t at[CHUNK];
    for (int64_t i = 0; i < count; i++) at[i] = static_cast<int32_t>(pos[i] % ring.places);
    const int64_t dense = p.only_before + p.both;
    if (kept || dense)
        point_product(p.x, p.channels, p.channels, pos, count, kept ? p.expand : p.expand_dense, p.expand_bias,
                      kept ? p.middle : dense, 3, ring.base, at, p.middle, nullptr, 0);
    if (!kept && dense < p.middle)
        for (int64_t i = 0; i < count; i++)
            std::memset(ring.base + at[i] * p.middle + dense, 0, (p.middle - dense) * sizeof(float));
}

// Depth-wise and projection of `count` <= CHUNK output places. buffer: (CHUNK, middle).
void contract(const Inverted& p, const sm::Ring& ring, const int32_t* at, int64_t count, bool kept, float* buffer) {
    const float* add = p.shortcut ? p.x : nullptr;
    if (!kept && !p.project_dense) {
        for (int64_t i = 0; i < count; i++) {
            float* to = p.out + at[i] * p.outputs;
            if (add)
                std::memcpy(to, add + at[i] * p.outputs, p.outputs * sizeof(float));
            else
                std::memset(to, 0, p.outputs * sizeof(float));
        }
        return;
    }
    if (!p.taps) {
        point_product(p.x, p.channels, p.channels, at, count, p.project, p.project_bias, p.outputs, 0, p.out, at,
                      p.outputs, add, p.outputs);
        return;
    }
    const int64_t from = kept ? 0 : p.only_before, to = kept ? p.middle : p.only_before + p.both;
    if (p.stride == 1)
        depthwise_places<1>(p, ring, at, count, from, to, buffer);
    else
        depthwise_places<2>(p, ring, at, count, from, to, buffer);
    if (!kept)  // nothing is read where it is dropped: the bias alone
        for (int64_t i = 0; i < count; i++)
            for (int64_t k = to; k < to + p.only_after; k++)
                buffer[i * p.middle + k] = std::min(std::max(p.taps_bias[k], 0.0f), 6.0f);
    int32_t numbers[CHUNK];
    for (int64_t i = 0; i < count; i++) numbers[i] = static_cast<int32_t>(i);
    const int64_t length = kept ? p.middle : p.both + p.only_after;
    point_product(buffer + from, p.middle, length, numbers, count, kept ? p.project : p.project_dense,
                  kept ? p.project_bias : p.project_dense_bias, p.outputs, 0, p.out, at, p.outputs, add, p.outputs);
}

}  // namespace SM_NAMESPACE

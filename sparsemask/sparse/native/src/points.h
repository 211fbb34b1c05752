// Point convolution's gather - look up - multiply - sum, written once for every vector width.
//
// out[i] = table[bin(i,0)] . (g[i] - xyz_i . rel) + sum over k > 0 of table[bin(i,k)] . (g[j_k] - g[i]), channel by
// channel, where g holds the 1x1 convolution of features and coordinates and `rel` its three rows of coordinates.
// Included with SM_NAMESPACE and SM_WIDTH defined, after rows.h.
#include <cmath>
#include <type_traits>

#include "problem.h"

namespace SM_NAMESPACE {

using sm::PointGrads;
using sm::Points;

template <int W>
using Width = std::integral_constant<int, W>;

template <int W, int NV>
static inline void point_block(const Points& p, const float* const* near, const float* const* look, const float* own,
                               const float* at, int64_t c, float* to) {
    using V = typename Vector<W>::type;
    auto load = [](const float* from) { return *reinterpret_cast<const V*>(from); };
    V self[NV], sum[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
        self[v] = load(own + c + v * W);
        const float* rel = p.rel + c + v * W;
        sum[v] = load(look[0] + c + v * W) * (self[v] - (at[0] * load(rel) + at[1] * load(rel + p.rel_stride) +
                                                         at[2] * load(rel + 2 * p.rel_stride)));
    }
    for (int64_t k = 1; k < p.k; k++) {
        const float *g = near[k] + c, *t = look[k] + c;
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) sum[v] += load(t + v * W) * (load(g + v * W) - self[v]);
    }
    const V zero = {};
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
        if (p.bias) sum[v] += load(p.bias + c + v * W);
        if (p.relu) sum[v] = sum[v] > zero ? sum[v] : zero;
        *reinterpret_cast<V*>(to + c + v * W) = sum[v];
    }
}

// The cells of the neighbours of points [start, start + count), axes z, y, x of a cube of `size` cells an axis;
// neighbours beyond `radius` count to the outermost ones. Rounding towards zero, or to nearest. rel: room for 3 k.
void point_bins(const sm::PointBins& p, int64_t start, int64_t count, float* rel) {
    const float half = static_cast<float>(p.size) / 2, radius = p.radius;
    const int middle = static_cast<int>(p.size / 2), wide = static_cast<int>(p.size);
    for (int64_t i = start; i < start + count; i++) {
        const int32_t* j = p.neighbours + i * p.k;
        for (int64_t c = 0; c < p.k; c++)
            for (int a = 0; a < 3; a++) rel[a * p.k + c] = p.xyz[3 * static_cast<int64_t>(j[c]) + a] - p.xyz[3 * i + a];
        for (int64_t c = 0; c < 3 * p.k; c++) {
            float u = rel[c] / radius;
            u = u > -0.99999f ? u : -0.99999f;
            rel[c] = half * (u < 0.99999f ? u : 0.99999f);
        }
        if (p.nearest)
            for (int64_t c = 0; c < 3 * p.k; c++) rel[c] = std::nearbyint(rel[c]);
        uint8_t* to = p.bins + i * p.k;
        for (int64_t c = 0; c < p.k; c++) {
            const int x = static_cast<int>(rel[c]) + middle, y = static_cast<int>(rel[p.k + c]) + middle;
            to[c] = static_cast<uint8_t>(((static_cast<int>(rel[2 * p.k + c]) + middle) * wide + y) * wide + x);
        }
    }
}

// Outputs [start, start + count). near, look: room for k pointers each.
void point_rows(const Points& p, int64_t start, int64_t count, const float** near, const float** look, float* row) {
    constexpr int W = SM_WIDTH, NV = 4;
    for (int64_t r = start; r < start + count; r++) {
        const int64_t i = p.points ? p.points[r] : r;
        const int32_t* j = p.neighbours + i * p.k;
        const uint8_t* bins = p.bins + i * p.k;
        for (int64_t k = 0; k < p.k; k++) {
            near[k] = p.g + (p.map ? p.map[j[k]] : j[k]) * p.stride;
            look[k] = p.table + bins[k] * p.table_stride;
        }
        const float* own = p.g + (p.map ? p.map[i] : i) * p.stride;
        const float* at = p.xyz + 3 * i;
        if (r + 1 < start + count) {
            const int64_t next = p.points ? p.points[r + 1] : r + 1;
            for (int64_t k = 1; k < p.k; k++) {
                const int64_t from = p.neighbours[next * p.k + k];
                const float* line = p.g + (p.map ? p.map[from] : from) * p.stride;
                for (int64_t c = 0; c < p.columns; c += 16) __builtin_prefetch(line + c);
            }
        }
        float* whole = p.split >= p.columns ? p.out0 + i * p.stride0 : row;
        int64_t c = 0;
        for (; c + NV * W <= p.columns; c += NV * W) point_block<W, NV>(p, near, look, own, at, c, whole);
        for (; c + W <= p.columns; c += W) point_block<W, 1>(p, near, look, own, at, c, whole);
        if (c < p.columns) {
            if (p.columns >= W)
                point_block<W, 1>(p, near, look, own, at, p.columns - W, whole);
            else
                for (; c < p.columns; c++) point_block<1, 1>(p, near, look, own, at, c, whole);
        }
        if (whole != row) continue;
        std::memcpy(p.out0 + i * p.stride0, row, p.split * sizeof(float));
        std::memcpy(p.out1 + r * p.stride1, row + p.split, (p.columns - p.split) * sizeof(float));
    }
}

// Backward by outputs [start, start + count): to_g[i] what g[i] gets as the centre; to_table, this thread's (bins,
// columns), gets the table's gradient.
void point_centres(const PointGrads& p, int64_t start, int64_t count, float* to_table) {
    constexpr int W = SM_WIDTH;
    auto step = [&](auto wide, int64_t i, int64_t c) {
        using T = typename Vector<wide.value>::type;
        auto load = [](const float* from) { return *reinterpret_cast<const T*>(from); };
        const int32_t* j = p.neighbours + i * p.k;
        const uint8_t* bins = p.bins + i * p.k;
        const float *at = p.xyz + 3 * i, *rel = p.rel + c;
        const T self = load(p.g + i * p.columns + c), dy = load(p.grad + i * p.columns + c);
        T mine = dy * load(p.table + bins[0] * p.columns + c);
        T* first = reinterpret_cast<T*>(to_table + bins[0] * p.columns + c);
        *first += dy * (self - (at[0] * load(rel) + at[1] * load(rel + p.columns) + at[2] * load(rel + 2 * p.columns)));
        for (int64_t k = 1; k < p.k; k++) {
            mine -= dy * load(p.table + bins[k] * p.columns + c);
            T* to = reinterpret_cast<T*>(to_table + bins[k] * p.columns + c);
            *to += dy * (load(p.g + static_cast<int64_t>(j[k]) * p.columns + c) - self);
        }
        *reinterpret_cast<T*>(p.to_g + i * p.columns + c) = mine;
    };
    for (int64_t i = start; i < start + count; i++) {
        int64_t c = 0;
        for (; c + W <= p.columns; c += W) step(Width<W>{}, i, c);
        for (; c < p.columns; c++) step(Width<1>{}, i, c);
    }
}

// Backward by inputs [start, start + count): to_g[j] gets what every output that reads it as a neighbour gives.
void point_neighbours(const PointGrads& p, int64_t start, int64_t count) {
    constexpr int W = SM_WIDTH;
    auto step = [&](auto wide, int64_t j, int64_t c) {
        using T = typename Vector<wide.value>::type;
        auto load = [](const float* from) { return *reinterpret_cast<const T*>(from); };
        T sum = load(p.to_g + j * p.columns + c);
        for (int64_t e = p.offsets[j]; e < p.offsets[j + 1]; e++)
            sum += load(p.grad + static_cast<int64_t>(p.readers[e]) * p.columns + c) *
                   load(p.table + p.reader_bins[e] * p.columns + c);
        *reinterpret_cast<T*>(p.to_g + j * p.columns + c) = sum;
    };
    for (int64_t j = start; j < start + count; j++) {
        int64_t c = 0;
        for (; c + W <= p.columns; c += W) step(Width<W>{}, j, c);
        for (; c < p.columns; c++) step(Width<1>{}, j, c);
    }
}

}  // namespace SM_NAMESPACE

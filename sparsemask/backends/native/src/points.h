// Point convolution's gather - look up - multiply - sum, written once for every vector width.
//
// out[i] = table[bin(i,0)] . (g[i] - xyz_i . rel) + sum over k > 0 of table[bin(i,k)] . (g[j_k] - g[i]), channel by
// channel, where g holds the 1x1 convolution of features and coordinates and `rel` its three rows of coordinates.
// Included with SM_NAMESPACE and SM_WIDTH defined, after rows.h.
#include <cmath>

#include "problem.h"

namespace SM_NAMESPACE {

using sm::PointGrads;
using sm::Points;

// NV vectors of W columns of one output, the last one beginning at column `last`: they may overlap where the columns are
// no multiple of W. The row of g of point j is map[j], or with MAPPED false j.
template <int W, int NV, bool MAPPED>
static inline void point_block(const Points& p, int64_t i, int64_t first, int64_t last, float* to) {
    using V = typename Vector<W>::type;
    auto load = [](const float* from) { return *reinterpret_cast<const V*>(from); };
    auto column = [=](int v) { return v == NV - 1 ? last : first + v * W; };
    const int32_t* near = p.neighbours + i * p.k;
    const uint8_t* bins = p.bins + i * p.k;
    const float* own = p.g + static_cast<int64_t>(MAPPED ? p.map[i] : i) * p.stride;
    const float* at = p.xyz + 3 * i;
    const float* middle = p.table + bins[0] * p.table_stride;
    V self[NV], sum[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
        const float* rel = p.rel + column(v);
        self[v] = load(own + column(v));
        sum[v] = load(middle + column(v)) * (self[v] - (at[0] * load(rel) + at[1] * load(rel + p.rel_stride) +
                                                        at[2] * load(rel + 2 * p.rel_stride)));
    }
    for (int64_t k = 1; k < p.k; k++) {
        const float* g = p.g + static_cast<int64_t>(MAPPED ? p.map[near[k]] : near[k]) * p.stride;
        const float* t = p.table + bins[k] * p.table_stride;
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) sum[v] += load(t + column(v)) * (load(g + column(v)) - self[v]);
    }
    const V zero = {};
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
        if (p.bias) sum[v] += load(p.bias + column(v));
        if (p.relu) sum[v] = sum[v] > zero ? sum[v] : zero;
        *reinterpret_cast<V*>(to + column(v)) = sum[v];
    }
}

// All columns of one output, in blocks of as many vectors as the registers hold.
template <int W, bool MAPPED>
static inline void point_row(const Points& p, int64_t i, float* to) {
    constexpr int MOST = 4;  // more spill
    if constexpr (W > 1) {
        if (p.columns < W) return point_row<W / 2, MAPPED>(p, i, to);
    }
    int64_t left = (p.columns + W - 1) / W, first = 0;
    while (left > 0) {
        const int64_t blocks = (left + MOST - 1) / MOST, count = (left + blocks - 1) / blocks;
        const int64_t last = std::min(first + (count - 1) * W, p.columns - W);
        switch (count) {
            case 1: point_block<W, 1, MAPPED>(p, i, first, last, to); break;
            case 2: point_block<W, 2, MAPPED>(p, i, first, last, to); break;
            case 3: point_block<W, 3, MAPPED>(p, i, first, last, to); break;
            case 4: point_block<W, 4, MAPPED>(p, i, first, last, to); break;
            case 5: point_block<W, 5, MAPPED>(p, i, first, last, to); break;
            default: point_block<W, 6, MAPPED>(p, i, first, last, to);
        }
        first += count * W;
        left -= count;
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

// Outputs [start, start + count). row: room for all columns.
void point_rows(const Points& p, int64_t start, int64_t count, float* row) {
    for (int64_t r = start; r < start + count; r++) {
        const int64_t i = p.points ? p.points[r] : r;
        const bool whole = p.split >= p.columns;
        float* to = whole ? p.out0 + i * p.stride0 : row;
        if (p.map)
            point_row<SM_WIDTH, true>(p, i, to);
        else
            point_row<SM_WIDTH, false>(p, i, to);
        if (whole) continue;
        std::memcpy(p.out0 + i * p.stride0, row, p.split * sizeof(float));
        if (p.out1) std::memcpy(p.out1 + r * p.stride1, row + p.split, (p.columns - p.split) * sizeof(float));
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

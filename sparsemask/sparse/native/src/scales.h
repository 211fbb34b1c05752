// Features of several sizes upsampled (bilinear, corners aligned), summed, biased and cut to [0, 6], written once for
// every vector width: a place reads its four neighbours in every feature, nothing is upsampled in memory.
//
// Included with SM_NAMESPACE and SM_WIDTH defined, after rows.h.
#include "problem.h"

namespace SM_NAMESPACE {

constexpr int64_t READS = 64;  // rows that a place reads at most: four of every feature

// NV vectors of columns from `k` on: the weighted sum of `n` rows.
template <int W, int NV>
static inline void blend(const float* const* rows, const float* weights, int64_t n, const float* bias, int64_t k,
                         float* to) {
    using V = typename Vector<W>::type;
    const V zero = {}, top = 6.0f - zero;
    V v[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) v[j] = *reinterpret_cast<const V*>(bias + k + j * W);
    for (int64_t i = 0; i < n; i++) {
        const V a = weights[i] - zero;
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) v[j] += a * *reinterpret_cast<const V*>(rows[i] + k + j * W);
    }
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) {
        v[j] = v[j] > zero ? (v[j] > top ? top : v[j]) : zero;
        *reinterpret_cast<V*>(to + j * W) = v[j];
    }
}

// Where output `at` reads along an axis of `inputs`, `step` of theirs a place: the lower of two places, and the upper
// one's weight.
static inline int64_t between(int64_t at, float step, int64_t inputs, float* upper) {
    const float where = step * at;
    const int64_t low = std::min<int64_t>(static_cast<int64_t>(where), inputs - 1);
    *upper = low + 1 < inputs ? where - static_cast<float>(low) : 0.0f;
    return low;
}

static inline float step_of(int64_t outputs, int64_t inputs) {
    return outputs > 1 ? static_cast<float>(inputs - 1) / static_cast<float>(outputs - 1) : 0.0f;
}

// One line of the output: number `line` of batch * height. Rows and bias can be read in whole vectors.
void scales(const sm::Scales& p, int64_t line) {
    constexpr int W = SM_WIDTH;
    const int64_t sample = line / p.height, y = line % p.height;
    const float *rows[READS], *first[READS / 4];
    float weights[READS], down[READS / 4], step[READS / 4];
    alignas(64) float last[W];
    for (int64_t s = 0; s < p.n; s++) {
        const sm::Scale& one = p.scales[s];
        const int64_t top = between(y, step_of(p.height, one.height), one.height, &down[s]);
        first[s] = one.rows + (sample * one.height + top) * one.width * one.stride;
        step[s] = step_of(p.width, one.width);
    }
    for (int64_t x = 0; x < p.width; x++) {
        const int64_t place = line * p.width + x;
        float* to = p.out + place * p.columns;
        const int64_t computed = !p.mask || p.mask[place] ? p.columns : p.dense;
        if (computed) {
            int64_t n = 0;
            for (int64_t s = 0; s < p.n; s++) {
                const sm::Scale& one = p.scales[s];
                float right;
                const int64_t left = between(x, step[s], one.width, &right);
                const float* base = first[s] + left * one.stride;
                const float share[4] = {(1 - down[s]) * (1 - right), (1 - down[s]) * right, down[s] * (1 - right),
                                        down[s] * right};
                const int64_t ahead[4] = {0, 1, one.width, one.width + 1};
                for (int i = 0; i < 4; i++)
                    if (share[i] != 0) {
                        rows[n] = base + ahead[i] * one.stride;
                        weights[n++] = share[i];
                    }
            }
            int64_t k = 0;
            for (; k + 4 * W <= computed; k += 4 * W) blend<W, 4>(rows, weights, n, p.bias, k, to + k);
            for (; k + 2 * W <= computed; k += 2 * W) blend<W, 2>(rows, weights, n, p.bias, k, to + k);
            for (; k + W <= computed; k += W) blend<W, 1>(rows, weights, n, p.bias, k, to + k);
            if (k < computed) {
                blend<W, 1>(rows, weights, n, p.bias, k, last);
                std::memcpy(to + k, last, (computed - k) * sizeof(float));
            }
        }
        std::memset(to + computed, 0, (p.columns - computed) * sizeof(float));
    }
}

// The 1x1 convolution of `count` <= CHUNK places of a feature; of dropped ones the dense columns. scratch: (CHUNK,
// channels); out: (places, wide).
void scale_rows(const sm::Scales& p, const sm::Scale& one, const int32_t* pos, int64_t count, bool kept, float* scratch,
                float* out) {
    using V = typename Vector<SM_WIDTH>::type;
    constexpr int W = SM_WIDTH;
    const V zero = {}, top = 6.0f - zero;
    int32_t numbers[CHUNK];
    const int32_t* at = pos;
    const float* base = one.rows;
    if (one.cut) {
        for (int64_t i = 0; i < count; i++) {
            const float* from = one.rows + pos[i] * one.stride;
            float* to = scratch + i * one.channels;
            int64_t k = 0;
            for (; k + W <= one.channels; k += W) {
                const V v = *reinterpret_cast<const V*>(from + k);
                *reinterpret_cast<V*>(to + k) = v > zero ? (v > top ? top : v) : zero;
            }
            for (; k < one.channels; k++) to[k] = std::min(std::max(from[k], 0.0f), 6.0f);
            numbers[i] = static_cast<int32_t>(i);
        }
        at = numbers, base = scratch;
    }
    point_product(base, one.cut ? one.channels : one.stride, one.channels, at, count,
                  kept ? one.packed : one.packed_dense, nullptr, kept ? p.wide : p.wide_dense, 0, out, pos, p.wide,
                  nullptr, 0);
}

}  // namespace SM_NAMESPACE

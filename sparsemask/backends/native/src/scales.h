// Features of several sizes upsampled (bilinear, corners aligned), summed, biased and cut to [0, 6], written once for
// every vector width: lines between two lines of every feature, then two places of these; nothing more is upsampled.
//
// Included with SM_NAMESPACE and SM_WIDTH defined, after rows.h.
#include "problem.h"

namespace SM_NAMESPACE {

constexpr int64_t READS = 128;  // rows that a place reads at most: four of every feature

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

// One line between two lines of a feature, in all its places: to (width, wide) is `top` and `down` of what `bottom` has
// more; added to what is there, or in its place.
static inline void between_lines(const float* top, const float* bottom, float down, int64_t width, int64_t stride,
                                 int64_t columns, bool add, int64_t wide, float* to) {
    using V = typename Vector<SM_WIDTH>::type;
    constexpr int W = SM_WIDTH;
    const V zero = {}, share = down - zero;
    for (int64_t x = 0; x < width; x++, top += stride, bottom += stride, to += wide)
        for (int64_t k = 0; k < columns; k += W) {
            V v = *reinterpret_cast<const V*>(top + k);
            if (down != 0) v += share * (*reinterpret_cast<const V*>(bottom + k) - v);
            V* at = reinterpret_cast<V*>(to + k);
            *at = add ? *at + v : v;
        }
}

// What the places of a line read: lines of features, or what lies between two of them; features of one size in one.
struct Line {
    const float* base;
    int64_t stride, height, width, below;  // below: from a place to the one in the next line; 0: none is read
    float down, step;
};

// One line of the output: number `line` of batch * height. Rows and bias can be read in whole vectors.
void scales(const sm::Scales& p, int64_t line) {
    constexpr int W = SM_WIDTH;
    static thread_local std::vector<float> memory;
    const int64_t sample = line / p.height, y = line % p.height;
    const uint8_t* mask = p.mask ? p.mask + line * p.width : nullptr;
    int64_t kept = p.width;
    if (mask) {
        kept = 0;
        for (int64_t x = 0; x < p.width; x++) kept += mask[x];
    }
    const int64_t most = kept ? p.columns : p.dense, wide = (p.columns + 15) / 16 * 16;
    const int64_t numbers = kept * p.columns + (p.width - kept) * p.dense;
    int64_t size = 0;
    for (int64_t s = 0; s < p.n; s++) size += p.scales[s].width * wide;
    if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
    float* room = memory.data();
    const float* rows[READS];
    float weights[READS];
    Line lines[READS / 4];
    float* summed[READS / 4] = {};
    int64_t n_lines = 0;
    alignas(64) float last[W];
    for (int64_t s = 0; s < p.n && most; s++) {
        const sm::Scale& one = p.scales[s];
        float down;
        const int64_t top = between(y, step_of(p.height, one.height), one.height, &down);
        const float* first = one.rows + (sample * one.height + top - one.first) * one.width * one.stride;
        const bool alike = one.height == p.height && one.width == p.width;
        Line made = {first, one.stride, one.height, one.width, down != 0 ? one.width * one.stride : 0, down,
                     step_of(p.width, one.width)};
        // Places read two of a line between, or four of two lines: the former where that is less work in all.
        if (!alike && one.width * most <= numbers) {
            int64_t at = 0;
            while (at < n_lines && !(summed[at] && lines[at].height == one.height && lines[at].width == one.width)) at++;
            const bool add = at < n_lines;
            float* to = add ? summed[at] : room;
            between_lines(first, first + made.below, down, one.width, one.stride, most, add, wide, to);
            if (add) continue;
            room += one.width * wide;
            summed[at] = to;
            made.base = to, made.stride = wide, made.below = 0, made.down = 0;
        }
        lines[n_lines++] = made;
    }
    const float* const end = p.out + (line + 1) * p.width * p.columns;
    for (int64_t x = 0; x < p.width; x++) {
        const int64_t place = line * p.width + x;
        float* to = p.out + place * p.columns;
        const int64_t computed = !mask || mask[x] ? p.columns : p.dense;
        if (computed) {
            int64_t n = 0;
            for (int64_t s = 0; s < n_lines; s++) {
                const Line& one = lines[s];
                float right;
                const float* base = one.base + between(x, one.step, one.width, &right) * one.stride;
                rows[n] = base, weights[n++] = (1 - one.down) * (1 - right);
                if (right != 0) rows[n] = base + one.stride, weights[n++] = (1 - one.down) * right;
                if (one.below) {
                    rows[n] = base + one.below, weights[n++] = one.down * (1 - right);
                    if (right != 0) rows[n] = base + one.below + one.stride, weights[n++] = one.down * right;
                }
            }
            int64_t k = 0;
            for (; k + 4 * W <= computed; k += 4 * W) blend<W, 4>(rows, weights, n, p.bias, k, to + k);
            for (; k + 2 * W <= computed; k += 2 * W) blend<W, 2>(rows, weights, n, p.bias, k, to + k);
            for (; k + W <= computed; k += W) blend<W, 1>(rows, weights, n, p.bias, k, to + k);
            if (k < computed && to + k + W <= end) {  // the places after it are still to be written
                blend<W, 1>(rows, weights, n, p.bias, k, to + k);
            } else if (k < computed) {
                blend<W, 1>(rows, weights, n, p.bias, k, last);
                std::memcpy(to + k, last, (computed - k) * sizeof(float));
            }
        }
        if (computed < p.columns) std::memset(to + computed, 0, (p.columns - computed) * sizeof(float));
    }
}

// The 1x1 convolution of `count` <= CHUNK places of a feature; of dropped ones the dense columns. scratch: (CHUNK,
// channels); out: (places, wide) from place `first` on; add: to what is there.
void scale_rows(const sm::Scales& p, const sm::Scale& one, const int32_t* pos, int64_t count, bool kept, bool add,
                int64_t first, float* scratch, float* out) {
    int32_t numbers[CHUNK], to[CHUNK];
    const int32_t* at = pos;
    const float* base = one.rows;
    for (int64_t i = 0; i < count; i++) to[i] = static_cast<int32_t>(pos[i] - first);
    if (one.cut) {
        for (int64_t i = 0; i < count; i++) {
            const float* from = one.rows + pos[i] * one.stride;
            float* row = scratch + i * one.channels;
            over_columns<SM_WIDTH>(0, 0, one.channels, [&](auto wide, int64_t k) {
                using V = typename Vector<wide.value>::type;
                const V zero = {}, top = 6.0f - zero, v = *reinterpret_cast<const V*>(from + k);
                *reinterpret_cast<V*>(row + k) = v > zero ? (v > top ? top : v) : zero;
            });
            numbers[i] = static_cast<int32_t>(i);
        }
        at = numbers, base = scratch;
    }
    point_product(base, one.cut ? one.channels : one.stride, one.channels, at, count,
                  kept ? one.packed : one.packed_dense, nullptr, kept ? p.wide : p.wide_dense, 0, out, to, p.wide,
                  add ? out : nullptr, p.wide);
}

}  // namespace SM_NAMESPACE

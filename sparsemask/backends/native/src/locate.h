// Where a module computes: pooled input, a 1x1 and a 3x3 convolution of few channels, and the difference of two logits; or a
// 3x3 convolution, pooled, and these.
//
// Included with SM_NAMESPACE and SM_WIDTH defined, after inverted.h.
#include "problem.h"

namespace SM_NAMESPACE {

using sm::Locate;
constexpr int64_t WIDE = 16;  // floats of a hidden place

// A 3x3 convolution with relu of two lines of the input, odd sizes padded by their last row, zeros around that, and its means
// of 2 x 2 places: line `line` of the halved map. scratch: (2, width, WIDE), an even width.
static void locate_around(const Locate& p, int64_t sample, int64_t line, float* scratch, float* hidden) {
    const int64_t half = (p.width + 1) / 2, c = p.channels, wide = 2 * half;
    static thread_local std::vector<int32_t> numbers;
    numbers.resize(3 * wide + 4);
    int32_t *pos = numbers.data(), *way = pos + wide, *nowhere = way + wide + 2;
    for (int64_t i = 0; i < wide; i++) pos[i] = static_cast<int32_t>(i);
    for (int64_t i = 0; i < wide + 2; i++) {
        way[i] = static_cast<int32_t>(i == 0 || i > wide ? -1 : std::min(i, p.width) - 1);
        nowhere[i] = -1;
    }
    const float* rows[9 * CHUNK + 1];
    for (int64_t two = 0; two < 2; two++) {
        Segment segments[9];
        for (int64_t t = 0; t < 9; t++) {
            const int64_t y = 2 * line + two + t / 3 - 1;
            const bool inside = y >= 0 && y < (p.height + 1) / 2 * 2;
            const float* base = p.x + (sample * p.height + (inside ? std::min(y, p.height - 1) : 0)) * p.width * c;
            segments[t] = {base, inside ? way : nowhere, c, t % 3, c};
        }
        Product q{};
        q.rows = wide, q.pos = pos, q.n_segments = 9, q.segments = segments, q.depth = 9 * c;
        q.columns = q.split = p.hidden, q.packed = p.first, q.bias = p.first_bias, q.activation = 1;
        q.out0 = scratch + two * wide * WIDE, q.stride0 = WIDE, q.group = p.first_group;
        for (int64_t start = 0; start < wide; start += CHUNK)
            chunk(q, start, std::min<int64_t>(CHUNK, wide - start), rows, nullptr);
    }
    float* to = hidden + ((line + 1) * (half + 2) + 1) * WIDE;
    for (int64_t i = 0; i < half; i++, to += WIDE) {
        const float *a = scratch + 2 * i * WIDE, *b = a + wide * WIDE;
        for (int64_t k = 0; k < p.hidden; k++) to[k] = (a[k] + a[WIDE + k] + b[k] + b[WIDE + k]) * 0.25f;
    }
}

// Means of 2 x 2 places of the input, of line `line` of the halved map of a sample, odd sizes padded by their last row;
// and the 1x1 convolution of them. scratch: (width / 2, channels); hidden has a border of a place of zeros.
void locate_first(const Locate& p, int64_t sample, int64_t line, float* scratch, float* hidden) {
    if (p.around) return locate_around(p, sample, line, scratch, hidden);
    const int64_t half = (p.width + 1) / 2, c = p.channels, low = std::min(2 * line + 1, p.height - 1);
    const float* a = p.x + (sample * p.height + 2 * line) * p.width * c;
    const float* b = p.x + (sample * p.height + low) * p.width * c;
    for (int64_t i = 0; i < half; i++) {
        const int64_t left = 2 * i * c, right = std::min(2 * i + 1, p.width - 1) * c;
        const float* four[4] = {a + left, a + right, b + left, b + right};
        float* to = scratch + i * c;
        over_columns<SM_WIDTH>(0, 0, c, [&](auto wide, int64_t k) {
            using V = typename Vector<wide.value>::type;
            const V zero = {}, top = 6.0f - zero;
            V sum = zero;
            for (int j = 0; j < 4; j++) {
                V v = *reinterpret_cast<const V*>(four[j] + k);
                if (p.cut) v = v > zero ? (v > top ? top : v) : zero;
                sum += v;
            }
            *reinterpret_cast<V*>(to + k) = sum * 0.25f;
        });
    }
    int32_t numbers[CHUNK];
    for (int64_t start = 0; start < half; start += CHUNK) {
        const int64_t n = std::min<int64_t>(CHUNK, half - start);
        for (int64_t i = 0; i < n; i++) numbers[i] = static_cast<int32_t>(start + i);
        float* to = hidden + ((line + 1) * (half + 2) + 1 + start) * WIDE;
        point_product(scratch, c, c, numbers, n, p.first, p.first_bias, p.hidden, 1, to, nullptr, WIDE, nullptr, 0);
    }
}

// The 3x3 convolution and the last one, of a line of the halved map. scratch: (width / 2, WIDE); differences likewise, by
// taps of the last one where it is a transposed 3x3.
void locate_second(const Locate& p, int64_t line, const float* hidden, float* scratch, float* differences) {
    const int64_t half = (p.width + 1) / 2;
    Segment segments[9];
    for (int64_t t = 0; t < 9; t++) {
        const float* base = hidden + ((line + t / 3) * (half + 2) + t % 3) * WIDE;
        segments[t] = {base, nullptr, WIDE, 0, p.hidden};
    }
    int32_t numbers[CHUNK];
    const float* rows[9 * CHUNK + 1];
    for (int64_t start = 0; start < half; start += CHUNK) {
        const int64_t n = std::min<int64_t>(CHUNK, half - start);
        for (int64_t i = 0; i < n; i++) numbers[i] = static_cast<int32_t>(start + i);
        Product q{};
        q.rows = n, q.pos = numbers, q.n_segments = 9, q.segments = segments, q.depth = 9 * p.hidden;
        q.columns = q.split = p.hidden, q.packed = p.second, q.bias = p.second_bias, q.activation = 1;
        q.out0 = scratch + start * WIDE, q.stride0 = WIDE, q.group = p.second_group;
        chunk(q, 0, n, rows, nullptr);
        float* to = differences + (line * half + start) * WIDE;
        point_product(scratch, WIDE, p.hidden, numbers, n, p.last, nullptr, p.stride == 1 ? 9 : 1, 0, to, nullptr, WIDE,
                      nullptr, 0);
    }
}

}  // namespace SM_NAMESPACE

// Group-wise correlation of two rows of pixels, written once for every vector width.
//
// Included with SM_NAMESPACE and SM_WIDTH defined, after points.h.
#include "problem.h"

namespace SM_NAMESPACE {

// out[g] = mean over k of left[k, g] * right[k, g], `groups` numbers `each` times; zeros without `right`.
template <int W>
static inline void groups_of(const float* left, const float* right, int64_t groups, int64_t each, float* out) {
    using V = typename Vector<W>::type;
    const float share = 1.0f / static_cast<float>(each);
    int64_t g = 0;
    for (; g + W <= groups; g += W) {
        V sum = {};
        for (int64_t k = 0; k < each; k++)
            sum += *reinterpret_cast<const V*>(left + k * groups + g) *
                   *reinterpret_cast<const V*>(right + k * groups + g);
        *reinterpret_cast<V*>(out + g) = sum * share;
    }
    for (; g < groups; g++) {
        float sum = 0;
        for (int64_t k = 0; k < each; k++) sum += left[k * groups + g] * right[k * groups + g];
        out[g] = sum * share;
    }
}

// One line of one disparity: `width` places of `groups` numbers.
void correlate(const float* left, const float* right, int64_t d, int64_t width, int64_t groups, int64_t each,
               float* out) {
    const int64_t channels = groups * each;
    std::memset(out, 0, std::min(d, width) * groups * sizeof(float));
    for (int64_t x = d; x < width; x++)
        groups_of<SM_WIDTH>(left + x * channels, right + (x - d) * channels, groups, each, out + x * groups);
}

}  // namespace SM_NAMESPACE

// What both products in bfloat16 share (tiles.h, dots.h): numbers of the type, and the way from sums to outputs. Included
// after rows.h.
#include <atomic>

#if SM_WIDTH == 16 && defined(__AVX512F__) && defined(SM_AMX)
#include <immintrin.h>
#define SM_BFLOAT16
#endif

namespace SM_NAMESPACE {

using sm::TAKEN;
using sm::TileProduct;
using sm::TileSegment;

// Computes chunks of TAKEN outputs until there are none left; sums: (columns), or null.
using TileRows = void (*)(const TileProduct&, std::atomic<int64_t>&, double*);

typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));

static inline float widened(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// To the nearest, ties to even; what is not a number stays so.
static inline uint16_t rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Sixteen numbers between both types, and products of pairs, by plain code:
struct PlainBfloat16 {
    static void widen(const uint16_t* from, float* to) {
        for (int k = 0; k < 16; k++) to[k] = widened(from[k]);
    }
    static void round(const float* from, uint16_t* to) {
        for (int k = 0; k < 16; k++) to[k] = rounded(from[k]);
    }
    // sum + both products of the pairs of a and b.
    static Vector<16>::type add(Vector<16>::type sum, Words a, Words b) {
        typedef Vector<16>::type V;
        sum += reinterpret_cast<V>(a << 16) * reinterpret_cast<V>(b << 16);
        return sum + reinterpret_cast<V>(a & 0xffff0000u) * reinterpret_cast<V>(b & 0xffff0000u);
    }
};

#ifdef SM_BFLOAT16
// By the processor's instructions (AVX512-BF16), which processors with tiles have, too:
struct OwnBfloat16 {
    static void widen(const uint16_t* from, float* to) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        _mm512_storeu_si512(to, _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    static void round(const float* from, uint16_t* to) {
        const __m512 whole = _mm512_loadu_ps(from);
        __m256i half;
        asm("vcvtneps2bf16 %1, %0" : "=v"(half) : "v"(whole));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
    }
    static Vector<16>::type add(Vector<16>::type sum, Words a, Words b) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
};
#endif

// Bias, addition, activation and rounding of NV panels of columns from `first` on, the last of which may be a part of one, of
// `count` outputs: those of the product's rows `rows` (below zero: none). tile: their sums, `pitch` numbers from row to row.
template <class U, int NV>
static void finish_panels(const TileProduct& p, const int64_t* rows, int64_t count, int64_t first, const float* tile,
                          int64_t pitch, double* sums) {
    using V = Vector<16>::type;
    const bool cut = p.activation & 1;  // relu, relu6
    const V zero = {}, slope = static_cast<float>(p.activation == 2 ? p.slope : cut ? 0.0 : 1.0) - zero;
    const V top = (p.activation == 3 ? 6.0f : std::numeric_limits<float>::infinity()) - zero;
    V bias[NV], sum[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
        bias[j] = p.bias ? *reinterpret_cast<const V*>(p.bias + first + j * PANEL) : zero;
        sum[j] = zero;
    }
    const int64_t rest = std::min(PANEL, p.columns - first - (NV - 1) * PANEL);  // columns of the last panel
    const int32_t* const at = p.at;
    const uint16_t* const add = p.add ? p.add + first : nullptr;
    uint16_t* const out = p.out + (p.places ? 0 : first);
    const int32_t* const places = p.places ? p.places + first : nullptr;
    const int64_t stride = p.stride, add_stride = p.add_stride;
    for (int64_t i = 0; i < count; i++, tile += pitch) {
        if (rows[i] < 0) continue;
        const int64_t row = at ? at[rows[i]] : rows[i];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            const bool whole = j + 1 < NV || rest == PANEL;
            V v = *reinterpret_cast<const V*>(tile + j * PANEL) + bias[j], more = zero;
            if (add && whole)
                U::widen(add + row * add_stride + j * PANEL, reinterpret_cast<float*>(&more));
            else if (add)
                for (int64_t k = 0; k < rest; k++) more[k] = widened(add[row * add_stride + j * PANEL + k]);
            v += more;
            v = v > zero ? (v > top ? top : v) : (cut ? zero : v * slope);
            sum[j] += v;
            uint16_t* const to = out + row * stride;
            if (whole && !places) {
                U::round(reinterpret_cast<const float*>(&v), to + j * PANEL);
                continue;
            }
            uint16_t panel[PANEL];
            U::round(reinterpret_cast<const float*>(&v), panel);
            if (places)
                for (int64_t k = 0; k < (whole ? PANEL : rest); k++) to[places[j * PANEL + k]] = panel[k];
            else
                std::memcpy(to + j * PANEL, panel, 2 * rest);
        }
    }
    if (sums)
        for (int j = 0; j < NV; j++)
            for (int64_t k = 0; k < (j + 1 < NV ? PANEL : rest); k++) sums[first + j * PANEL + k] += sum[j][k];
}

// Numbers that an output reads, of all segments, up to whole tiles.
static inline int64_t depth_of(const TileProduct& p) {
    int64_t depth = 0;
    for (int64_t s = 0; s < p.n_segments; s++) depth += p.segments[s].length;
    return depth;
}

// Zeros as long as a row of any segment: what is read where there is no row.
static inline const uint16_t* zeros_for(const TileProduct& p) {
    int64_t length = 0;
    for (int64_t s = 0; s < p.n_segments; s++) length = std::max(length, p.segments[s].length);
    return reinterpret_cast<const uint16_t*>(zero_row(length / 2 + 1));
}

// Zeros where the product's rows [start, end) have no outputs.
static inline void clear_rest(const TileProduct& p, int64_t start, int64_t end) {
    const int64_t from = p.places ? 0 : p.columns;
    if (p.clear > from)
        for (int64_t r = start; r < end; r++)
            std::memset(p.out + (p.at ? p.at[r] : r) * p.stride + from, 0, 2 * (p.clear - from));
}

}  // namespace SM_NAMESPACE

// Numbers in bfloat16, and products of them. Included after rows.h.
#if SM_WIDTH == 16 && defined(__AVX512F__) && defined(SM_AMX)
#include <immintrin.h>
#define SM_BFLOAT16
#endif

namespace SM_NAMESPACE {

typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));

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

// What products multiply (Number), what they sum (Sum, Sums), and what these are in float32.
struct Bfloat16 {
    using Number = uint16_t;
    using Sum = float;
    using Sums = Vector<16>::type;
    static Sums real(const Sum* sums, Vector<16>::type, Ints) { return *reinterpret_cast<const Sums*>(sums); }
};

// Sixteen numbers between both types, and products of pairs, by plain code:
struct PlainBfloat16 : Bfloat16 {
    static void widen(const uint16_t* from, float* to) {
        for (int k = 0; k < 16; k++) to[k] = widened(from[k]);
    }
    static void round(const float* from, uint16_t* to) {
        for (int k = 0; k < 16; k++) to[k] = rounded(from[k]);
    }
    // sum + both products of the pairs of a and b.
    static Sums add(Sums sum, Words a, Words b) {
        sum += reinterpret_cast<Sums>(a << 16) * reinterpret_cast<Sums>(b << 16);
        return sum + reinterpret_cast<Sums>(a & 0xffff0000u) * reinterpret_cast<Sums>(b & 0xffff0000u);
    }
};

#ifdef SM_BFLOAT16
// By the processor's instructions (AVX512-BF16), which processors with tiles have, too:
struct OwnBfloat16 : Bfloat16 {
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
    static Sums add(Sums sum, Words a, Words b) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
};
#endif

}  // namespace SM_NAMESPACE

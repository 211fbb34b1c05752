// Numbers in int8 (rows: 0 to 255, weights: -127 to 127), and products of them, summed in int32 without an error. Included
// after bfloat16.h, in which types what is not a factor lies.

namespace SM_NAMESPACE {

// Sixteen values v as v * steps + zero, to the nearest, ties to even; what is not a number becomes 0.
static inline void to_bytes(Vector<16>::type v, float steps, float zero, uint8_t* to) {
    typedef Vector<16>::type V;
    typedef uint8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));
    const V least = {}, most = 255.0f - V{}, whole = 12582912.0f - V{};  // beyond which float32 has whole numbers alone
    V q = v * steps + zero;
    q = q > least ? q : least;
    q = (q < most ? q : most) + whole;
    *reinterpret_cast<Bytes*>(to) = __builtin_convertvector(reinterpret_cast<Words>(q) & 0xffu, Bytes);
}

template <class Halves>
struct Int8 : Halves {
    using Number = uint8_t;
    using Sum = int32_t;
    using Sums = Ints;
    static Vector<16>::type real(const Sum* sums, Vector<16>::type scales, Ints shift) {
        return __builtin_convertvector(*reinterpret_cast<const Ints*>(sums) - shift, Vector<16>::type) * scales;
    }
};

// By plain code:
struct PlainInt8 : Int8<PlainBfloat16> {
    // sum + all four products of a (from 0 on) and b (with a sign).
    static Ints add(Ints sum, Words a, Words b) {
        const Ints x = reinterpret_cast<Ints>(a), w = reinterpret_cast<Ints>(b);
        sum += (x & 0xff) * (reinterpret_cast<Ints>(b << 24) >> 24);
        sum += (x >> 8 & 0xff) * (reinterpret_cast<Ints>(b << 16) >> 24);
        sum += (x >> 16 & 0xff) * (reinterpret_cast<Ints>(b << 8) >> 24);
        return sum + (x >> 24 & 0xff) * (w >> 24);
    }
};

#ifdef SM_BFLOAT16
// By the processor's instructions (AVX512-VNNI):
struct OwnInt8 : Int8<OwnBfloat16> {
    static Ints add(Ints sum, Words a, Words b) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
};
#endif

// Of n numbers in bfloat16, by their bits: the largest above zero, and the largest below, with its sign; 0 where there is none.
// What is not a number is larger than all that are.
void range(const uint16_t* from, int64_t n, uint16_t* below, int16_t* above) {
    uint16_t one = *below;
    int16_t other = *above;
    for (int64_t i = 0; i < n; i++) {
        one = std::max(one, from[i]);
        other = std::max(other, static_cast<int16_t>(from[i]));
    }
    *below = one, *above = other;
}

// Rows [start, end) of `length` numbers in bfloat16, a multiple of 32, as v * steps + zero in rows of `wide` bytes, of which
// the rest is zero.
void to_int8(const uint16_t* from, int64_t stride, int64_t length, int64_t start, int64_t end, float steps, float zero,
             uint8_t* to, int64_t wide) {
    typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
    for (int64_t r = start; r < end; r++) {
        for (int64_t k = 0; k < length; k += 16) {
            const Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from + r * stride + k), Words);
            to_bytes(reinterpret_cast<Vector<16>::type>(bits << 16), steps, zero, to + r * wide + k);
        }
        std::fill_n(to + r * wide + length, wide - length, uint8_t{0});
    }
}

}  // namespace SM_NAMESPACE

// Few outputs a row, as inner products: vectors run along the input channels, so that no column is padding.
//
// Packed weights: groups of 4 outputs (the last of 6, 4, 2 or 1), each (segments, outputs of the group, length), all
// segments of one length, a multiple of NARROW; channels that are not read have zeros there.

namespace SM_NAMESPACE {

constexpr int NARROW = SM_WIDTH < 8 ? SM_WIDTH : 8;

#ifdef __clang__
#define SM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Order __attribute__((vector_size(16)));
#define SM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// The sums of the entries of four vectors.
static inline Four sums_of(const Vector<NARROW>::type* v) {
    Four half[4];
    for (int i = 0; i < 4; i++) {
        const Four* parts = reinterpret_cast<const Four*>(v + i);
        half[i] = NARROW == 8 ? parts[0] + parts[NARROW / 4 - 1] : parts[0];
    }
    const Four a = SM_SHUFFLE(half[0], half[1], 0, 4, 1, 5) + SM_SHUFFLE(half[0], half[1], 2, 6, 3, 7);
    const Four b = SM_SHUFFLE(half[2], half[3], 0, 4, 1, 5) + SM_SHUFFLE(half[2], half[3], 2, 6, 3, 7);
    return SM_SHUFFLE(a, b, 0, 1, 4, 5) + SM_SHUFFLE(a, b, 2, 3, 6, 7);
}

// MR rows times NC outputs. values: (MR, NC).
template <int MR, int NC>
static void inner(const float* const* rows, int64_t segments, int64_t length, const float* w, float* values) {
    using V = typename Vector<NARROW>::type;
    V sum[MR][NC] = {};
    for (int64_t s = 0; s < segments; s++, w += NC * length) {
        const float* x[MR];
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) x[i] = rows[s * CHUNK + i];
        for (int64_t k = 0; k < length; k += NARROW) {
            V a[MR];
#pragma GCC unroll 8
            for (int i = 0; i < MR; i++) a[i] = *reinterpret_cast<const V*>(x[i] + k);
#pragma GCC unroll 8
            for (int j = 0; j < NC; j++) {
                const V b = *reinterpret_cast<const V*>(w + j * length + k);
#pragma GCC unroll 8
                for (int i = 0; i < MR; i++) sum[i][j] += a[i] * b;
            }
        }
    }
    static_assert(MR * NC % 4 == 0, "vectors of four results");
    for (int i = 0; i < MR * NC; i += 4) *reinterpret_cast<Four*>(values + i) = sums_of(&sum[0][0] + i);
}

template <int MR, int NC>
static void outputs(const Product& p, const float* const* rows, int64_t start, int64_t count, int64_t first,
                    const float* w, int64_t length) {
    float values[MR * NC];
    for (int64_t i = 0; i < count; i += MR) {
        inner<MR, NC>(rows + i, p.n_segments, length, w, values);
        for (int64_t m = 0; m < MR && i + m < count; m++) {
            const int64_t r = start + i + m;
            float* to = p.out0 + (p.at0 ? p.at0[r] : r) * p.stride0;
            for (int64_t j = 0; j < NC && first + j < p.columns; j++)
                to[p.places ? p.places[first + j] : first + j] =
                    activate(p, values[m * NC + j] + (p.bias ? p.bias[first + j] : 0), first + j);
        }
    }
}

// Outputs of the next group.
static int64_t taken_of(int64_t left) { return left > 4 && left < 7 ? 6 : left > 2 ? 4 : left; }

// Rows [start, start + count), count <= CHUNK. rows: room for (segments, CHUNK) pointers.
void narrow(const Product& p, int64_t start, int64_t count, const float** rows) {
    const int64_t length = p.n_segments ? p.segments[0].length : 0;
    const float* zeros = zero_row(length);
    for (int64_t s = 0; s < p.n_segments; s++) {
        locate(p.segments[s], p.pos + start, count, zeros, rows + s * CHUNK);
        // A tap one or two places further reads almost the same rows as the one before.
        const bool near = s && p.segments[s].offset - p.segments[s - 1].offset <= 2;
        for (int64_t i = near ? count - 1 : 0; i < count && p.narrow > 1; i++)
            for (int64_t k = 0; k < length; k += 16) __builtin_prefetch(rows[s * CHUNK + i] + k);
        for (int64_t i = count; i < CHUNK; i++) rows[s * CHUNK + i] = zeros;
    }
    const int64_t kept = p.places ? 0 : p.columns;
    if (p.clear > kept)
        for (int64_t r = start; r < start + count; r++)
            std::memset(p.out0 + (p.at0 ? p.at0[r] : r) * p.stride0 + kept, 0, (p.clear - kept) * sizeof(float));
    const float* w = p.packed;
    for (int64_t first = 0; first < p.columns;) {
        const int64_t left = p.columns - first, taken = taken_of(left);
        if (taken == 6)
            outputs<2, 6>(p, rows, start, count, first, w, length);
        else if (taken == 4)
            outputs<2, 4>(p, rows, start, count, first, w, length);
        else if (taken == 2)
            outputs<4, 2>(p, rows, start, count, first, w, length);
        else
            outputs<8, 1>(p, rows, start, count, first, w, length);
        w += p.n_segments * taken * length;
        first += taken;
    }
}

}  // namespace SM_NAMESPACE

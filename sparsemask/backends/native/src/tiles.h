// The product of gathered rows with packed weights, both in bfloat16 and summed in float32, by matrix tiles (AMX).
//
// A tile of the left factor is 16 rows of 32 channels. It is read from where they lie if they follow each other in memory,
// as those of 16 neighbouring outputs do. Within a blob of kept locations a tile therefore takes 16 neighbours, those
// that nobody asked for among them: computing them costs less than bringing others together in their place. The same code
// runs on emulated tiles on any processor: to be tested there, not to be fast. Included after packed.h.

namespace SM_NAMESPACE {

constexpr int64_t STEP = 32;          // channels of a tile
constexpr int64_t TILE = 16 * STEP;   // numbers of a tile
constexpr int TALL = 3;               // tiles of rows, and
constexpr int64_t BROAD = 2 * PANEL;  // columns, that are summed at a time
constexpr int64_t ENOUGH = 5;         // outputs among 16 neighbours, from which on all are computed

// A unit of eight tiles of 16 rows of 64 bytes. Numbers of tiles are template arguments, as instructions hold them;
// `pitch`, from row to row in memory, is in bytes.
struct Emulated : PlainBfloat16 {
    struct Use {};  // is there for as long as the thread uses tiles
    using Tile = uint8_t[16][64];
    static Tile* tiles() {
        alignas(64) static thread_local uint8_t all[8][16][64];
        return all;
    }
    template <int T>
    static void zero() {
        std::memset(tiles()[T], 0, sizeof(Tile));
    }
    template <int T>
    static void load(const void* from, int64_t pitch) {
        for (int r = 0; r < 16; r++) std::memcpy(tiles()[T][r], static_cast<const uint8_t*>(from) + r * pitch, 64);
    }
    template <int T>
    static void store(void* to, int64_t pitch) {
        for (int r = 0; r < 16; r++) std::memcpy(static_cast<uint8_t*>(to) + r * pitch, tiles()[T][r], 64);
    }
    // C (16, 16) += A (16, 32) . B (16 pairs of rows, 16, 2)
    template <int C, int A, int B>
    static void multiply() {
        const auto at = [](int tile, int row, int number) {
            uint16_t half;
            std::memcpy(&half, tiles()[tile][row] + 2 * number, 2);
            return widened(half);
        };
        for (int m = 0; m < 16; m++)
            for (int n = 0; n < 16; n++) {
                float sum;
                std::memcpy(&sum, tiles()[C][m] + 4 * n, 4);
                for (int k = 0; k < STEP; k++) sum += at(A, m, k) * at(B, k / 2, 2 * n + k % 2);
                std::memcpy(tiles()[C][m] + 4 * n, &sum, 4);
            }
    }
};

#ifdef SM_BFLOAT16
struct Amx : OwnBfloat16 {
    // Tiles are set up when this is made, and as they were before when it goes: other libraries use them, too.
    struct Use {
        alignas(64) uint8_t before[64];
        Use() {
            alignas(64) uint8_t wanted[64] = {1};  // the palette; then bytes of a row from 16 on, rows from 48 on
            for (int t = 0; t < 8; t++) wanted[16 + 2 * t] = 64, wanted[48 + t] = 16;
            asm volatile("sttilecfg %0" : "=m"(before));
            asm volatile("ldtilecfg %0" ::"m"(wanted));
        }
        ~Use() {
            if (before[0])
                asm volatile("ldtilecfg %0" ::"m"(before));
            else
                asm volatile("tilerelease" ::);
        }
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;
    };
    template <int T>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(T));
    }
    template <int T>
    static void load(const void* from, int64_t pitch) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(pitch), "i"(T) : "memory");
    }
    template <int T>
    static void store(void* to, int64_t pitch) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(pitch), "i"(T) : "memory");
    }
    template <int C, int A, int B>
    static void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
};
#endif

// A tile's outputs: where each stands, and which of the product's rows it is, or -1.
struct Outputs {
    int32_t pos[16];
    int64_t row[16];
    int64_t count;
    int64_t step;  // between the positions of all 16, where it is the same; else 0
};

// The next outputs of [start, end), of which `start` becomes the first that is not taken.
static Outputs next_outputs(const TileProduct& p, int64_t& start, int64_t end) {
    const int32_t* pos = p.pos + start;
    const int64_t left = end - start, first = pos[0];
    Outputs one;
    one.count = std::min<int64_t>(16, left);
    one.step = one.count == 16 ? pos[1] - pos[0] : 0;
    for (int64_t i = 0; i < one.count; i++) {
        one.pos[i] = pos[i], one.row[i] = start + i;
        if (i && pos[i] - pos[i - 1] != one.step) one.step = 0;
    }
    int64_t near = 0;
    while (near < one.count && pos[near] < first + 16) near++;
    // All positions before the last output's are some output's, or between those of two: there are rows for them.
    if (!one.step && near >= ENOUGH && first + 15 <= p.pos[p.rows - 1]) {
        one.step = 1, one.count = 16;
        for (int64_t i = 0; i < 16; i++) one.pos[i] = static_cast<int32_t>(first + i), one.row[i] = -1;
        for (int64_t i = 0; i < near; i++) one.row[pos[i] - first] = start + i;
        start += near;
    } else {
        start += one.count;
    }
    return one;
}

// Where the tiles of some rows lie, by segment: numbers, and bytes from row to row.
struct Lying {
    const uint16_t* first[TALL];
    int64_t pitch[TALL];
};

// sums (R * 16, BROAD) = rows of all segments . C panels of weights, `panel` numbers from panel to panel.
template <class U, int R, int C>
static void multiply(const Lying* lying, const TileProduct& p, const uint16_t* w, int64_t panel, float* sums) {
    static_assert(R <= 3 && C <= 2, "six sums, and a tile of each factor");
    constexpr int64_t PITCH = 4 * BROAD;
    U::template zero<0>();
    if constexpr (C > 1) U::template zero<1>();
    if constexpr (R > 1) U::template zero<2>();
    if constexpr (R > 1 && C > 1) U::template zero<3>();
    if constexpr (R > 2) U::template zero<4>();
    if constexpr (R > 2 && C > 1) U::template zero<5>();
    for (int64_t s = 0; s < p.n_segments; s++) {
        const Lying& one = lying[s];
        for (int64_t k = 0; k < p.segments[s].length; k += STEP, w += TILE) {
            U::template load<7>(w, 64);
            U::template load<6>(one.first[0] + k, one.pitch[0]);
            U::template multiply<0, 6, 7>();
            if constexpr (R > 1) {
                U::template load<6>(one.first[1] + k, one.pitch[1]);
                U::template multiply<2, 6, 7>();
            }
            if constexpr (R > 2) {
                U::template load<6>(one.first[2] + k, one.pitch[2]);
                U::template multiply<4, 6, 7>();
            }
            if constexpr (C > 1) {
                U::template load<7>(w + panel, 64);
                // The last tile of rows is still there.
                if constexpr (R > 2) {
                    U::template multiply<5, 6, 7>();
                    U::template load<6>(one.first[1] + k, one.pitch[1]);
                }
                if constexpr (R > 1) {
                    U::template multiply<3, 6, 7>();
                    U::template load<6>(one.first[0] + k, one.pitch[0]);
                }
                U::template multiply<1, 6, 7>();
            }
        }
    }
    U::template store<0>(sums, PITCH);
    if constexpr (C > 1) U::template store<1>(sums + 16, PITCH);
    if constexpr (R > 1) U::template store<2>(sums + 16 * BROAD, PITCH);
    if constexpr (R > 1 && C > 1) U::template store<3>(sums + 16 * BROAD + 16, PITCH);
    if constexpr (R > 2) U::template store<4>(sums + 32 * BROAD, PITCH);
    if constexpr (R > 2 && C > 1) U::template store<5>(sums + 32 * BROAD + 16, PITCH);
}

template <class U>
static void multiply(int64_t tall, bool two, const Lying* lying, const TileProduct& p, const uint16_t* w, int64_t panel,
                     float* sums) {
    if (tall == 1)
        (two ? multiply<U, 1, 2> : multiply<U, 1, 1>)(lying, p, w, panel, sums);
    else if (tall == 2)
        (two ? multiply<U, 2, 2> : multiply<U, 2, 1>)(lying, p, w, panel, sums);
    else
        (two ? multiply<U, 3, 2> : multiply<U, 3, 1>)(lying, p, w, panel, sums);
}

// Where a tile's rows of a segment lie: in the buffer, or in `to`, brought together there.
static inline void lay(const TileSegment& one, const Outputs& outputs, const uint16_t* zeros, uint16_t* to,
                       const uint16_t*& first, int64_t& pitch) {
    if (outputs.step) {
        const int64_t begin = outputs.pos[0] + one.offset, end = outputs.pos[15] + one.offset;
        const int64_t from = one.map ? one.map[begin] : begin, last = one.map ? one.map[end] : end;
        if (from >= 0 && last - from == end - begin) {
            first = one.base + from * one.stride, pitch = 2 * outputs.step * one.stride;
            return;
        }
    }
    const uint16_t* rows[16];
    locate(one, outputs.pos, outputs.count, zeros, rows);
    first = to, pitch = 2 * one.length;
    for (int64_t i = 0; i < outputs.count; i++, to += one.length)
        for (int64_t k = 0; k < one.length; k += STEP) std::memcpy(to + k, rows[i] + k, 2 * STEP);
    // Sums of rows that there are not are not read, but not made of old memory either.
    std::fill_n(to, (16 - outputs.count) * one.length, uint16_t{0});
}

// Chunks of TAKEN outputs until there are none left; sums: (columns), or null.
template <class U>
static void tile_rows(const TileProduct& p, std::atomic<int64_t>& next, double* sums) {
    const int64_t depth = depth_of(p);
    const uint16_t* zeros = zeros_for(p);
    std::vector<Lying> lying(p.n_segments);
    static thread_local std::vector<uint16_t> room;
    if (static_cast<int64_t>(room.size()) < depth * 16 * TALL + STEP) room.resize(depth * 16 * TALL + STEP);
    uint16_t* together = room.data();
    while (reinterpret_cast<uintptr_t>(together) % 64) together++;
    alignas(64) float tile[TALL * 16 * BROAD];
    [[maybe_unused]] const typename U::Use use;
    in_chunks(p, next, [&](int64_t start, int64_t end) {
        Outputs outputs[TALL];
        int64_t tall = 0;
        for (; tall < TALL && start < end; tall++) outputs[tall] = next_outputs(p, start, end);
        uint16_t* to = together;
        for (int64_t s = 0; s < p.n_segments; s++)
            for (int64_t t = 0; t < tall; t++, to += 16 * p.segments[s].length)
                lay(p.segments[s], outputs[t], zeros, to, lying[s].first[t], lying[s].pitch[t]);
        for (int64_t first = 0; first < p.columns; first += BROAD) {
            const bool two = p.columns - first > 16;
            multiply<U>(tall, two, lying.data(), p, p.packed + first * depth, 16 * depth, tile);
            for (int64_t t = 0; t < tall; t++)
                (two ? finish_panels<U, uint16_t, 2, TileProduct> : finish_panels<U, uint16_t, 1, TileProduct>)(
                    p, outputs[t].row, outputs[t].count, first, tile + t * 16 * BROAD, BROAD, sums);
        }
        return start;
    });
}

extern const TileRows emulated_rows = tile_rows<Emulated>;
#ifdef SM_BFLOAT16
extern const TileRows amx_rows = tile_rows<Amx>;
#else
extern const TileRows amx_rows = nullptr;
#endif

}  // namespace SM_NAMESPACE

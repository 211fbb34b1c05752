// The library's entry points: choose the vector width of this processor, share rows among threads.
#include <omp.h>
#ifdef __linux__
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "problem.h"

#ifdef SM_AMX
#include <cpuid.h>
#endif

#define SM_DECLARE(name)                                                                                  \
    namespace name {                                                                                      \
    void chunk(const sm::Product&, int64_t, int64_t, const float**, double*);                             \
    extern void (*const amx_rows)(const sm::TileProduct&, std::atomic<int64_t>&, double*);                \
    extern void (*const emulated_rows)(const sm::TileProduct&, std::atomic<int64_t>&, double*);           \
    extern void (*const dot_rows)(const sm::TileProduct&, std::atomic<int64_t>&, double*);                \
    extern void (*const emulated_dot_rows)(const sm::TileProduct&, std::atomic<int64_t>&, double*);       \
    extern void (*const byte_rows)(const sm::ByteProduct&, std::atomic<int64_t>&, double*);               \
    extern void (*const emulated_byte_rows)(const sm::ByteProduct&, std::atomic<int64_t>&, double*);      \
    void range(const uint16_t*, int64_t, uint16_t*, int16_t*);                                            \
    void to_int8(const uint16_t*, int64_t, int64_t, int64_t, int64_t, float, float, uint8_t*, int64_t);   \
    void narrow(const sm::Product&, int64_t, int64_t, const float**);                                     \
    void depthwise(const sm::Product&, int64_t, int64_t);                                                 \
    void point_rows(const sm::Points&, int64_t, int64_t, float*);                                         \
    void point_bins(const sm::PointBins&, int64_t, int64_t, float*);                                      \
    void point_centres(const sm::PointGrads&, int64_t, int64_t, float*);                                  \
    void point_neighbours(const sm::PointGrads&, int64_t, int64_t);                                       \
    void correlate(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*);               \
    void scales(const sm::Scales&, int64_t);                                                              \
    void expand(const sm::Inverted&, const sm::Ring&, const int32_t*, int64_t, bool);                     \
    void contract(const sm::Inverted&, const sm::Ring&, const int32_t*, int64_t, bool, float*);           \
    void scale_rows(const sm::Scales&, const sm::Scale&, const int32_t*, int64_t, bool, bool, int64_t,    \
                    float*, float*);                                                                      \
    void locate_first(const sm::Locate&, int64_t, int64_t, float*, float*);                               \
    void locate_second(const sm::Locate&, int64_t, const float*, float*, float*);                         \
    }

#ifdef SM_ONLY  // a library of one part, chosen when it was compiled: its name, its width
SM_DECLARE(SM_ONLY)
#else
SM_DECLARE(sm_plain)
#ifdef SM_X86
SM_DECLARE(sm_avx2)
SM_DECLARE(sm_avx512)
#endif
#endif

#define SM_CHOICE(name, width) \
    {name::chunk,         name::narrow,           name::depthwise, name::point_rows, name::point_bins, \
     name::point_centres, name::point_neighbours, name::correlate, name::scales,     name::expand,     \
     name::contract,      name::locate_first,     name::locate_second, name::scale_rows,               \
     name::amx_rows,      name::emulated_rows,    name::dot_rows,      name::emulated_dot_rows,        \
     name::byte_rows,     name::emulated_byte_rows, name::range,       name::to_int8,    width}

namespace {

constexpr int64_t CHUNK = 48;

using Chunk = void (*)(const sm::Product&, int64_t, int64_t, const float**, double*);
using Narrow = void (*)(const sm::Product&, int64_t, int64_t, const float**);
using Depthwise = void (*)(const sm::Product&, int64_t, int64_t);

using PointRows = void (*)(const sm::Points&, int64_t, int64_t, float*);
using PointBins = void (*)(const sm::PointBins&, int64_t, int64_t, float*);
using PointCentres = void (*)(const sm::PointGrads&, int64_t, int64_t, float*);
using PointNeighbours = void (*)(const sm::PointGrads&, int64_t, int64_t);

using Correlate = void (*)(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*);

using ScalesOf = void (*)(const sm::Scales&, int64_t);

using Expand = void (*)(const sm::Inverted&, const sm::Ring&, const int32_t*, int64_t, bool);
using ScaleRows = void (*)(const sm::Scales&, const sm::Scale&, const int32_t*, int64_t, bool, bool, int64_t, float*,
                           float*);
using LocateFirst = void (*)(const sm::Locate&, int64_t, int64_t, float*, float*);
using LocateSecond = void (*)(const sm::Locate&, int64_t, const float*, float*, float*);
using TileRows = void (*)(const sm::TileProduct&, std::atomic<int64_t>&, double*);
using ByteRows = void (*)(const sm::ByteProduct&, std::atomic<int64_t>&, double*);
using Range = void (*)(const uint16_t*, int64_t, uint16_t*, int16_t*);
using ToInt8 = void (*)(const uint16_t*, int64_t, int64_t, int64_t, int64_t, float, float, uint8_t*, int64_t);
using Contract = void (*)(const sm::Inverted&, const sm::Ring&, const int32_t*, int64_t, bool, float*);

struct Choice {
    Chunk chunk;
    Narrow narrow;
    Depthwise depthwise;
    PointRows point_rows;
    PointBins point_bins;
    PointCentres point_centres;
    PointNeighbours point_neighbours;
    Correlate correlate;
    ScalesOf scales;
    Expand expand;
    Contract contract;
    LocateFirst locate_first;
    LocateSecond locate_second;
    ScaleRows scale_rows;
    TileRows amx_rows;  // or null
    TileRows emulated_rows;
    TileRows dot_rows;  // or null
    TileRows emulated_dot_rows;
    ByteRows byte_rows;  // or null
    ByteRows emulated_byte_rows;
    Range range;
    ToInt8 to_int8;
    int64_t width;
};

Choice best([[maybe_unused]] int64_t widest) {
#ifdef SM_ONLY
    return SM_CHOICE(SM_ONLY, SM_ONLY_WIDTH);
#else
#ifdef SM_X86
    __builtin_cpu_init();
    if (widest >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
        return SM_CHOICE(sm_avx512, 16);
    if (widest >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return SM_CHOICE(sm_avx2, 8);
#endif
    return SM_CHOICE(sm_plain, 4);
#endif
}

Choice chosen = best(16);

// What products in bfloat16 are computed by: nothing, the processor's matrix tiles (AMX) or dot products (AVX512-BF16), or
// an emulation of either; and products in int8: by dot products (AVX512-VNNI), or their emulation.
enum Tiles : int64_t { NO_TILES, AMX, EMULATED, DOT, EMULATED_DOT, VNNI, EMULATED_VNNI };

// Whether the processor has AVX512-BF16, of which the system knows all registers where it has AVX-512.
bool has_dot() {
#ifdef SM_AMX
    unsigned a, b, c, d;
    return chosen.dot_rows && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
#else
    return false;
#endif
}

// Whether the processor has AVX512-VNNI beside it: what is not a factor is in bfloat16.
bool has_vnni() {
#ifdef SM_AMX
    unsigned a, b, c, d;
    return has_dot() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
#else
    return false;
#endif
}

// Whether the processor multiplies tiles of bfloat16 and the system lets this process do so, which has to be asked for.
bool has_amx() {
#if defined(SM_AMX) && defined(__linux__)
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // amx-bf16, amx-tile
    return has_dot() && chosen.amx_rows && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

bool has(int64_t tiles) {
    return tiles == AMX ? has_amx() : tiles == DOT ? has_dot() : tiles == VNNI ? has_vnni() : tiles != NO_TILES;
}

// Of products in bfloat16, and in int8.
int64_t in_use[2] = {NO_TILES, NO_TILES};

template <class P>
void packed_product(const P& p, void (*rows)(const P&, std::atomic<int64_t>&, double*)) {
    const int threads = static_cast<int>(std::min<int64_t>(p.threads, (p.rows + sm::TAKEN - 1) / sm::TAKEN));
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads) if (threads > 1)
    rows(p, next, p.sums ? p.sums + omp_get_thread_num() * p.columns : nullptr);
}

}  // namespace

#include "bands.h"
#include "locating.h"
#include "stages.h"

extern "C" {

// Floats of the vectors in use, after limiting them to `widest` where that is not 0; narrower ones have no instructions for
// bfloat16.
int64_t sm_width(int64_t widest) {
    if (widest) chosen = best(widest);
    for (int64_t& tiles : in_use)
        if (!has(tiles)) tiles = NO_TILES;
    return chosen.width;
}

// What products in bfloat16 (bytes 2) or in int8 (bytes 1) are computed by, as Tiles has it. Asked for some (`wanted` not
// negative), it uses these where it has them, else none.
int64_t sm_tiles(int64_t bytes, int64_t wanted) {
    int64_t& tiles = in_use[bytes == 1];
    if (wanted >= 0) tiles = has(wanted) ? wanted : NO_TILES;
    return tiles;
}

// weights (depth, columns) of numbers of so many bytes, row-major, to panels of 16 columns, an even number of them, each of tiles
// of 16 rows and columns of groups of four bytes, of what follows each other along the depth; what is filled up is zero.
void sm_pack_tiles(int64_t bytes, const uint8_t* weights, int64_t depth, int64_t columns, uint8_t* packed) {
    const int64_t numbers = 4 / bytes, tile = 16 * numbers;
    for (int64_t first = 0; first < (columns + 31) / 32 * 32; first += 16)
        for (int64_t k = 0; k < (depth + tile - 1) / tile * tile; k += numbers)
            for (int64_t j = first; j < first + 16; j++)
                for (int64_t i = k; i < k + numbers; i++, packed += bytes)
                    if (i < depth && j < columns)
                        std::memcpy(packed, weights + (i * columns + j) * bytes, bytes);
                    else
                        std::memset(packed, 0, bytes);
}

// found: the least of 0 and n numbers in bfloat16, and the most of them, as bfloat16; not a number, where there is such a one.
void sm_range(const uint16_t* from, int64_t n, uint16_t* found, int64_t threads) {
    constexpr int64_t TOGETHER = 1 << 16;
    uint16_t below = 0x8000u;
    int16_t above = 0;
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1 && n > TOGETHER) \
    reduction(max : below, above)
    for (int64_t i = 0; i < n; i += TOGETHER) chosen.range(from + i, std::min(TOGETHER, n - i), &below, &above);
    found[0] = below, found[1] = static_cast<uint16_t>(above);
}

// See to_int8.
void sm_to_int8(const uint16_t* from, int64_t stride, int64_t length, int64_t rows, double steps, int64_t zero,
                uint8_t* to, int64_t wide, int64_t threads) {
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t start = 0; start < rows; start += CHUNK)
        chosen.to_int8(from, stride, length, start, std::min(rows, start + CHUNK), static_cast<float>(steps),
                       static_cast<float>(zero), to, wide);
}

// weights (depth, columns), row-major, to panels of 16 columns, the last of 8 where 8 or fewer are left.
void sm_pack(const float* weights, int64_t depth, int64_t columns, float* packed) {
    for (int64_t first = 0; first < columns;) {
        const int64_t left = columns - first, width = left > 8 ? sm::PANEL : 8;
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < width; j++) *packed++ = j < left ? weights[k * columns + first + j] : 0.0f;
        first += width;
    }
}

// The same for products that take `group` steps of the depth at a time: at every such step vectors of 16 / group columns, of
// each the weights of the steps; columns that fill up the last vector are zeros. depth: a multiple of group.
void sm_pack_groups(const float* weights, int64_t depth, int64_t columns, int64_t group, float* packed) {
    const int64_t each = 16 / group, wide = (columns + each - 1) / each * each;
    for (int64_t k = 0; k < depth; k += group)
        for (int64_t j = 0; j < wide; j++)
            for (int64_t i = k; i < k + group; i++) *packed++ = j < columns ? weights[i * columns + j] : 0.0f;
}

// kept, dropped: indices of true and false entries; compact, or null: index among the kept, or -1. Returns how many are
// kept. Eight entries at a time where they are alike: masks come in blobs.
int64_t sm_split(const uint8_t* mask, int64_t n, int32_t* kept, int32_t* dropped, int32_t* compact) {
    int64_t k = 0, d = 0, i = 0;
    while (i < n) {
        uint64_t eight = 1;
        if (i + 8 <= n) std::memcpy(&eight, mask + i, 8);
        if (eight == 0 || eight == 0x0101010101010101u) {
            int32_t* list = eight ? kept + k : dropped + d;
            for (int j = 0; j < 8; j++) list[j] = static_cast<int32_t>(i + j);
            if (compact)
                for (int j = 0; j < 8; j++) compact[i + j] = eight ? static_cast<int32_t>(k + j) : -1;
            (eight ? k : d) += 8;
            i += 8;
            continue;
        }
        for (const int64_t end = std::min(i + 8, n); i < end; i++) {
            const bool keep = mask[i] != 0;
            kept[k] = static_cast<int32_t>(i);  // room for eight entries more in both
            dropped[d] = static_cast<int32_t>(i);
            if (compact) compact[i] = keep ? static_cast<int32_t>(k) : -1;
            k += keep;
            d += !keep;
        }
    }
    return k;
}

// The entries v of `listed` by kind[v] (kinds <= 256), in order: values v, and pos, what position[v] is. starts
// (kinds + 1).
void sm_partition(const int32_t* listed, int64_t n, const uint8_t* kind, int64_t kinds, const int32_t* position,
                  int64_t* starts, int32_t* values, int32_t* pos) {
    int64_t count[256] = {}, next[256];
    for (int64_t i = 0; i < n; i++) count[kind[listed[i]]]++;
    starts[0] = 0;
    for (int64_t k = 0; k < kinds; k++) {
        next[k] = starts[k];
        starts[k + 1] = starts[k] + count[k];
    }
    for (int64_t i = 0; i < n; i++) {
        const int32_t v = listed[i];
        const int64_t to = next[kind[v]]++;
        values[to] = v;
        pos[to] = position[v];
    }
}

// Squares of 2x2 outputs among those at `pos` (n,), which rises; lines are `pitch` positions apart. found (n): their outputs,
// four of each, upper ones first; rest (n): outputs that are in none, in order. Returns how many squares there are.
int64_t sm_squares(const int32_t* pos, int64_t n, int64_t pitch, int32_t* found, int32_t* rest) {
    std::vector<uint8_t> taken(n);
    int64_t below = 0, left = 0;
    int32_t* to = found;
    for (int64_t i = 0; i < n; i++) {
        if (taken[i]) continue;
        const int64_t under = pos[i] + pitch;
        bool whole = i + 1 < n && pos[i + 1] == pos[i] + 1 && !taken[i + 1];
        if (whole) {
            while (below < n && pos[below] < under) below++;
            whole = below + 1 < n && pos[below] == under && pos[below + 1] == under + 1 && !taken[below];
        }
        if (!whole) {
            rest[left++] = static_cast<int32_t>(i);
            continue;
        }
        for (const int64_t one : {i, i + 1, below, below + 1}) {
            taken[one] = 1;
            *to++ = static_cast<int32_t>(one);
        }
    }
    return (to - found) / 4;
}

// out[i] = index[i] < 0 ? -1 : values[index[i]]
void sm_lookup(const int32_t* index, int64_t n, const int32_t* values, int32_t* out) {
    for (int64_t i = 0; i < n; i++) out[i] = index[i] < 0 ? -1 : values[index[i]];
}

// Zero the rows `at` of out and put those of values (rows, k) into their columns `places`.
void sm_fill(float* out, int64_t stride, int64_t columns, const int32_t* at, int64_t n, const float* values,
             const int32_t* places, int64_t k, int64_t threads) {
    const int shared = static_cast<int>(n * columns > (1 << 16) ? threads : 1);
#pragma omp parallel for num_threads(shared) if (shared > 1) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float* row = out + at[i] * stride;
        std::memset(row, 0, columns * sizeof(float));
        for (int64_t j = 0; j < k; j++) row[places[j]] = values[at[i] * k + j];
    }
}

// out[i, j] = rows[i, places[j]]
void sm_narrow(const float* rows, int64_t stride, int64_t n, const int32_t* places, int64_t k, float* out,
               int64_t threads) {
    const int shared = static_cast<int>(n * k > (1 << 15) ? threads : 1);
#pragma omp parallel for num_threads(shared) if (shared > 1) schedule(static)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++) out[i * k + j] = rows[i * stride + places[j]];
}

// a = max(a + b, 0), rows of `columns`; with a mask (n), rows it drops keep their first `dense` columns and are else 0.
void sm_add_relu(float* a, const float* b, int64_t n, int64_t columns, const uint8_t* mask, int64_t dense,
                 int64_t threads) {
    const int shared = static_cast<int>(n * columns > (1 << 16) ? threads : 1);
#pragma omp parallel for num_threads(shared) if (shared > 1) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float* row = a + i * columns;
        const float* other = b + i * columns;
        const int64_t computed = !mask || mask[i] ? columns : dense;
        for (int64_t j = 0; j < computed; j++) {
            const float v = row[j] + other[j];
            row[j] = v > 0 ? v : 0;
        }
        std::memset(row + computed, 0, (columns - computed) * sizeof(float));
    }
}

// Ask for large pages where memory is fresh: a feature map's worth of small ones costs as much as filling it does.
void sm_advise(float* memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t PAGE = 4096;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / PAGE * PAGE;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Keep freed memory for the next call instead of giving it back: a feature map on fresh pages takes half as long again.
void sm_keep_memory() {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

void sm_product(const sm::Product* given) {
    const sm::Product& p = *given;
    const int64_t chunks = (p.rows + CHUNK - 1) / CHUNK;
    std::atomic<int64_t> next{0};
    const int threads = static_cast<int>(std::min<int64_t>(p.threads, chunks));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<const float*> rows(p.n_segments * CHUNK + 1);
        std::vector<double> sums(p.sums ? p.columns : 0);
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;)
            chosen.chunk(p, i * CHUNK, std::min(CHUNK, p.rows - i * CHUNK), rows.data(),
                         p.sums ? sums.data() : nullptr);
        if (p.sums) {
            double* mine = p.sums + omp_get_thread_num() * p.columns;
            for (int64_t j = 0; j < p.columns; j++) mine[j] += sums[j];
        }
    }
}

void sm_tile_product(const sm::TileProduct* given) {
    packed_product(*given, in_use[0] == AMX           ? chosen.amx_rows
                           : in_use[0] == DOT          ? chosen.dot_rows
                           : in_use[0] == EMULATED_DOT ? chosen.emulated_dot_rows
                                                       : chosen.emulated_rows);
}

void sm_byte_product(const sm::ByteProduct* given) {
    packed_product(*given, in_use[1] == VNNI ? chosen.byte_rows : chosen.emulated_byte_rows);
}

// Several products in one go, without sums: chunks are taken in the order of their places, so that what several of them
// read and write is still in the cache.
void sm_products(const sm::Product* list, int64_t n) {
    struct Part {
        int32_t place;
        const sm::Product* product;
        int64_t start;
    };
    std::vector<Part> parts;
    int64_t segments = 0, threads = 1;
    for (int64_t k = 0; k < n; k++) {
        for (int64_t start = 0; start < list[k].rows; start += CHUNK) parts.push_back({list[k].pos[start], list + k, start});
        segments = std::max(segments, list[k].n_segments);
        threads = std::max(threads, list[k].threads);
    }
    if (n > 1)
        std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.place < b.place; });
    const int64_t count = static_cast<int64_t>(parts.size());
    std::atomic<int64_t> next{0};
    const int shared = static_cast<int>(std::min(threads, count));
#pragma omp parallel num_threads(shared) if (shared > 1)
    {
        std::vector<const float*> rows(segments * CHUNK + 1);
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            const sm::Product& p = *parts[i].product;
            const int64_t rest = std::min(CHUNK, p.rows - parts[i].start);
            if (p.narrow)
                chosen.narrow(p, parts[i].start, rest, rows.data());
            else
                chosen.chunk(p, parts[i].start, rest, rows.data(), nullptr);
        }
    }
}

void sm_depthwise(const sm::Product* given) {
    const sm::Product& p = *given;
    const int64_t chunks = (p.rows + CHUNK - 1) / CHUNK;
    const int threads = static_cast<int>(std::min<int64_t>(p.threads, chunks));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 4)
    for (int64_t i = 0; i < chunks; i++)
        chosen.depthwise(p, i * CHUNK, std::min(CHUNK, p.rows - i * CHUNK));
}

void sm_points(const sm::Points* given) {
    const sm::Points& p = *given;
    const int64_t chunks = (p.rows + CHUNK - 1) / CHUNK;
    std::atomic<int64_t> next{0};
    const int threads = static_cast<int>(std::min<int64_t>(p.threads, chunks));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> row(p.columns);
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;)
            chosen.point_rows(p, i * CHUNK, std::min(CHUNK, p.rows - i * CHUNK), row.data());
    }
}

// Shares are fixed by the number of threads, so that sums repeat bit for bit.
void sm_point_gradients(const sm::PointGrads* given) {
    const sm::PointGrads& p = *given;
    const int64_t share = (p.rows + p.threads - 1) / p.threads;
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(static, 1)
    for (int64_t t = 0; t < p.threads; t++) {
        const int64_t start = std::min(p.rows, t * share), count = std::min(share, p.rows - start);
        chosen.point_centres(p, start, count, p.to_table + t * p.bins_count * p.columns);
    }
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(static, 1)
    for (int64_t t = 0; t < p.threads; t++) {
        const int64_t start = std::min(p.rows, t * share), count = std::min(share, p.rows - start);
        chosen.point_neighbours(p, start, count);
    }
}

void sm_point_bins(const sm::PointBins* given) {
    const sm::PointBins& p = *given;
    const int64_t chunks = (p.rows + CHUNK - 1) / CHUNK;
    const int threads = static_cast<int>(std::min<int64_t>(p.threads, chunks));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> rel(3 * p.k);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < chunks; i++)
            chosen.point_bins(p, i * CHUNK, std::min(CHUNK, p.rows - i * CHUNK), rel.data());
    }
}

// Who reads a point as a neighbour (columns 1 to k-1): lists in order of the readers. offsets (n + 1).
void sm_point_readers(const int32_t* neighbours, const uint8_t* bins, int64_t n, int64_t k, int64_t* offsets,
                      int32_t* readers, uint8_t* reader_bins) {
    std::memset(offsets, 0, (n + 1) * sizeof(int64_t));
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 1; c < k; c++) offsets[neighbours[i * k + c] + 1]++;
    for (int64_t j = 0; j < n; j++) offsets[j + 1] += offsets[j];
    std::vector<int64_t> next(offsets, offsets + n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 1; c < k; c++) {
            const int64_t to = next[neighbours[i * k + c]]++;
            readers[to] = static_cast<int32_t>(i);
            reader_bins[to] = bins[i * k + c];
        }
}

// out[i] = mean over k of rows[neighbours[i, k]]
void sm_point_means(const float* rows, int64_t columns, const int32_t* neighbours, int64_t n, int64_t k, float* out,
                    int64_t threads) {
    const float share = 1.0f / static_cast<float>(k);
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float* to = out + i * columns;
        std::memset(to, 0, columns * sizeof(float));
        for (int64_t c = 0; c < k; c++) {
            const float* from = rows + static_cast<int64_t>(neighbours[i * k + c]) * columns;
            for (int64_t j = 0; j < columns; j++) to[j] += from[j];
        }
        for (int64_t j = 0; j < columns; j++) to[j] *= share;
    }
}

// out (levels, height, width, groups): see correlate. left, right: (height, width, each, groups).
void sm_correlation(const float* left, const float* right, int64_t levels, int64_t height, int64_t width,
                    int64_t groups, int64_t each, float* out, int64_t threads) {
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(dynamic, 4)
    for (int64_t line = 0; line < levels * height; line++) {
        const int64_t from = line % height * width * groups * each;
        chosen.correlate(left + from, right + from, line / height, width, groups, each, out + line * width * groups);
    }
}

int64_t sm_version() { return 4; }

}  // extern "C"

#include "point_network.h"
#include "module.h"

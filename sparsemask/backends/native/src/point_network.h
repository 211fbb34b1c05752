// A network on points in one call: on small crops calls cost more than they compute. Included in kernels.cpp.
//
// Level by level: the mask branch, the split of the points, the block's layers, its fusion; then the joins back to the
// finest level. A layer's products lie in one buffer: a row for every point, what dense inputs give, and behind them a
// row for every kept point with what sparse inputs give added; kept outputs read kept neighbours there. Dense channels
// of the outputs lie in a buffer of all points, sparse ones in a compact buffer of kept points.
#include <cmath>
#include <memory>

namespace {

// One thread's memory for what lives inside a call; it grows to what a call needed, and stays.
class Arena {
public:
    template <typename T>
    T* take(int64_t count) {
        const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        while (page < pages.size() && pages[page].size - used < bytes) page++, used = 0;
        if (page == pages.size()) add(std::max<int64_t>(bytes, 1 << 18));
        char* at = pages[page].start + used;
        used += bytes;
        return reinterpret_cast<T*>(at);
    }

    // What was taken before is not used any more; next time all is in one piece.
    void reset() {
        if (pages.size() > 1) {
            int64_t total = 0;
            for (const Page& one : pages) total += one.size;
            pages.clear();
            add(total);
        }
        page = 0;
        used = 0;
    }

private:
    struct Page {
        std::unique_ptr<char[]> memory;
        char* start;
        int64_t size;
    };
    std::vector<Page> pages;
    size_t page = 0;
    int64_t used = 0;

    void add(int64_t size) {
        std::unique_ptr<char[]> memory(new char[size + 64]);
        char* start = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64;
        pages.push_back({std::move(memory), start, size});
    }
};

// The points of a level, of all samples, as the kernels take them.
struct LevelRows {
    int64_t count;
    const int32_t* every;  // 0 … count - 1
    const float* xyz;
    const int32_t* neighbours;
    const int32_t* upsample;
    const uint8_t* mask_cells;
    const uint8_t* cells;
};

// Channels of some rows, side by side with others.
sm::Segment segment(const float* rows, int64_t length, const int32_t* map = nullptr) {
    return {rows, map, length, 0, length};
}

// out[r] = act(segments . packed + bias + add), `columns` wide, at the rows `listed`.
void linear(const int32_t* listed, int64_t count, const sm::Segment* segments, int64_t n, const float* packed,
            int64_t columns, float* out, const float* bias, bool relu, int64_t threads, bool placed = true,
            const float* add = nullptr, const int32_t* add_map = nullptr) {
    if (!count) return;
    sm::Product p = {};
    p.rows = count;
    p.pos = listed;
    p.n_segments = n;
    p.segments = segments;
    for (int64_t s = 0; s < n; s++) p.depth += segments[s].length;
    p.columns = p.split = p.stride0 = columns;
    p.packed = packed;
    p.bias = bias;
    p.activation = relu ? 1 : 0;
    p.out0 = out;
    p.at0 = placed ? listed : nullptr;
    p.add = add;
    p.add_stride = columns;
    p.add_map = add_map;
    p.threads = threads;
    sm_product(&p);
}

sm::Points aggregation(const LevelRows& at, const uint8_t* cells, int64_t k, const float* g, int64_t wide,
                       const float* rel, const float* table, const float* bias, float* out, int64_t threads) {
    sm::Points p = {};
    p.rows = at.count;
    p.k = k;
    p.neighbours = at.neighbours;
    p.bins = cells;
    p.g = g;
    p.stride = p.rel_stride = p.table_stride = p.columns = wide;
    p.xyz = at.xyz;
    p.rel = rel;
    p.table = table;
    p.bias = bias;
    p.relu = 1;
    p.split = p.stride0 = wide;
    p.out0 = out;
    p.threads = threads;
    return p;
}

// A whole point convolution of a branch.
const float* convolve(const sm::PointLayer& layer, const float* rows, int64_t stride, const LevelRows& at, int64_t k,
                      bool relu, Arena& arena, int64_t threads) {
    float* g = arena.take<float>(at.count * layer.wide);
    float* out = arena.take<float>(at.count * layer.wide);
    const sm::Segment segments[] = {{rows, nullptr, stride, 0, layer.ins}, segment(at.xyz, 3)};
    linear(at.every, at.count, segments, 2, layer.packed, layer.wide, g, nullptr, false, threads);
    sm::Points p = aggregation(at, at.mask_cells, k, g, layer.wide, layer.rel, layer.table, layer.bias, out, threads);
    p.relu = relu;
    sm_points(&p);
    return out;
}

// Where a block computes.
void point_mask(const sm::PointBlock& block, const float* rows, const LevelRows& at, int64_t k, uint8_t* mask,
                Arena& arena, int64_t threads) {
    if (block.masked != 1) {
        std::memset(mask, block.masked == 0, at.count);
        return;
    }
    float* hidden = arena.take<float>(at.count * block.narrow);
    const sm::Segment input = segment(rows, block.ins);
    linear(at.every, at.count, &input, 1, block.first, block.narrow, hidden, block.first_bias, true, threads);
    const float* middle = convolve(block.second, hidden, block.narrow, at, k, true, arena, threads);
    const float* logits = convolve(block.third, middle, block.second.wide, at, k, false, arena, threads);
    const float threshold = static_cast<float>(block.threshold);
    for (int64_t i = 0; i < at.count; i++) {
        const float drop = logits[i * block.third.wide], keep = logits[i * block.third.wide + 1];
        mask[i] = block.compared ? 1 / (1 + std::exp(drop - keep)) > threshold : keep > drop;
    }
}

// The block's output, (points, wide).
void point_block(const sm::PointBlock& block, const float* rows, const LevelRows& at, int64_t k, const uint8_t* mask,
                 float* out, Arena& arena, int64_t threads) {
    const int64_t count = at.count, wide = block.wide;
    int32_t* kept = arena.take<int32_t>(count + 8);
    int32_t* dropped = arena.take<int32_t>(count + 8);
    int32_t* compact = arena.take<int32_t>(count);
    const bool all = block.masked == 0;
    const int64_t n_kept = all ? count : sm_split(mask, count, kept, dropped, compact), n_dropped = count - n_kept;
    const int32_t *listed = all ? at.every : kept, *places = all ? at.every : compact;
    int32_t* behind = nullptr;  // where the products of a kept output's neighbours lie
    if (n_kept && !all) {
        behind = arena.take<int32_t>(count);
        for (int64_t i = 0; i < count; i++) behind[i] = static_cast<int32_t>(compact[i] >= 0 ? compact[i] + count : i);
    }
    std::vector<sm::Segment> both, dense;
    const float *x = rows, *sparse = nullptr;
    for (int64_t l = 0; l < block.n_layers; l++) {
        const sm::PointMasked& layer = block.layers[l];
        const bool mixes = layer.from_sparse && n_kept;
        float* g = arena.take<float>((count + (mixes ? n_kept : 0)) * wide);
        const sm::Segment inputs[] = {segment(x, layer.ins_dense), segment(at.xyz, 3)};
        const int skipped = layer.ins_dense ? 0 : 1;
        linear(at.every, count, inputs + skipped, 2 - skipped, layer.from_dense, wide, g, nullptr, false, threads);
        if (mixes) {
            const sm::Segment more = segment(sparse, layer.ins_sparse, places);
            linear(listed, n_kept, &more, 1, layer.from_sparse, wide, g + count * wide, nullptr, false, threads, false, g,
                   listed);
        }
        float* dense_out = arena.take<float>(count * layer.dense);
        float* sparse_out = arena.take<float>(n_kept * (wide - layer.dense));
        sm::Points p = aggregation(at, at.cells, k, g, wide, layer.rel, layer.table, layer.bias, dense_out, threads);
        p.split = p.stride0 = layer.dense;
        if (n_kept) {
            p.rows = n_kept;
            p.points = listed;
            p.map = mixes ? behind : nullptr;
            p.out1 = sparse_out;
            p.stride1 = wide - layer.dense;
            sm_points(&p);
        }
        if (n_dropped && layer.dense) {
            p.rows = n_dropped;
            p.points = dropped;
            p.columns = std::min(wide, std::max<int64_t>(layer.dense, 8));
            p.map = mixes && !block.gated ? behind : nullptr;
            p.out1 = nullptr;
            sm_points(&p);
        }
        if (layer.dense) {
            both.push_back(segment(dense_out, layer.dense));
            dense.push_back(both.back());
        }
        if (layer.dense < wide) both.push_back(segment(sparse_out, wide - layer.dense, places));
        x = dense_out;
        sparse = sparse_out;
    }
    if (block.shortcut) {
        both.push_back(segment(rows, block.ins));
        dense.push_back(both.back());
    }
    const float* add = block.shortcut ? nullptr : rows;
    const auto fuse = [&](const int32_t* points, int64_t n, const std::vector<sm::Segment>& from, const float* packed,
                          const float* bias) {
        linear(points, n, from.data(), static_cast<int64_t>(from.size()), packed, wide, out, bias, true, threads, true,
               add);
    };
    fuse(listed, n_kept, both, block.kept, block.kept_bias);
    fuse(dropped, n_dropped, dense, block.dropped, block.tail_bias);
}

// A level's rows of all samples: with one sample what the caller has, else copies with indices into all rows.
LevelRows level_rows(const sm::PointNetwork& net, int64_t number, const int32_t* every, Arena& arena) {
    const sm::PointLevel& level = net.levels[number];
    const int64_t size = level.points, whole = net.levels[0].points;
    LevelRows at = {net.batch * size, every, net.xyz, level.neighbours, level.upsample, nullptr, nullptr};
    if (net.batch > 1) {
        float* xyz = arena.take<float>(at.count * 3);
        int32_t* neighbours = arena.take<int32_t>(at.count * net.k);
        int32_t* upsample = level.upsample ? arena.take<int32_t>(at.count) : nullptr;
        for (int64_t b = 0; b < net.batch; b++) {
            std::memcpy(xyz + b * size * 3, net.xyz + b * whole * 3, size * 3 * sizeof(float));
            const int32_t first = static_cast<int32_t>(b * size);
            for (int64_t i = b * size * net.k; i < (b + 1) * size * net.k; i++)
                neighbours[i] = level.neighbours[i] + first;
            if (!upsample) continue;
            const int32_t coarse = static_cast<int32_t>(b * net.levels[number + 1].points);
            for (int64_t i = b * size; i < (b + 1) * size; i++) upsample[i] = level.upsample[i] + coarse;
        }
        at.xyz = xyz;
        at.neighbours = neighbours;
        at.upsample = upsample;
    }
    sm::PointBins bins = {at.count, net.k, at.xyz, at.neighbours, level.radius, net.cells, 0, nullptr, net.threads};
    const auto cells = [&](bool nearest) {
        bins.nearest = nearest;
        bins.bins = arena.take<uint8_t>(at.count * net.k);
        sm_point_bins(&bins);
        return bins.bins;
    };
    const bool branched = net.blocks[number].masked == 1;
    at.cells = cells(net.nearest);
    at.mask_cells = branched && net.nearest ? cells(false) : at.cells;
    return at;
}

}  // namespace

extern "C" void sm_point_network(const sm::PointNetwork* given) {
    const sm::PointNetwork& net = *given;
    static thread_local Arena arena, within;  // what the whole call needs, and a block
    arena.reset();
    const int64_t most = net.batch * net.levels[0].points;
    int32_t* every = arena.take<int32_t>(most);
    for (int64_t i = 0; i < most; i++) every[i] = static_cast<int32_t>(i);
    float* first = arena.take<float>(most * net.blocks[0].ins);
    const sm::Segment input = segment(net.rows, net.ins);
    linear(every, most, &input, 1, net.init, net.blocks[0].ins, first, net.init_bias, true, net.threads);
    const float* rows = first;
    std::vector<LevelRows> levels;
    std::vector<const float*> skips;
    for (int64_t n = 0; n < net.n_levels; n++) {
        const int64_t size = net.levels[n].points;
        if (n) {  // the mean over the neighbours of each sample's first points
            const int64_t wide = net.blocks[n].ins, finer = net.levels[n - 1].points;
            float* pooled = arena.take<float>(net.batch * size * wide);
            for (int64_t b = 0; b < net.batch; b++)
                sm_point_means(rows, wide, levels[n - 1].neighbours + b * finer * net.k, size, net.k,
                               pooled + b * size * wide, net.threads);
            rows = pooled;
        }
        levels.push_back(level_rows(net, n, every, arena));
        within.reset();
        float* out = arena.take<float>(levels[n].count * net.blocks[n].wide);
        point_mask(net.blocks[n], rows, levels[n], net.k, net.levels[n].mask, within, net.threads);
        point_block(net.blocks[n], rows, levels[n], net.k, net.levels[n].mask, out, within, net.threads);
        rows = out;
        skips.push_back(rows);
    }
    for (int64_t n = net.n_levels - 2; n >= 0; n--) {
        const sm::PointJoin& join = net.joins[net.n_levels - 2 - n];
        float* coarse = arena.take<float>(levels[n + 1].count * join.own);
        float* out = arena.take<float>(levels[n].count * join.own);
        const sm::Segment from = segment(rows, join.coarse), skip = segment(skips[n], join.own);
        linear(every, levels[n + 1].count, &from, 1, join.left, join.own, coarse, nullptr, false, net.threads);
        linear(every, levels[n].count, &skip, 1, join.right, join.own, out, join.bias, true, net.threads, true, coarse,
               levels[n].upsample);
        rows = out;
    }
    float* hidden = arena.take<float>(most * net.hidden);
    const sm::Segment last = segment(rows, net.blocks[0].wide), end = segment(hidden, net.hidden);
    linear(every, most, &last, 1, net.tail, net.hidden, hidden, net.tail_bias, true, net.threads);
    linear(every, most, &end, 1, net.last, net.classes, net.out, net.last_bias, false, net.threads);
}

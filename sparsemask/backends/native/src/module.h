// A module in one call: its layers and their fusion, with channel attention or without. block.py says how. Included by
// kernels.cpp, after point_network.h.

namespace {

sm::Product module_product(const sm::Module& m, const int32_t* pos, int64_t rows, const std::vector<sm::Segment>& segments,
                           const float* packed, int64_t columns) {
    sm::Product p = {};
    p.rows = rows, p.pos = pos;
    p.n_segments = static_cast<int64_t>(segments.size()), p.segments = segments.data();
    for (const auto& one : segments) p.depth += one.length;
    p.columns = p.split = columns;
    p.packed = packed;
    p.threads = m.threads;
    return p;
}

// Factors of the fusion's outputs, from the means of all channels in the fusion's order.
std::vector<float> module_factors(const sm::Module& m, const std::vector<double>& means) {
    std::vector<double> mean(m.columns);
    for (int64_t j = 0; j < m.columns; j++) mean[j] = m.bias ? m.bias[j] : 0;
    for (int64_t k = 0; k < m.whole; k++)
        for (int64_t j = 0; j < m.columns; j++) mean[j] += means[k] * m.fuse[k * m.columns + j];
    std::vector<float> middle(m.squeezed), found(m.columns);
    for (int64_t r = 0; r < m.squeezed; r++) {
        float sum = m.squeeze_bias[r];
        for (int64_t j = 0; j < m.columns; j++) sum += m.squeeze[r * m.columns + j] * static_cast<float>(mean[j]);
        middle[r] = std::max(sum, 0.0f);
    }
    for (int64_t j = 0; j < m.columns; j++) {
        float sum = m.excite_bias[j];
        for (int64_t r = 0; r < m.squeezed; r++) sum += m.excite[j * m.squeezed + r] * middle[r];
        found[j] = 1 / (1 + std::exp(-sum));
    }
    return found;
}

// A layer's output: dense channels of all locations, sparse ones of the kept, and the sums of both.
struct ModuleRows {
    float *everywhere, *here;
    std::vector<double> sums;
};

// The product, whose outputs' sums are added to `sums` where attention wants them.
void add_up(const sm::Module& m, sm::Product& p, std::vector<double>& sums) {
    if (!p.rows) return;
    std::vector<double> room(m.squeezed ? m.threads * p.columns : 0);
    if (m.squeezed) p.sums = room.data();
    sm_product(&p);
    for (size_t i = 0; i < room.size(); i++) sums[i % p.columns] += room[i];
}

// The kept locations: those of squares, and the others.
struct ModuleKept {
    std::vector<int32_t> squares, rest;  // their numbers among the kept, four of each square
    std::vector<int32_t> at_squares, at_rest;  // where they stand on the padded grid, of a square its first one
    std::vector<int32_t> of_squares, of_rest;  // their numbers among all

    explicit ModuleKept(const sm::Module& m) {
        const auto has = [](const sm::ModuleLayer& one) { return one.squared != nullptr; };
        if (!m.pitch || std::none_of(m.layers, m.layers + m.n_layers, has)) return;
        squares.resize(m.n_kept), rest.resize(m.n_kept);
        const int64_t n = sm_squares(m.at_kept, m.n_kept, m.pitch, squares.data(), rest.data());
        squares.resize(4 * n), rest.resize(m.n_kept - 4 * n);
        at_squares.resize(n), at_rest.resize(rest.size()), of_squares.resize(squares.size()), of_rest.resize(rest.size());
        for (int64_t i = 0; i < n; i++) at_squares[i] = m.at_kept[squares[4 * i]];
        for (size_t i = 0; i < rest.size(); i++) at_rest[i] = m.at_kept[rest[i]], of_rest[i] = m.kept[rest[i]];
        for (size_t i = 0; i < squares.size(); i++) of_squares[i] = m.kept[squares[i]];
    }
};

ModuleRows module_layer(const sm::Module& m, const sm::ModuleLayer& one, const ModuleKept& locations,
                        const float* everywhere, int64_t n_everywhere, const float* here, int64_t n_here,
                        float*& memory) {
    ModuleRows made{memory, memory + (m.count * one.dense + 15) / 16 * 16, std::vector<double>(one.dense + one.sparse)};
    memory = made.here + (m.n_kept * one.sparse + 15) / 16 * 16;
    std::vector<sm::Segment> dense, both, first;
    for (int64_t t = 0; t < m.n_taps; t++) {
        if (n_everywhere) dense.push_back({everywhere, m.interior, n_everywhere, m.offsets[t], n_everywhere});
        if (n_everywhere) both.push_back(dense.back());
        if (n_here) both.push_back({here, m.compact, n_here, m.offsets[t], n_here});
        if (!t) first.assign(both.begin(), both.end());
    }
    sm::Product kept = module_product(m, m.at_kept, m.n_kept, both, one.full, one.dense + one.sparse);
    kept.split = one.dense, kept.group = one.full_group;
    kept.out0 = made.everywhere, kept.at0 = m.kept, kept.stride0 = one.dense;
    kept.out1 = made.here, kept.stride1 = one.sparse;
    sm::Product squares = {};
    if (one.squared && m.pitch) {
        squares = module_product(m, locations.at_squares.data(), static_cast<int64_t>(locations.at_squares.size()), first,
                                 one.squared, kept.columns);
        squares.split = kept.split, squares.pitch = m.pitch;
        squares.out0 = kept.out0, squares.at0 = locations.of_squares.data(), squares.stride0 = kept.stride0;
        squares.out1 = kept.out1, squares.at1 = locations.squares.data(), squares.stride1 = kept.stride1;
        kept.rows = static_cast<int64_t>(locations.rest.size()), kept.pos = locations.at_rest.data();
        kept.at0 = locations.of_rest.data(), kept.at1 = locations.rest.data();
    }
    sm::Product dropped = module_product(m, m.at_dropped, m.n_dropped, dense, one.dropping, one.dense);
    dropped.group = one.dropping_group;
    dropped.out0 = made.everywhere, dropped.at0 = m.dropped, dropped.stride0 = one.dense;
    for (sm::Product* each : {&squares, &kept, &dropped}) {
        each->activation = m.activation, each->slope = m.slope;
        if (each->columns) add_up(m, *each, made.sums);
    }
    return made;
}

}  // namespace

extern "C" void sm_module(const sm::Module* given) {
    const sm::Module& m = *given;
    const ModuleKept locations(m);
    std::vector<ModuleRows> layers;
    const float *everywhere = m.x, *here = nullptr;
    int64_t n_everywhere = m.channels, n_here = 0;
    float* memory = m.memory;
    for (int64_t i = 0; i < m.n_layers; i++) {
        layers.push_back(module_layer(m, m.layers[i], locations, everywhere, n_everywhere, here, n_here, memory));
        everywhere = layers.back().everywhere, here = layers.back().here;
        n_everywhere = m.layers[i].dense, n_here = m.layers[i].sparse;
    }
    const float *collect = m.collect, *dropped = m.collect_dropped, *bias = m.bias;
    std::vector<float> packed, packed_dropped, scaled_bias;
    if (m.squeezed) {
        std::vector<double> means;
        for (const bool sparse : {false, true})
            for (int64_t i = 0; i < m.n_layers; i++) {
                const auto from = layers[i].sums.begin() + (sparse ? m.layers[i].dense : 0);
                means.insert(means.end(), from, from + (sparse ? m.layers[i].sparse : m.layers[i].dense));
            }
        for (double& one : means) one /= static_cast<double>(m.count);
        const std::vector<float> factors = module_factors(m, means);
        const int64_t wide = (m.columns + 15) / 16 * 16;
        std::vector<float> scaled(m.fuse, m.fuse + m.whole * m.columns);
        for (size_t i = 0; i < scaled.size(); i++) scaled[i] *= factors[i % m.columns];
        packed.resize(m.whole * wide), packed_dropped.resize(m.everywhere * wide);
        sm_pack(scaled.data(), m.whole, m.columns, packed.data());
        sm_pack(scaled.data(), m.everywhere, m.columns, packed_dropped.data());
        collect = packed.data(), dropped = packed_dropped.data();
        if (bias) scaled_bias.assign(bias, bias + m.columns);
        for (size_t j = 0; j < scaled_bias.size(); j++) scaled_bias[j] *= factors[j];
        bias = bias ? scaled_bias.data() : nullptr;
    }
    std::vector<sm::Segment> dense, both;
    const int64_t middle = m.offsets[m.n_taps / 2];
    for (int64_t i = 0; i < m.n_layers; i++)
        if (const int64_t n = m.layers[i].dense) dense.push_back({layers[i].everywhere, m.interior, n, middle, n});
    // One by one: a vector's copy would need a symbol of a newer libstdc++ than wheels may.
    for (const sm::Segment& one : dense) both.push_back(one);
    for (int64_t i = 0; i < m.n_layers; i++)
        if (const int64_t n = m.layers[i].sparse) both.push_back({layers[i].here, m.compact, n, middle, n});
    sm::Product parts[2] = {module_product(m, m.at_kept, m.n_kept, both, collect, m.columns),
                            module_product(m, m.at_dropped, m.n_dropped, dense, dropped, m.columns)};
    parts[0].at0 = m.kept, parts[1].at0 = m.dropped;
    for (sm::Product& one : parts) {
        one.bias = bias;
        one.out0 = m.out, one.stride0 = m.columns;
        if (m.squeezed) one.add = m.x, one.add_stride = m.columns;
        if (one.rows) sm_product(&one);
    }
}

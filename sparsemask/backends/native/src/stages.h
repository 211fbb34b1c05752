// A decoder stage: 1x1 convolutions of features of several sizes, at the places that a kept one reads, and their sum at
// one size. Included by kernels.cpp, after bands.h.

// Outputs that read input i along an axis upsampled from `inputs` to `outputs`, corners aligned: first ... end - 1.
static void readers(int64_t inputs, int64_t outputs, std::vector<int64_t>& first, std::vector<int64_t>& end) {
    const double step = static_cast<double>(inputs - 1) / std::max<int64_t>(outputs - 1, 1);
    const double wide = 1 + 1e-4;  // one too many rather than one too few by rounding
    first.resize(inputs), end.resize(inputs);
    int64_t a = 0, b = 0;
    for (int64_t i = 0; i < inputs; i++) {
        while (a < outputs && a * step <= i - wide) a++;
        while (b < outputs && b * step < i + wide) b++;
        first[i] = a, end[i] = b;
    }
}

// The mask of the output on the grid of a feature: kept if any kept place reads it.
static void carry(const sm::Scales& p, const sm::Scale& one, std::vector<uint8_t>& found) {
    std::vector<int64_t> top, bottom, left, right;
    std::vector<uint8_t> line(p.width);
    readers(one.height, p.height, top, bottom);
    readers(one.width, p.width, left, right);
    found.resize(p.batch * one.height * one.width);
    uint8_t* to = found.data();
    for (int64_t b = 0; b < p.batch; b++)
        for (int64_t y = 0; y < one.height; y++) {
            std::fill(line.begin(), line.end(), 0);
            for (int64_t from = top[y]; from < bottom[y]; from++) {
                const uint8_t* mask = p.mask + (b * p.height + from) * p.width;
                for (int64_t x = 0; x < p.width; x++) line[x] |= mask[x];
            }
            for (int64_t x = 0; x < one.width; x++) {
                uint8_t any = 0;
                for (int64_t from = left[x]; from < right[x]; from++) any |= line[from];
                *to++ = any;
            }
        }
}

extern "C" void sm_scales(const sm::Scales* given) {
    constexpr int64_t MOST = 32;
    sm::Scales p = *given;
    static thread_local std::vector<float> memory;
    static thread_local Places places[MOST];
    static thread_local std::vector<uint8_t> carried;
    struct Part {
        int64_t scale, chunk;
        bool kept;
    };
    sm::Scale scales[MOST];
    float* out[MOST] = {};
    std::vector<Part> parts;
    std::vector<Chunks> kept, dropped;
    int64_t size = 0, channels = 1;
    // A feature of the output's own size is convolved line by line, where it is read; the others before.
    bool alike[MOST] = {};
    for (int64_t s = 0; s < p.n; s++) {
        const sm::Scale& one = p.scales[s];
        alike[s] = one.packed && one.height == p.height && one.width == p.width;
    }
    for (int64_t s = 0; s < p.n; s++)
        if (p.scales[s].packed && !alike[s]) size += p.batch * p.scales[s].height * p.scales[s].width * p.wide;
    if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
    float* next = memory.data();
    for (int64_t s = 0; s < p.n; s++) {
        const sm::Scale& one = scales[s] = p.scales[s];
        const int64_t n = p.batch * one.height * one.width;
        if (!p.mask || n == p.batch || !one.packed) {
            places[s].all(one.packed ? n : 0);
        } else {
            const bool same = one.height == p.height && one.width == p.width;
            if (!same) carry(p, one, carried);
            places[s].of(same ? p.mask : carried.data(), n);
        }
        kept.emplace_back(places[s].kept.data(), places[s].n_kept, 0, n, p.threads);
        dropped.emplace_back(places[s].dropped.data(), p.dense ? places[s].n_dropped : 0, 0, n, p.threads);
        if (one.packed) channels = std::max(channels, one.channels);
        if (one.packed && !alike[s]) {
            out[s] = next, next += n * p.wide;
            for (int64_t i = 0; i < kept[s].n; i++) parts.push_back({s, i, true});
            for (int64_t i = 0; i < dropped[s].n; i++) parts.push_back({s, i, false});
        }
    }
    const Places* const found = places;  // other threads have places of their own
    const int64_t lines = p.batch * p.height, count = static_cast<int64_t>(parts.size());
    const int threads = static_cast<int>(std::max<int64_t>(1, std::min(p.threads, std::max(lines, count))));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> scratch(CHUNK * channels);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++) {
            const Part& part = parts[i];
            const Chunks& c = part.kept ? kept[part.scale] : dropped[part.scale];
            const int64_t n = c.length(part.chunk);
            if (n)
                chosen.scale_rows(p, scales[part.scale], c.start(part.chunk), n, part.kept, false, 0, scratch.data(),
                                  out[part.scale]);
        }
        sm::Scale mine[MOST];
        sm::Scales told = p;
        told.scales = mine, told.n = 0;
        for (int64_t s = 0; s < p.n; s++) {
            if (alike[s]) continue;
            sm::Scale& one = mine[told.n++] = scales[s];
            if (one.packed) one.rows = out[s], one.stride = p.wide;
        }
        sm::Scale* sum = nullptr;  // of the features of the output's own size
        for (int64_t s = 0; s < p.n && !sum; s++)
            if (alike[s]) sum = &(mine[told.n++] = scales[s]);
        if (sum) sum->stride = p.wide;
        std::vector<float> buffer(sum ? p.width * p.wide : 0);
#pragma omp for schedule(dynamic, 2)
        for (int64_t line = 0; line < lines; line++) {
            const int64_t from = line * p.width, to = from + p.width;
            bool add = false;
            for (int64_t s = 0; s < p.n; s++) {
                if (!alike[s]) continue;
                const Chunks here(found[s].kept.data(), found[s].n_kept, from, to, 1);
                const Chunks rest(found[s].dropped.data(), p.dense ? found[s].n_dropped : 0, from, to, 1);
                for (int64_t i = 0; i < here.n; i++)
                    chosen.scale_rows(p, scales[s], here.start(i), here.length(i), true, add, from, scratch.data(),
                                      buffer.data());
                for (int64_t i = 0; i < rest.n; i++)
                    chosen.scale_rows(p, scales[s], rest.start(i), rest.length(i), false, add, from, scratch.data(),
                                      buffer.data());
                add = true;
            }
            if (sum) sum->rows = buffer.data(), sum->first = line;
            chosen.scales(told, line);
        }
    }
}

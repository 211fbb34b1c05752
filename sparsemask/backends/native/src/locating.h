// A module's data mask: the lines of locate.h shared among threads, and the transposed convolution's sums. Included by
// kernels.cpp.

// One line of the mask, from the differences of all taps.
static void write_mask(const sm::Locate& p, int64_t y, const float* z, uint8_t* out) {
    constexpr int64_t WIDE = 16;
    const float least = static_cast<float>(p.least);
    const int64_t half = (p.width + 1) / 2, lines = (p.height + 1) / 2;
    if (p.stride == 2) {
        for (int64_t x = 0; x < half; x++) out[x] = z[(y * half + x) * WIDE] > least;
        return;
    }
    // Output 2m reads tap 1 of m, output 2m + 1 tap 2 of m and tap 0 of m + 1; along either axis.
    const int64_t m = y / 2;
    const bool odd = y % 2, under = odd && m + 1 < lines;
    const float* here = z + m * half * WIDE + (odd ? 6 : 3);
    const float* below = z + (m + 1) * half * WIDE;
    for (int64_t x = 0; x < p.width; x++) {
        const int64_t n = x / 2;
        float sum;
        if (x % 2 == 0) {
            sum = here[n * WIDE + 1] + (under ? below[n * WIDE + 1] : 0);
        } else {
            sum = here[n * WIDE + 2] + (under ? below[n * WIDE + 2] : 0);
            if (n + 1 < half) sum += here[(n + 1) * WIDE] + (under ? below[(n + 1) * WIDE] : 0);
        }
        out[x] = sum > least;
    }
}

extern "C" void sm_locate(const sm::Locate* given) {
    const sm::Locate& p = *given;
    constexpr int64_t WIDE = 16;
    static thread_local std::vector<float> memory;
    const int64_t half = (p.width + 1) / 2, lines = (p.height + 1) / 2;
    const int64_t border = (lines + 2) * (half + 2) * WIDE, size = lines * half * WIDE;
    if (static_cast<int64_t>(memory.size()) < border + size) memory.resize(border + size);
    float *hidden = memory.data(), *z = hidden + border;
    const int64_t out_width = p.stride == 2 ? half : p.width, out_lines = p.stride == 2 ? lines : p.height;
    const int threads = static_cast<int>(lines * half >= 256 ? p.threads : 1);
    std::memset(hidden, 0, border * sizeof(float));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> scratch(half * std::max(p.around ? 0 : p.channels, 4 * WIDE));
        for (int64_t b = 0; b < p.batch; b++) {
#pragma omp for schedule(static)
            for (int64_t y = 0; y < lines; y++) chosen.locate_first(p, b, y, scratch.data(), hidden);
#pragma omp for schedule(static)
            for (int64_t y = 0; y < lines; y++) chosen.locate_second(p, y, hidden, scratch.data(), z);
#pragma omp for schedule(static)
            for (int64_t y = 0; y < out_lines; y++) write_mask(p, y, z, p.out + (b * out_lines + y) * out_width);
        }
    }
}

extern "C" void sm_chain(const sm::Link* links, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (links[i].masked) sm_locate(&links[i].locate);
        sm_inverted(&links[i].block);
    }
}

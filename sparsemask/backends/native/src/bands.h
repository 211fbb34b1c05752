// Inverted residuals band by band of their lines: expanded, shared among threads, while it is in the cache; then the
// band's outputs. Included by kernels.cpp.

extern "C" int64_t sm_split(const uint8_t* mask, int64_t n, int32_t* kept, int32_t* dropped, int32_t* compact);

namespace {

// A list's entries of [from, to), in chunks of at most CHUNK that threads can share evenly.
struct Chunks {
    const int32_t* list;
    int64_t first, count, each, n;

    Chunks(const int32_t* list, int64_t size, int64_t from, int64_t to, int64_t threads) : list(list) {
        const int32_t* begin = std::lower_bound(list, list + size, static_cast<int32_t>(from));
        first = begin - list;
        count = std::lower_bound(begin, list + size, static_cast<int32_t>(to)) - begin;
        n = (count + CHUNK - 1) / CHUNK;
        if (n && count >= 6 * threads) n = (n + threads - 1) / threads * threads;
        each = n ? (count + n - 1) / n : 0;
    }
    const int32_t* start(int64_t i) const { return list + first + i * each; }
    int64_t length(int64_t i) const { return std::max<int64_t>(0, std::min(each, count - i * each)); }
};

// Kept and dropped places of a mask, in order.
struct Places {
    std::vector<int32_t> kept, dropped;
    int64_t n_kept = 0, n_dropped = 0;

    void all(int64_t n) {
        if (static_cast<int64_t>(kept.size()) < n) kept.resize(n);
        for (int64_t i = 0; i < n; i++) kept[i] = static_cast<int32_t>(i);
        n_kept = n, n_dropped = 0;
    }
    void of(const uint8_t* mask, int64_t n);
};

}  // namespace

void Places::of(const uint8_t* mask, int64_t n) {
    if (static_cast<int64_t>(kept.size()) < n + 8) kept.resize(n + 8);
    if (static_cast<int64_t>(dropped.size()) < n + 8) dropped.resize(n + 8);
    n_kept = sm_split(mask, n, kept.data(), dropped.data(), nullptr);
    n_dropped = n - n_kept;
}

// A mask on the output grid of a stride-2 module on its input's: every place has that of the output it lies in.
static void spread(const sm::Inverted& p, std::vector<uint8_t>& wide) {
    wide.resize(p.batch * p.height * p.width);
    for (int64_t b = 0; b < p.batch; b++)
        for (int64_t y = 0; y < p.height; y++) {
            const uint8_t* from = p.mask + (b * p.out_height + y / 2) * p.out_width;
            uint8_t* to = wide.data() + (b * p.height + y) * p.width;
            for (int64_t x = 0; x < p.width; x++) to[x] = from[x / 2];
        }
}

namespace {

// What is kept of an inverted residual's input and output.
struct Kept {
    const Places *in, *out;
};

// Items [0, n) by the threads of this team, or by this thread alone.
template <class Item>
void share(bool alone, int64_t n, const Item& item) {
    if (alone) {
        for (int64_t i = 0; i < n; i++) item(i);
    } else {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n; i++) item(i);
    }
}

// Output lines [first, last) of a sample, `lines` at a time; threads meet after every band unless this one is alone.
void strip(const sm::Inverted& p, const Kept& places, const sm::Ring& ring, int64_t b, int64_t first, int64_t last,
           int64_t lines, int64_t threads, bool alone, float* buffer) {
    const int64_t in_place = p.height * p.width, out_place = p.out_height * p.out_width;
    const int64_t team = alone ? 1 : threads;
    int64_t done = std::max<int64_t>(0, p.stride * first - 1);  // lines of the input before this are expanded, or unread
    for (int64_t y = first; y < last; y += lines) {
        const int64_t end = std::min(last, y + lines);
        if (p.expand) {
            const int64_t until = std::min(p.height, p.stride * (end - 1) + 2);
            const int64_t from = b * in_place + done * p.width, to = b * in_place + until * p.width;
            const Chunks kept(places.in->kept.data(), places.in->n_kept, from, to, team);
            const Chunks dropped(places.in->dropped.data(), places.in->n_dropped, from, to, team);
            done = until;
            share(alone, kept.n + dropped.n, [&](int64_t i) {
                const bool keep = i < kept.n;
                const Chunks& c = keep ? kept : dropped;
                const int64_t k = keep ? i : i - kept.n, n = c.length(k);
                if (n) chosen.expand(p, ring, c.start(k), n, keep);
            });
        }
        const int64_t from = b * out_place + y * p.out_width, to = b * out_place + end * p.out_width;
        const Chunks kept(places.out->kept.data(), places.out->n_kept, from, to, team);
        const Chunks dropped(places.out->dropped.data(), places.out->n_dropped, from, to, team);
        share(alone, kept.n + dropped.n, [&](int64_t i) {
            const bool keep = i < kept.n;
            const Chunks& c = keep ? kept : dropped;
            const int64_t k = keep ? i : i - kept.n, n = c.length(k);
            if (n) chosen.contract(p, ring, c.start(k), n, keep, buffer);
        });
    }
}

}  // namespace

extern "C" void sm_inverted(const sm::Inverted* given) {
    constexpr int64_t STRIP = 16;  // lines of a strip that a thread computes alone: two of them are expanded twice
    const sm::Inverted& p = *given;
    // Kept from call to call: fresh pages cost more than they hold.
    static thread_local Places outputs, inputs;
    static thread_local std::vector<uint8_t> wide;
    static thread_local std::vector<float> memory;
    const int64_t in_place = p.height * p.width, out_place = p.out_height * p.out_width;
    if (p.mask)
        outputs.of(p.mask, p.batch * out_place);
    else
        outputs.all(p.batch * out_place);
    const Kept places{p.expand && p.stride == 2 ? &inputs : &outputs, &outputs};
    if (places.in == &inputs) {
        if (p.mask) {
            spread(p, wide);
            inputs.of(wide.data(), p.batch * in_place);
        } else {
            inputs.all(p.batch * in_place);
        }
    }
    const int64_t threads = std::min<int64_t>(p.threads, std::max<int64_t>(1, p.batch * out_place / 6));
    // Large maps: strips, one thread each, so that what it expands stays in its own cache. Small ones: bands together.
    const bool alone = threads == 1 || p.out_height >= STRIP * threads;
    const int64_t strips = alone && threads > 1 ? p.out_height / STRIP : 1;
    int64_t lines = std::max<int64_t>(1, (p.ring / (p.width * p.middle) - 2) / p.stride);  // of outputs in a band
    const int64_t each = (p.out_height + strips - 1) / strips, bands = (each + lines - 1) / lines;
    lines = (each + bands - 1) / bands;
    const int64_t held = p.expand ? std::min(p.height, lines * p.stride + 2) : 0;
    const int64_t size = held * p.width * p.middle;
    const int64_t rings = alone ? threads : 1;
    if (static_cast<int64_t>(memory.size()) < rings * size + threads * CHUNK * p.middle)
        memory.resize(rings * size + threads * CHUNK * p.middle);
    float* const base = memory.data();
#pragma omp parallel num_threads(static_cast<int>(threads)) if (threads > 1)
    {
        const int64_t me = omp_get_thread_num();
        float* buffer = base + rings * size + me * CHUNK * p.middle;
        sm::Ring ring{const_cast<float*>(p.x), p.batch * in_place};
        if (p.expand) ring = {base + (alone ? me : 0) * size, held * p.width};
        if (alone) {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < p.batch * strips; i++) {
                const int64_t first = i % strips * each, last = std::min(p.out_height, first + each);
                if (first < last) strip(p, places, ring, i / strips, first, last, lines, threads, true, buffer);
            }
        } else {
            for (int64_t b = 0; b < p.batch; b++)
                strip(p, places, ring, b, 0, p.out_height, lines, threads, false, buffer);
        }
    }
}

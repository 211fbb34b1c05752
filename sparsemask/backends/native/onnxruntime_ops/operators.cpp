// Operators for ONNX Runtime, domain "sparsemask": the kernels of src/, called by nodes of an ONNX file.
//
// A node has inputs that are computed, how many its attribute "data" says; then its plan, int64; then tensors. A plan is
// what the kernels are told, in words of eight bytes, with tensors' numbers in the place of addresses: first how many
// words are addresses; of each its place among the words, the number of its tensor (or -1: it is of a word of the plan),
// and the number of the float (of the word) that it is of; then the words. Features come and go as rows, channels last.
#include "../src/kernels.cpp"

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "runtime.h"

namespace {

constexpr int64_t PLAN = 4;  // version of the plans, as onnx_plan.py writes them

std::atomic<int64_t> asked_threads{0};

int64_t threads_now() {
    const int64_t asked = asked_threads.load(std::memory_order_relaxed);
    return asked ? asked : omp_get_max_threads();
}

// The inputs and outputs of one call.
class Call {
public:
    using Sizes = std::vector<int64_t>;

    Call(ort::Table table, ort::KernelContext* context, int64_t data) : table(table), context(context), count(data) {
        const int64_t* at = reinterpret_cast<const int64_t*>(input(count));
        const int64_t addresses = *at++;
        const int64_t all = total(count);
        words.assign(at + 3 * addresses, at - 1 + all);
        for (int64_t i = 0; i < addresses; i++, at += 3) {
            const void* address = at[1] < 0 ? reinterpret_cast<const char*>(words.data() + at[2])
                                            : static_cast<const char*>(input(count + 1 + at[1])) + 4 * at[2];
            words[at[0]] = reinterpret_cast<int64_t>(address);
        }
    }

    int64_t data() const { return count; }

    const float* floats(int64_t number) { return static_cast<const float*>(input(number)); }

    const uint8_t* flags(int64_t number) { return static_cast<const uint8_t*>(input(number)); }

    const void* input(int64_t number) { return memory(value(number)); }

    Sizes sizes(int64_t number) {
        ort::Shape* shape = nullptr;
        check(ort::call(table, ort::SHAPE, value(number), &shape));
        size_t n = 0;
        ort::Status* said = ort::call(table, ort::COUNT_DIMENSIONS, static_cast<const ort::Shape*>(shape), &n);
        Sizes found(n);
        if (!said) said = ort::call(table, ort::DIMENSIONS, static_cast<const ort::Shape*>(shape), found.data(), n);
        ort::release(table, ort::RELEASE_SHAPE, shape);
        check(said);
        return found;
    }

    int64_t total(int64_t number) {
        int64_t product = 1;
        for (int64_t size : sizes(number)) product *= size;
        return product;
    }

    void* output(const Sizes& sizes) {
        ort::Value* made = nullptr;
        check(ort::call(table, ort::OUTPUT, context, size_t{0}, sizes.data(), sizes.size(), &made));
        return memory(made);
    }

    // What follows in the plan, as a structure.
    template <typename Struct>
    Struct told() const {
        if ((words.size() - next) * 8 < sizeof(Struct)) throw std::runtime_error("a plan that is cut short");
        Struct made;
        std::memcpy(&made, words.data() + next, sizeof(Struct));
        return made;
    }

    // The plan word by word.
    int64_t word() {
        if (next >= words.size()) throw std::runtime_error("a plan that is cut short");
        return words[next++];
    }
    double number() {
        const int64_t bits = word();
        double made;
        std::memcpy(&made, &bits, sizeof(made));
        return made;
    }
    template <typename T>
    const T* address() {
        return reinterpret_cast<const T*>(word());
    }

private:
    ort::Table table;
    ort::KernelContext* context;
    int64_t count;
    std::vector<int64_t> words;
    size_t next = 0;

    const ort::Value* value(int64_t number) {
        const ort::Value* found = nullptr;
        check(ort::call(table, ort::INPUT, static_cast<const ort::KernelContext*>(context),
                        static_cast<size_t>(number), &found));
        if (!found) throw std::runtime_error("an input is missing");
        return found;
    }

    void* memory(const ort::Value* value) {
        void* found = nullptr;
        check(ort::call(table, ort::DATA, const_cast<ort::Value*>(value), &found));
        return found;
    }

    void check(ort::Status* said) {
        if (!said) return;
        ort::release(table, ort::RELEASE_STATUS, said);
        throw std::runtime_error("ONNX Runtime refused a call");
    }
};

void fits(bool right, const char* what) {
    if (!right) throw std::runtime_error(what);
}

// Blocks, their masks and a decoder's stages

void inverted_residual(Call& call) {
    sm::Inverted p = call.told<sm::Inverted>();
    const auto size = call.sizes(0);
    fits(size.size() == 4 && size[3] == (p.expand || !p.taps ? p.channels : p.middle), "channels do not fit a block");
    p.x = call.floats(0);
    p.batch = size[0], p.height = size[1], p.width = size[2];
    p.out_height = (p.height + p.stride - 1) / p.stride, p.out_width = (p.width + p.stride - 1) / p.stride;
    const int64_t places = p.batch * p.out_height * p.out_width;
    if (call.data() > 1) {
        fits(call.total(1) == places, "a mask does not fit a block");
        p.mask = call.flags(1);
    }
    p.out = static_cast<float*>(call.output({p.batch, p.out_height, p.out_width, p.outputs}));
    p.threads = threads_now();
    if (places) sm_inverted(&p);
}

void predict_mask(Call& call) {
    sm::Locate p = call.told<sm::Locate>();
    const auto size = call.sizes(0);
    fits(size.size() == 4 && size[3] == p.channels, "channels do not fit a mask branch");
    p.x = call.floats(0);
    p.batch = size[0], p.height = size[1], p.width = size[2];
    p.out = static_cast<uint8_t*>(call.output({p.batch, 1, (p.height + p.stride - 1) / p.stride,
                                               (p.width + p.stride - 1) / p.stride}));
    p.threads = threads_now();
    if (p.batch * p.height * p.width > 0) sm_locate(&p);
}

// Data: the features, the output's height and width, and a mask where there is one.
void multiscale_sum(Call& call) {
    sm::Scales p = call.told<sm::Scales>();
    std::vector<sm::Scale> scales(p.scales, p.scales + p.n);
    fits(call.data() >= p.n + 1, "features are missing");
    for (int64_t i = 0; i < p.n; i++) {
        const auto size = call.sizes(i);
        fits(size.size() == 4 && size[3] == scales[i].channels, "channels do not fit a stage");
        scales[i].rows = call.floats(i);
        scales[i].height = size[1], scales[i].width = size[2], scales[i].stride = size[3];
        p.batch = size[0];
    }
    const int64_t* size = static_cast<const int64_t*>(call.input(p.n));
    p.height = size[0], p.width = size[1];
    const int64_t places = p.batch * p.height * p.width;
    if (call.data() > p.n + 1) {
        fits(call.total(p.n + 1) == places, "a mask does not fit a stage");
        p.mask = call.flags(p.n + 1);
    }
    p.scales = scales.data();
    p.out = static_cast<float*>(call.output({p.batch, p.height, p.width, p.columns}));
    p.threads = threads_now();
    if (places) sm_scales(&p);
}

// Convolutions

// A convolution's grid, as in geometry.py.
struct Geometry {
    std::vector<int64_t> kernel, stride, padding, dilation, output_padding;
    int64_t transposed = 0;

    static Geometry of(Call& call) {
        Geometry g;
        const int64_t dims = call.word();
        for (auto* each : {&g.kernel, &g.stride, &g.padding, &g.dilation, &g.output_padding})
            for (int64_t d = 0; d < dims; d++) each->push_back(call.word());
        g.transposed = call.word();
        return g;
    }

    int64_t output(size_t d, int64_t size) const {
        const int64_t reach = dilation[d] * (kernel[d] - 1);
        if (transposed) return (size - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d] + 1;
        return (size + 2 * padding[d] - reach - 1) / stride[d] + 1;
    }

    std::vector<int64_t> key() const {
        std::vector<int64_t> all{transposed};
        for (const auto* each : {&kernel, &stride, &padding, &dilation, &output_padding})
            all.insert(all.end(), each->begin(), each->end());
        return all;
    }
};

// Which rows of the input an output row reads, as grid.py has them. Classes: one, or one for each remainder of a
// transposed convolution's outputs.
struct Tables {
    std::vector<int64_t> spatial;  // of the outputs
    std::vector<int32_t> interior, position;
    std::vector<uint8_t> kind;
    std::vector<std::vector<int64_t>> offsets;
    int64_t pitch = 0;  // of grid.py
    // Where there is a pitch: positions of squares of outputs and all outputs of theirs; the same of outputs in no square.
    std::vector<int32_t> square_pos, square_at, other_pos, other_at;

    Tables(const Geometry& g, int64_t batch, const int64_t* size) {
        const size_t dims = g.kernel.size();
        std::vector<int64_t> extent(dims), pad(dims), steps(dims, 1);
        std::vector<std::vector<int64_t>> at(dims), rest(dims);
        std::vector<std::vector<std::vector<int64_t>>> classes(dims);  // axis, class, tap: offset
        int64_t outputs = batch, places = batch;
        for (size_t d = 0; d < dims; d++) {
            const int64_t n = g.output(d, size[d]), k = g.kernel[d], s = g.stride[d], w = g.dilation[d];
            fits(n >= 1, "a feature is smaller than a kernel");
            spatial.push_back(n), outputs *= n;
            for (int64_t o = 0; o < n; o++) {
                at[d].push_back(g.transposed ? (o + g.padding[d]) / s + (k - 1) * w / s : o * s);
                rest[d].push_back(g.transposed ? (o + g.padding[d]) % s : 0);
            }
            pad[d] = g.transposed ? (k - 1) * w / s : g.padding[d];
            extent[d] = std::max(pad[d] + size[d], g.transposed ? at[d].back() + 1 : (n - 1) * s + (k - 1) * w + 1);
            classes[d].resize(g.transposed ? s : 1);
            for (int64_t c = 0; c < static_cast<int64_t>(classes[d].size()); c++)
                for (int64_t t = 0; t < k; t++) {
                    if (!g.transposed) classes[d][c].push_back(t * w);
                    else if (t * w % s == c) classes[d][c].push_back(-((t * w - c) / s));
                }
            places *= extent[d];
        }
        for (size_t d = dims - 1; d-- > 0;) steps[d] = steps[d + 1] * extent[d + 1];
        bool squares = dims >= 2 && !g.transposed;
        for (size_t d = dims - 2; squares && d < dims; d++)
            squares = g.kernel[d] == 3 && g.stride[d] == 1 && g.dilation[d] == 1;
        if (squares) pitch = extent[dims - 1];
        fits(places < (int64_t{1} << 31), "a feature is too large");
        interior.assign(places, -1);
        position.resize(outputs);
        std::vector<int64_t> i(dims);
        int32_t row = 0;
        for (int64_t b = 0; b < batch; b++) each(size, dims, [&](const std::vector<int64_t>& where) {
            int64_t to = b * steps[0] * extent[0];
            for (size_t d = 0; d < dims; d++) to += (where[d] + pad[d]) * steps[d];
            interior[to] = row++;
        });
        int64_t several = 1;
        for (const auto& own : classes) several *= static_cast<int64_t>(own.size());
        fits(several <= 256, "a stride is too large");
        if (several > 1) kind.resize(outputs);
        int64_t out = 0;
        for (int64_t b = 0; b < batch; b++) each(spatial.data(), dims, [&](const std::vector<int64_t>& where) {
            int64_t to = b * steps[0] * extent[0], number = 0;
            for (size_t d = 0; d < dims; d++) {
                to += at[d][where[d]] * steps[d];
                number = number * static_cast<int64_t>(classes[d].size()) + rest[d][where[d]];
            }
            position[out] = static_cast<int32_t>(to);
            if (several > 1) kind[out] = static_cast<uint8_t>(number);
            out++;
        });
        for (int64_t number = 0; number < several; number++) {
            std::vector<int64_t> found{0};
            int64_t left = number, span = several;
            for (size_t d = 0; d < dims; d++) {
                span /= static_cast<int64_t>(classes[d].size());
                const auto& taps = classes[d][left / span];
                left %= span;
                std::vector<int64_t> more;
                for (int64_t before : found)
                    for (int64_t tap : taps) more.push_back(before + tap * steps[d]);
                found = more;
            }
            offsets.push_back(found);
        }
        if (!pitch) return;
        square_at.resize(outputs), other_at.resize(outputs);
        const int64_t count = sm_squares(position.data(), outputs, pitch, square_at.data(), other_at.data());
        square_at.resize(4 * count), other_at.resize(outputs - 4 * count);
        for (int64_t i = 0; i < count; i++) square_pos.push_back(position[square_at[4 * i]]);
        for (int32_t one : other_at) other_pos.push_back(position[one]);
    }

    template <typename Function>
    static void each(const int64_t* size, size_t dims, const Function& function) {
        std::vector<int64_t> where(dims, 0);
        for (size_t d = 0; d < dims; d++)
            if (!size[d]) return;
        for (;;) {
            function(where);
            size_t d = dims;
            while (d > 0 && ++where[d - 1] == size[d - 1]) where[--d] = 0;
            if (!d) return;
        }
    }
};

// Tables of the last sizes, of all nodes.
std::shared_ptr<const Tables> tables_of(const Geometry& g, int64_t batch, const int64_t* size) {
    constexpr size_t MOST = 64;
    using Key = std::vector<int64_t>;
    static std::mutex lock;
    static std::map<Key, std::shared_ptr<const Tables>> known;
    static std::list<Key> order;
    Key key = g.key();
    key.push_back(batch);
    key.insert(key.end(), size, size + g.kernel.size());
    const std::lock_guard<std::mutex> held(lock);
    auto& found = known[key];
    if (!found) {
        order.push_back(key);
        found = std::make_shared<const Tables>(g, batch, size);
        if (order.size() > MOST) known.erase(order.front()), order.pop_front();
        return known[key];
    }
    return found;
}

// Kept and dropped places of a mask, and where a place stands among the kept; room for eight entries more.
struct Split {
    std::vector<int32_t> kept, dropped, compact;
    int64_t n_kept = 0, n_dropped = 0;

    Split(const uint8_t* mask, int64_t n, bool compacted) : kept(n + 8), dropped(n + 8), compact(compacted ? n : 0) {
        n_kept = sm_split(mask, n, kept.data(), dropped.data(), compacted ? compact.data() : nullptr);
        n_dropped = n - n_kept;
    }
};

std::vector<int32_t> lookup(const int32_t* index, int64_t n, const std::vector<int32_t>& values) {
    std::vector<int32_t> out(n);
    sm_lookup(index, n, values.data(), out.data());
    return out;
}

// Weights of a convolution, split and packed: Product in conv.py.
struct Weights {
    int64_t groups, depth, columns, depthwise, narrow, clear, group;
    const int32_t* places;
    const float* bias;
    const float* squared;  // or null
    std::vector<const float*> packed;  // class by class, group by group

    static Weights of(Call& call, size_t classes) {
        Weights w;
        w.groups = call.word(), w.depth = call.word(), w.columns = call.word(), w.depthwise = call.word();
        w.narrow = call.word(), w.clear = call.word(), w.group = call.word();
        w.places = call.address<int32_t>(), w.bias = call.address<float>(), w.squared = call.address<float>();
        for (size_t i = 0; i < classes * static_cast<size_t>(w.groups); i++) w.packed.push_back(call.address<float>());
        return w;
    }
};

// Rows that products read: of `count` locations, `stride` floats apart, found by a map (see Segment).
struct Source {
    const float* rows;
    int64_t stride, count;
    const int32_t* map;
};

// Outputs of one class: where they stand on the padded grid, and their rows, or null: the first ones in order.
struct Outputs {
    int64_t n;
    const int32_t *pos, *at;
};

// Which of some outputs are squares, four of each, and which are in none: sm_squares.
struct Squares {
    int64_t count;
    const int32_t *found, *rest;
};

// Products that run together, with what they point to.
class Products {
public:
    // slopes: of the activation, one for every column, or null.
    Products(int64_t activation, double slope, const float* slopes = nullptr)
        : activation(activation), slope(slope), slopes(slopes), threads(threads_now()) {}

    // The outputs `listed` from rows (count, stride) into their rows of out.
    void add(const Weights& w, const float* rows, int64_t stride, int64_t count, const Tables& tables,
             const int32_t* listed, int64_t n, float* out, int64_t out_stride) {
        if (!n) return;
        const size_t classes = tables.offsets.size();
        const int32_t* values = listed;
        std::vector<int64_t> starts{0, n};
        int32_t* pos = room(n);
        if (classes > 1) {
            int32_t* sorted = room(n);
            starts.resize(classes + 1);
            sm_partition(listed, n, tables.kind.data(), static_cast<int64_t>(classes), tables.position.data(),
                         starts.data(), sorted, pos);
            values = sorted;
        } else {
            sm_lookup(listed, n, tables.position.data(), pos);
        }
        const Source from{rows, stride, count, tables.interior.data()};
        if (w.squared && tables.pitch) {
            int32_t *found = room(n), *rest = room(n);
            const int64_t squares = sm_squares(pos, n, tables.pitch, found, rest);
            return add(w, from, tables, {n, pos, values}, Squares{squares, found, rest}, out, out_stride);
        }
        for (size_t c = 0; c < classes; c++)
            add(w, c, from, tables.offsets[c], {starts[c + 1] - starts[c], pos + starts[c], values + starts[c]}, out,
                out_stride);
    }

    // Outputs whose squares are known, by weights that have them.
    void add(const Weights& w, const Source& from, const Tables& tables, const Outputs& outputs, const Squares& squares,
             float* out, int64_t out_stride) {
        const int64_t left = outputs.n - 4 * squares.count;
        int32_t *first = room(squares.count), *rest = room(left);
        for (int64_t i = 0; i < squares.count; i++) first[i] = outputs.pos[squares.found[4 * i]];
        sm_lookup(squares.rest, left, outputs.pos, rest);
        const int32_t *found_at = squares.found, *rest_at = squares.rest;
        if (outputs.at) {
            int32_t *one = room(4 * squares.count), *other = room(left);
            sm_lookup(found_at, 4 * squares.count, outputs.at, one);
            sm_lookup(rest_at, left, outputs.at, other);
            found_at = one, rest_at = other;
        }
        if (squares.count) {
            sm::Product p = product(w, from, tables.offsets[0], 0, out, out_stride, sm::TAPS);
            p.rows = squares.count, p.pos = first, p.at0 = found_at;
            p.packed = w.squared, p.pitch = tables.pitch;
            listing.push_back(p);
        }
        add(w, 0, from, tables.offsets[0], {left, rest, rest_at}, out, out_stride);
    }

    // Outputs of one class.
    void add(const Weights& w, size_t number, const Source& from, const std::vector<int64_t>& offsets,
             const Outputs& outputs, float* out, int64_t out_stride) {
        if (!outputs.n) return;
        for (int64_t g = 0; g < w.groups; g++) {
            sm::Product p = product(w, from, offsets, g, out, out_stride, 1);
            p.rows = outputs.n, p.pos = outputs.pos, p.at0 = outputs.at;
            p.packed = w.packed[number * w.groups + g], p.group = w.group;
            p.narrow = w.narrow ? (from.count * from.stride < (1 << 18) ? 1 : 2) : 0;
            p.clear = w.clear, p.places = w.places;
            if (w.depthwise) sm_depthwise(&p);
            else listing.push_back(p);
        }
    }

    void run() {
        if (!listing.empty()) sm_products(listing.data(), static_cast<int64_t>(listing.size()));
    }

private:
    int32_t* room(int64_t n) {
        held.emplace_back(n);
        return held.back().data();
    }

    // A product of group g, of every so many taps, without its rows, places and weights.
    sm::Product product(const Weights& w, const Source& from, const std::vector<int64_t>& offsets, int64_t g, float* out,
                        int64_t out_stride, size_t every) {
        const int64_t wide = w.columns / w.groups, deep = w.depthwise ? w.columns : w.depth;
        segments.emplace_back();
        for (size_t t = 0; t < offsets.size(); t += every)
            segments.back().push_back({from.rows + g * deep, from.map, from.stride, offsets[t], deep});
        sm::Product p = {};
        p.n_segments = static_cast<int64_t>(segments.back().size());
        p.segments = segments.back().data();
        p.depth = p.n_segments * deep;
        p.columns = p.split = wide;
        p.bias = w.bias ? w.bias + g * wide : nullptr;
        p.activation = activation, p.slope = slope, p.slopes = slopes ? slopes + g * wide : nullptr;
        p.out0 = out + g * wide, p.stride0 = out_stride;
        p.threads = threads;
        return p;
    }

    int64_t activation;
    double slope;
    const float* slopes;
    int64_t threads;
    std::list<std::vector<int32_t>> held;
    std::list<std::vector<sm::Segment>> segments;
    std::vector<sm::Product> listing;
};

// A sparse mask convolution; conv.py says what each case is for. Data: rows (N, ..., C), the mask on the outputs.
void conv(Call& call) {
    const Geometry g = Geometry::of(call);
    const int64_t activation = call.word();
    const double slope = call.number();
    const int64_t outs = call.word();
    const auto size = call.sizes(0);
    const size_t dims = g.kernel.size();
    fits(size.size() == dims + 2, "a feature of other dimensions than its convolution");
    const auto tables = tables_of(g, size[0], size.data() + 1);
    const Weights full = Weights::of(call, tables->offsets.size());
    const bool some = call.word() != 0, first = call.word() != 0;
    const int64_t n_ins = call.word();
    const int32_t* ins = call.address<int32_t>();
    const int64_t n_outs = call.word();
    const int32_t* out_places = call.address<int32_t>();
    const int64_t channels = size.back(), outputs = static_cast<int64_t>(tables->position.size());
    fits(channels == (full.depthwise ? full.columns : full.depth * full.groups), "channels do not fit a convolution");
    fits(call.total(1) == outputs, "a mask does not fit a convolution");
    int64_t rows = size[0];
    for (size_t d = 0; d < dims; d++) rows *= size[d + 1];
    const float* x = call.floats(0);
    Call::Sizes shape{size[0]};
    shape.insert(shape.end(), tables->spatial.begin(), tables->spatial.end());
    shape.push_back(outs);
    float* out = static_cast<float*>(call.output(shape));
    const Split split(call.flags(1), outputs, false);
    const int64_t threads = threads_now();
    Products products(activation, slope);
    products.add(full, x, channels, rows, *tables, split.kept.data(), split.n_kept, out, outs);
    static thread_local std::vector<float> read, values;
    if (!some) {
        sm_fill(out, outs, outs, split.dropped.data(), split.n_dropped, nullptr, nullptr, 0, threads);
        products.run();
        return;
    }
    const Weights dense = Weights::of(call, tables->offsets.size());
    const float* from = x;
    int64_t stride = channels;
    if (ins && split.n_dropped) {
        if (static_cast<int64_t>(read.size()) < rows * n_ins) read.resize(rows * n_ins);
        sm_narrow(x, channels, rows, ins, n_ins, read.data(), threads);
        from = read.data(), stride = n_ins;
    }
    if (!out_places || dense.narrow) {
        if (first && !dense.narrow)
            sm_fill(out + dense.columns, outs, outs - dense.columns, split.dropped.data(), split.n_dropped, nullptr,
                    nullptr, 0, threads);
        products.add(dense, from, stride, rows, *tables, split.dropped.data(), split.n_dropped, out, outs);
        products.run();
        return;
    }
    if (static_cast<int64_t>(values.size()) < outputs * n_outs) values.resize(outputs * n_outs);
    products.add(dense, from, stride, rows, *tables, split.dropped.data(), split.n_dropped, values.data(), n_outs);
    products.run();
    sm_fill(out, outs, outs, split.dropped.data(), split.n_dropped, values.data(), out_places, n_outs, threads);
}

// Chains at kept locations, see kept.py. Kept rows are (1, K, 1, C).

// Of a mask (N, 1, H, W), under a geometry: at every position of the padded grid the number among the kept, or -1; where the
// K kept locations stand on it; which of them are squares, and the others, K in all; how many squares there are.
void kept_tables(Call& call) {
    const Geometry g = Geometry::of(call);
    const auto size = call.sizes(0);
    fits(size.size() == 4 && size[1] == 1, "a mask is (N, 1, H, W)");
    const auto tables = tables_of(g, size[0], size.data() + 2);
    const int64_t padded = static_cast<int64_t>(tables->interior.size());
    const Split split(call.flags(0), call.total(0), true);
    const int64_t n = split.n_kept;
    int32_t* out = static_cast<int32_t*>(call.output({padded + 2 * n + 1}));
    int32_t *pos = out + padded, *found = pos + n;
    sm_lookup(tables->interior.data(), padded, split.compact.data(), out);
    sm_lookup(split.kept.data(), n, tables->position.data(), pos);
    std::vector<int32_t> rest(n);
    const int64_t squares = tables->pitch ? sm_squares(pos, n, tables->pitch, found, rest.data()) : 0;
    std::copy(rest.begin(), rest.begin() + (n - 4 * squares), found + 4 * squares);
    found[n] = static_cast<int32_t>(squares);
}

// A convolution at kept locations. Data: rows (N, H, W, C) or kept rows, the mask, its tables.
void kept_conv(Call& call) {
    const Geometry g = Geometry::of(call);
    const int64_t activation = call.word();
    const double slope = call.number();
    const bool kept = call.word() != 0;
    const float* slopes = call.address<float>();
    const Weights w = Weights::of(call, 1);
    const auto from = call.sizes(0), size = call.sizes(1);
    fits(size.size() == 4, "a mask is (N, 1, H, W)");
    const auto tables = tables_of(g, size[0], size.data() + 2);
    const int64_t padded = static_cast<int64_t>(tables->interior.size()), n = (call.total(2) - padded - 1) / 2;
    const int64_t channels = w.depthwise ? w.columns : w.depth * w.groups;
    const Call::Sizes rows{1, n, 1, channels}, whole{size[0], size[2], size[3], channels};
    fits(n >= 0 && from == (kept ? rows : whole), "features do not fit a convolution at kept locations");
    const int32_t* told = static_cast<const int32_t*>(call.input(2));
    float* out = static_cast<float*>(call.output({1, n, 1, w.columns}));
    Products products(activation, slope, slopes);
    const Source source{call.floats(0), channels, call.total(0) / channels, kept ? told : tables->interior.data()};
    const Outputs outputs{n, told + padded, nullptr};
    const int32_t* found = told + padded + n;
    if (w.squared)
        products.add(w, source, *tables, outputs, Squares{found[n], found, found + 4 * found[n]}, out, w.columns);
    else
        products.add(w, 0, source, tables->offsets[0], outputs, out, w.columns);
    products.run();
}

// Kept rows in their places, a 1x1 convolution of others elsewhere. Data: the kept rows, rows (N, H, W, C), the mask.
void merge_kept(Call& call) {
    const Weights w = Weights::of(call, 1);
    const auto size = call.sizes(1);
    const int64_t channels = w.depthwise ? w.columns : w.depth * w.groups, places = call.total(2);
    fits(size.size() == 4 && size[3] == channels && call.total(1) == places * channels, "features do not fit a mask");
    const Split split(call.flags(2), places, false);
    fits(call.sizes(0) == Call::Sizes({1, split.n_kept, 1, w.columns}), "kept features do not fit a mask");
    const float* y = call.floats(0);
    const int64_t columns = w.columns, threads = threads_now();
    float* out = static_cast<float*>(call.output({size[0], size[1], size[2], columns}));
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < split.n_kept; i++)
        std::memcpy(out + split.kept[i] * columns, y + i * columns, columns * sizeof(float));
    Products products(0, 0);
    const Source source{call.floats(1), channels, places, nullptr};
    const int32_t* dropped = split.dropped.data();
    products.add(w, 0, source, {0}, {split.n_dropped, dropped, dropped}, out, columns);
    products.run();
}

// A convolution over several features, nothing masked. Data: the features, and an addend where there is one.
void joined_conv(Call& call) {
    const Geometry g = Geometry::of(call);
    const int64_t activation = call.word();
    const double slope = call.number();
    const int64_t n = call.word(), outs = call.word();
    const int64_t group = call.word();
    const float *packed = call.address<float>(), *squared = call.address<float>();
    const float *bias = call.address<float>(), *slopes = call.address<float>();
    const auto size = call.sizes(0);
    fits(size.size() == g.kernel.size() + 2, "a feature of other dimensions than its convolution");
    const auto tables = tables_of(g, size[0], size.data() + 1);
    std::vector<std::pair<const float*, int64_t>> features;
    for (int64_t i = 0; i < n; i++) features.emplace_back(call.floats(i), call.sizes(i).back());
    auto shape = size;
    shape.back() = outs;
    float* out = static_cast<float*>(call.output(shape));
    std::list<std::vector<sm::Segment>> segments;
    std::vector<sm::Product> products;
    // Outputs at pos into the rows `at`, by every so many taps.
    const auto add = [&](const std::vector<int32_t>& pos, const int32_t* at, const float* weights, size_t every) {
        segments.emplace_back();
        sm::Product p = {};
        for (size_t t = 0; t < tables->offsets[0].size(); t += every)
            for (const auto& [rows, channels] : features) {
                segments.back().push_back({rows, tables->interior.data(), channels, tables->offsets[0][t], channels});
                p.depth += channels;
            }
        p.rows = static_cast<int64_t>(pos.size());
        p.pos = pos.data();
        p.n_segments = static_cast<int64_t>(segments.back().size()), p.segments = segments.back().data();
        p.columns = p.split = p.stride0 = outs;
        p.packed = weights, p.bias = bias;
        p.activation = activation, p.slope = slope, p.slopes = slopes;
        if (every == 1) p.group = group;
        else p.pitch = tables->pitch;
        p.out0 = out, p.at0 = at;
        if (call.data() > n) p.add = call.floats(n), p.add_stride = outs;
        p.threads = threads_now();
        if (p.rows) products.push_back(p);
    };
    if (squared && tables->pitch) {
        add(tables->square_pos, tables->square_at.data(), squared, sm::TAPS);
        add(tables->other_pos, tables->other_at.data(), packed, 1);
    } else {
        add(tables->position, nullptr, packed, 1);
    }
    if (!products.empty()) sm_products(products.data(), static_cast<int64_t>(products.size()));
}

// A module. Data: rows, the mask.
void block(Call& call) {
    static thread_local Arena arena;
    const Geometry geometry = Geometry::of(call);
    sm::Module m = call.told<sm::Module>();
    auto size = call.sizes(0);
    fits(size.size() == geometry.kernel.size() + 2 && size.back() == m.channels, "a feature does not fit its module");
    m.count = 1;
    for (size_t d = 1; d + 1 < size.size(); d++) m.count *= size[d];
    fits(call.total(1) == size[0] * m.count, "a mask does not fit a module");
    const float* x = call.floats(0);
    const uint8_t* mask = call.flags(1);
    auto shape = size;
    shape.back() = m.columns;
    m.out = static_cast<float*>(call.output(shape));
    if (!size[0] || !m.count) return;
    const auto tables = tables_of(geometry, 1, size.data() + 1);
    const auto& taps = tables->offsets[0];
    m.n_taps = static_cast<int64_t>(taps.size()), m.offsets = taps.data();
    m.interior = tables->interior.data(), m.pitch = tables->pitch;
    m.threads = threads_now();
    for (int64_t b = 0; b < size[0]; b++, m.out += m.count * m.columns) {
        arena.reset();
        const Split split(mask + b * m.count, m.count, true);
        const auto compact = lookup(m.interior, static_cast<int64_t>(tables->interior.size()), split.compact);
        const auto at_kept = lookup(split.kept.data(), split.n_kept, tables->position);
        const auto at_dropped = lookup(split.dropped.data(), split.n_dropped, tables->position);
        m.x = x + b * m.count * m.channels;
        m.n_kept = split.n_kept, m.n_dropped = split.n_dropped;
        m.kept = split.kept.data(), m.dropped = split.dropped.data();
        m.at_kept = at_kept.data(), m.at_dropped = at_dropped.data(), m.compact = compact.data();
        m.memory = arena.take<float>(m.count * m.everywhere + m.n_kept * (m.whole - m.everywhere) + 32 * m.n_layers);
        sm_module(&m);
    }
}

// Stereo and points

// Data: left and right (N, H, W, channels of a place in a group's order); out (N, levels, H, W, groups).
void correlation_volume(Call& call) {
    const int64_t levels = call.word(), groups = call.word();
    const auto size = call.sizes(0);
    fits(size.size() == 4 && size[3] % groups == 0 && call.total(1) == call.total(0), "features do not fit each other");
    const float *left = call.floats(0), *right = call.floats(1);
    float* out = static_cast<float*>(call.output({size[0], levels, size[1], size[2], groups}));
    const int64_t step = size[1] * size[2] * size[3], made = levels * size[1] * size[2] * groups;
    for (int64_t b = 0; b < size[0]; b++)
        sm_correlation(left + b * step, right + b * step, levels, size[1], size[2], groups, size[3] / groups,
                       out + b * made, threads_now());
}

// Data: rows (B·N, d_in), xyz (B·N, 3), neighbours (B, N_l, K) of every level, upsample (B, N_l) of all but the last.
void point_network(Call& call) {
    sm::PointNetwork p = call.told<sm::PointNetwork>();
    const int64_t count = p.n_levels;
    fits(call.data() == 2 + count + count - 1, "a crop of other levels than the network");
    std::vector<sm::PointLevel> levels(p.levels, p.levels + count);
    std::vector<uint8_t> mask;
    const auto size = call.sizes(0);
    fits(size.size() == 2 && size[1] == p.ins, "points of other channels than the network");
    int64_t points = 0;
    for (int64_t n = 0; n < count; n++) {
        const auto near = call.sizes(2 + n);
        fits(near.size() == 3, "neighbours are (B, N, K)");
        levels[n].points = near[1];
        levels[n].neighbours = static_cast<const int32_t*>(call.input(2 + n));
        p.batch = near[0], p.k = near[2];
        points += near[0] * near[1];
        // Of the coarser level; the inputs come coarse to fine.
        levels[n].upsample =
            n + 1 < count ? static_cast<const int32_t*>(call.input(2 + count + (count - 2 - n))) : nullptr;
    }
    fits(size[0] == p.batch * levels[0].points, "points without neighbours");
    mask.resize(points);
    uint8_t* at = mask.data();
    for (auto& level : levels) level.mask = at, at += p.batch * level.points;
    p.rows = call.floats(0), p.xyz = call.floats(1);
    p.levels = levels.data();
    p.out = static_cast<float*>(call.output({size[0], p.classes}));
    p.threads = threads_now();
    sm_point_network(&p);
}

// The operators

struct Kind : ort::Operator {
    const char* called;
    void (*run)(Call&);
    ort::Type gives;
};

struct Kernel {
    ort::Table table;
    const Kind* kind;
    int64_t data;
};

ort::Status* create(const ort::Operator* given, ort::Table table, const ort::KernelInfo* info, void** made) {
    int64_t data = 0, version = 0;
    for (auto [name, to] : {std::pair{"data", &data}, {"version", &version}})
        if (ort::Status* said = ort::call(table, ort::INTEGER_ATTRIBUTE, info, name, to)) return said;
    if (version != PLAN)
        return ort::failure(table, "this file and this library of sparsemask's operators are of different versions: "
                                   "export the network again");
    *made = new Kernel{table, static_cast<const Kind*>(given), data};
    return nullptr;
}

ort::Status* compute(void* given, ort::KernelContext* context) {
    const Kernel& kernel = *static_cast<const Kernel*>(given);
    try {
        Call call(kernel.table, context, kernel.data);
        kernel.kind->run(call);
        return nullptr;
    } catch (const std::exception& error) {
        return ort::failure(kernel.table, (std::string(kernel.kind->called) + ": " + error.what()).c_str());
    }
}

Kind kind(const char* name, void (*run)(Call&), ort::Type gives = ort::FLOAT) {
    Kind made{};
    made.version = ort::VERSION;
    made.name = [](const ort::Operator* self) { return static_cast<const Kind*>(self)->called; };
    made.provider = [](const ort::Operator*) -> const char* { return nullptr; };
    made.input_type = [](const ort::Operator*, size_t) { return ort::ANY; };
    made.input_count = made.output_count = [](const ort::Operator*) { return size_t{1}; };
    made.output_type = [](const ort::Operator* self, size_t) { return static_cast<const Kind*>(self)->gives; };
    made.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    made.input_characteristic = [](const ort::Operator*, size_t) { return ort::VARIADIC; };
    made.output_characteristic = [](const ort::Operator*, size_t) { return ort::REQUIRED; };
    made.input_memory = [](const ort::Operator*, size_t) { return 0; };
    made.fewest_inputs = made.fewest_outputs = made.outputs_alike = [](const ort::Operator*) { return 1; };
    made.inputs_alike = [](const ort::Operator*) { return 0; };
    made.create = create;
    made.compute = compute;
    made.called = name;
    made.run = run;
    made.gives = gives;
    return made;
}

}  // namespace

extern "C" {

// Threads of the operators in this process; 0: as many as OpenMP takes ($OMP_NUM_THREADS).
void sparsemask_threads(int64_t threads) { asked_threads = threads; }

ort::Status* RegisterCustomOps(ort::Options* options, const ort::Base* base) {
    static Kind kinds[] = {
        kind("InvertedResidual", inverted_residual),
        kind("PredictMask", predict_mask, ort::BOOL),
        kind("MultiscaleSum", multiscale_sum),
        kind("Conv", conv),
        kind("KeptTables", kept_tables, ort::INT32),
        kind("KeptConv", kept_conv),
        kind("MergeKept", merge_kept),
        kind("JoinedConv", joined_conv),
        kind("Block", block),
        kind("CorrelationVolume", correlation_volume),
        kind("PointNetwork", point_network),
    };
    static std::mutex lock;
    static ort::Domain* domain = nullptr;  // lives as long as the library: sessions may use it until the end
    const ort::Table table = base->table(ort::VERSION);
    if (!table) {
        const ort::Table oldest = base->table(1);
        return oldest ? ort::failure(oldest, "sparsemask's operators need ONNX Runtime 1.16 or newer") : nullptr;
    }
    const std::lock_guard<std::mutex> held(lock);
    if (!domain) {
        ort::Domain* made = nullptr;
        if (ort::Status* said = ort::call(table, ort::CREATE_DOMAIN, "sparsemask", &made)) return said;
        for (Kind& one : kinds)
            if (ort::Status* said = ort::call(table, ort::ADD_OPERATOR, made, static_cast<const ort::Operator*>(&one)))
                return said;
        domain = made;
    }
    return ort::call(table, ort::ADD_DOMAIN, options, domain);
}

}  // extern "C"

// What the kernels are told: plain structs, the same in library.py.
#pragma once
#include <cstdint>

// Compilers, and their assemblers, that know x86's instructions for bfloat16 (AMX, AVX512-BF16).
#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<amxtileintrin.h>)
#define SM_AMX
#endif
#endif

namespace sm {

// A stretch of input channels that every output row reads from one row of a buffer. The row of output r is
// map[pos[r] + offset] (or pos[r] + offset without a map); below zero it is a row of zeros. A map counts: the entries that
// are not below zero follow each other, so that a stretch as long as its rows has no gap.
struct Segment {
    const float* base;
    const int32_t* map;
    int64_t stride;  // floats from row to row
    int64_t offset;
    int64_t length;  // channels
};

// Rows of outputs: out[r, :] = act(sum over segments of row . weights + bias + add[r, :]).
struct Product {
    int64_t rows;
    const int32_t* pos;
    int64_t n_segments;
    const Segment* segments;
    int64_t depth;    // sum of the segments' lengths
    int64_t columns;  // outputs of a row
    const float* packed;
    const float* bias;  // or null
    int64_t activation;  // 0 none, 1 relu, 2 leaky relu with `slope`, 3 relu6
    double slope;
    // Columns [0, split) of row r go to row at0[r] (or r) of out0, the rest to row at1[r] (or r) of out1.
    int64_t split;
    float* out0;
    const int32_t* at0;
    int64_t stride0;
    float* out1;
    const int32_t* at1;
    int64_t stride1;
    const float* add;  // or null: row at0[r] (or r), or what add_map says of it, all columns
    int64_t add_stride;
    const int32_t* add_map;
    double* sums;  // or null: (threads, columns), to which the outputs are added
    int64_t threads;
    // Not 0: few outputs, computed as inner products (see narrow.h), and the row's columns up to `clear` are zeroed.
    // 2: rows are fetched ahead, for buffers that no near cache holds.
    int64_t narrow;
    int64_t clear;
    const int32_t* places;  // where in the row they go, in rising order, or null: the first columns
    const float* slopes;    // or null: of activation 2, one for every column in place of `slope`
    // Not 0: 2 or 4 steps of the depth are taken at a time, for at most 48 / group columns (see sm_pack_groups and rows.h);
    // all segments' lengths are multiples of it.
    int64_t group;
    // Not 0: every row is a square of 2x2 outputs of a 3x3 convolution of stride 1, the positions of whose lines are so far
    // apart, see squares.h. pos: of the upper left ones; segments: what these read by their first tap; packed: (16, depth,
    // columns), transformed; the outputs of row r, upper ones first, are rows 4 r to 4 r + 3 of at0 and at1, which are given.
    int64_t pitch;
};

// A segment of rows of numbers of two bytes (bfloat16) or one (int8: in rows 0 to 255, in weights -127 to 127). Rows begin at
// multiples of 64 bytes; `length` is as many numbers as some times 64 bytes have, and what rows have beyond their channels,
// up to it, is finite.
template <class Number>
struct PackedSegment {
    const Number* base;
    const int32_t* map;
    int64_t stride;  // numbers from row to row
    int64_t offset;
    int64_t length;
    int64_t channels;  // at most `length`; weights of the rest are zeros
};

// A product of rows in bfloat16, summed in float32, or in int8, summed in int32, see tiles.h and dots.h: row at[r] (or r) of out =
// act((sum over segments of row . weights - shift) * scales + bias + row at[r] (or r) of add), rounded to bfloat16 or int8.
template <class Number>
struct PackedProduct {
    int64_t rows;
    const int32_t* pos;
    int64_t n_segments;
    const PackedSegment<Number>* segments;
    int64_t columns;
    const Number* packed;  // sm_pack_tiles of (sum of the segments' lengths, columns)
    const float* bias;     // or null: whole vectors of 16, the last ones' rest zeros
    int64_t activation;    // as a Product has it
    double slope;
    void* out;  // behind its columns those up to `clear` are zero
    const int32_t* at;
    int64_t stride;
    int64_t clear;
    const uint16_t* add;  // or null
    int64_t add_stride;
    double* sums;  // or null: (threads, columns), to which the outputs are added
    int64_t threads;
    const int32_t* places;  // where in the row the outputs go, all else up to `clear` zeroed, or null: the first columns
    // In int8:
    const float* scales;   // as bias
    const int32_t* shift;  // or null; as bias: what sums have too much of the number that stands for 0
    int64_t zero;          // this number in the rows that are read, also where there is no row
    double steps;         // not 0: out is in int8, a value v is v * steps + out_zero there
    int64_t out_zero;
};

using TileSegment = PackedSegment<uint16_t>;
using TileProduct = PackedProduct<uint16_t>;
using ByteSegment = PackedSegment<uint8_t>;
using ByteProduct = PackedProduct<uint8_t>;

// One point convolution after its 1x1 part, see points.h. Rows are points; `columns` channels each.
struct Points {
    int64_t rows;
    const int32_t* points;  // the points that are computed, or null: all
    int64_t k;
    const int32_t* neighbours;  // (points, k), column 0 the point itself
    const uint8_t* bins;        // (points, k), rows of the table
    const float* g;
    int64_t stride;
    const int32_t* map;  // row of g that holds a point, or null: its own
    const float* xyz;    // (points, 3)
    const float* rel;    // (3, rel_stride)
    int64_t rel_stride;
    const float* table;
    int64_t table_stride;
    const float* bias;  // or null
    int64_t relu;
    int64_t columns;
    // Columns [0, split) go to row i of out0 for point i, the rest of the r-th output to row r of out1, or nowhere.
    int64_t split;
    float* out0;
    int64_t stride0;
    float* out1;
    int64_t stride1;
    int64_t threads;
};

// The cells of a kernel's cube that neighbours lie in.
struct PointBins {
    int64_t rows;
    int64_t k;
    const float* xyz;
    const int32_t* neighbours;
    double radius;
    int64_t size;
    int64_t nearest;
    uint8_t* bins;
    int64_t threads;
};

// Its gradients; all rows are `columns` apart.
struct PointGrads {
    int64_t rows;
    int64_t k;
    const int32_t* neighbours;
    const uint8_t* bins;
    const int64_t* offsets;  // (points + 1): who reads a point as a neighbour, in `readers` with the bin it does so in
    const int32_t* readers;
    const uint8_t* reader_bins;
    const float* g;
    const float* xyz;
    const float* rel;
    const float* table;
    const float* grad;
    int64_t columns;
    int64_t bins_count;
    float* to_g;
    float* to_table;  // (threads, bins_count, columns), zeros
    int64_t threads;
};

// Features of several sizes summed at one, see scales.h.
struct Scale {
    const float* rows;  // (batch, height, width), `stride` floats apart
    // Or a feature of `channels` that a 1x1 convolution goes before, at places that a kept one reads.
    const float* packed;        // (channels, wide), or null: the rows, of so many floats, are what is summed
    const float* packed_dense;  // (channels, wide_dense)
    int64_t stride;
    int64_t height;
    int64_t width;
    int64_t channels;
    int64_t cut;  // relu6 of it is read
    int64_t first;  // the line of (batch, height) that rows begins with
};

struct Scales {
    int64_t batch;
    int64_t height;
    int64_t width;
    int64_t columns;
    int64_t n;
    const Scale* scales;
    const float* bias;    // (wide)
    const uint8_t* mask;  // (batch, height, width), or null: all places are kept
    int64_t dense;        // columns of dropped places
    float* out;           // (batch, height, width, columns)
    int64_t threads;
    int64_t wide;        // columns that a feature's convolution has, and dense ones: whole vectors, the last ones zeros
    int64_t wide_dense;
};

// An inverted residual under one data mask, see inverted.h and bands.h. Rows are places, channels contiguous. Middle
// channels come in the order: dense before the depth-wise convolution only, before and after it, after it only, neither.
struct Inverted {
    int64_t batch;
    int64_t height;
    int64_t width;
    int64_t out_height;
    int64_t out_width;
    int64_t stride;
    const float* x;  // (batch, height, width, channels)
    int64_t channels;
    const uint8_t* mask;  // (batch, out_height, out_width), or null: everything is kept
    int64_t middle;       // all of them
    int64_t only_before;
    int64_t both;
    int64_t only_after;
    const float* expand;  // packed (channels, middle), or null: the depth-wise reads x
    const float* expand_bias;
    const float* expand_dense;  // packed (channels, only_before + both)
    const float* taps;          // (9, middle), or null: nothing but the projection, of x
    const float* taps_bias;
    const float* project;  // packed (middle, outputs)
    const float* project_bias;
    const float* project_dense;  // packed (both + only_after, outputs), or null: dropped places have none
    const float* project_dense_bias;
    int64_t outputs;
    int64_t shortcut;  // x is added
    float* out;        // (batch, out_height, out_width, outputs)
    int64_t threads;
    int64_t ring;  // floats of expanded features that are held at a time, about
};

// Lines of expanded features: place n of the input is at n modulo `places`.
struct Ring {
    float* base;
    int64_t places;
};

// Where a module computes, see locate.h.
struct Locate {
    int64_t batch;
    int64_t height;
    int64_t width;
    int64_t stride;  // of the module: the mask is as large as x, or half of it
    int64_t channels;
    const float* x;  // (batch, height, width, channels)
    int64_t cut;     // relu6 of x is read
    int64_t hidden;  // channels, at most 16
    const float* first;  // packed (channels, hidden)
    const float* first_bias;
    const float* second;  // packed (9 hidden, hidden)
    const float* second_bias;
    const float* last;  // packed (hidden, 9), of a transposed convolution of stride 2, or (hidden, 1)
    double least;       // kept is what exceeds it
    uint8_t* out;       // (batch, height / stride, width / stride)
    int64_t threads;
    int64_t around;        // the first convolution is 3x3, packed (9 channels, hidden), with relu, and comes before the pooling
    int64_t first_group;   // of a Product
    int64_t second_group;
};

// Blocks in turn: where a block computes, if it has a mask, and what.
struct Link {
    int64_t masked;
    Locate locate;
    Inverted block;
};

// A layer of a module: channels at all locations, and at kept ones alone; packed weights of the products of kept and of dropped
// locations, and their groups (of a Product).
struct ModuleLayer {
    int64_t dense;
    int64_t sparse;
    const float* full;  // of all channels of the layer before, tap by tap, dense ones first
    int64_t full_group;
    const float* dropping;  // from dense channels to dense ones, or null
    int64_t dropping_group;
    const float* squared;  // what `full` has, as products of squares read it, or null
};

// A module, see module.h. Its fusion reads all layers' dense channels in turn, then all sparse ones.
struct Module {
    int64_t channels;  // of x
    int64_t columns;   // of the fusion
    int64_t n_layers;
    const ModuleLayer* layers;
    int64_t activation;  // of the layers, as a Product has it
    double slope;
    int64_t everywhere;  // dense channels of all layers
    int64_t whole;       // all channels of all layers
    const float* fuse;   // (whole, columns)
    const float* collect;          // packed
    const float* collect_dropped;  // packed: the first `everywhere`
    const float* bias;             // or null
    int64_t squeezed;  // channels of the attention; 0: none, the fusion is what comes out
    const float* squeeze;  // (squeezed, columns)
    const float* squeeze_bias;
    const float* excite;  // (columns, squeezed)
    const float* excite_bias;
    // Of a call:
    int64_t count;   // locations
    const float* x;  // (count, channels); added where there is attention
    int64_t n_kept;
    int64_t n_dropped;
    const int32_t* kept;
    const int32_t* dropped;
    const int32_t* at_kept;  // where they stand on the padded grid
    const int32_t* at_dropped;
    const int32_t* interior;  // (places of the grid): location, or -1
    const int32_t* compact;   // likewise: number among the kept, or -1
    int64_t n_taps;
    const int64_t* offsets;
    int64_t pitch;  // of products of squares, where layers have them
    float* memory;  // of each layer count * dense, then n_kept * sparse, each in whole sixteens
    float* out;     // (count, columns)
    int64_t threads;
};

// A point convolution with its 1x1 part: of `ins` channels, all computed at all points.
struct PointLayer {
    int64_t ins;
    int64_t wide;         // outputs, no fewer than a vector of 8
    const float* packed;  // (ins + 3, wide)
    const float* rel;     // (3, wide)
    const float* table;   // (cells, wide)
    const float* bias;    // (wide)
};

// One under a mask; outputs are ordered dense ones first.
struct PointMasked {
    int64_t dense;  // outputs at all points
    int64_t ins_dense;
    int64_t ins_sparse;  // inputs at kept points alone
    const float* from_dense;   // packed (ins_dense + 3, wide)
    const float* from_sparse;  // packed (ins_sparse, wide), or null
    const float* rel;
    const float* table;
    const float* bias;
};

// A sparse block of point convolutions, see point_network.h.
struct PointBlock {
    int64_t ins;
    int64_t wide;
    int64_t n_layers;
    const PointMasked* layers;
    int64_t masked;  // 0: all points are kept, 1: those that its branch says, 2: none
    int64_t narrow;  // channels of the branch
    const float* first;  // packed (ins, narrow)
    const float* first_bias;
    PointLayer second;
    PointLayer third;  // two outputs, drop and keep, and zeros
    int64_t compared;  // 0: keep > drop; 1: sigmoid(keep - drop) > threshold
    double threshold;
    const float* kept;     // packed: all layers' dense and sparse channels in turn, then the shortcut's inputs
    const float* dropped;  // packed: all layers' dense channels, then those
    const float* tail_bias;
    const float* kept_bias;
    int64_t shortcut;  // 0: the input is added
    int64_t gated;     // sparse inputs reach dense outputs at kept points only
};

// A level of a batch of crops: indices are each sample's own.
struct PointLevel {
    int64_t points;  // of a sample
    const int32_t* neighbours;  // (batch, points, k)
    const int32_t* upsample;    // (batch, points): of the coarser level; null at the coarsest one
    double radius;
    uint8_t* mask;  // (batch, points), written
};

// Features copied from the coarser points, joined with a level's own and convolved: 1x1, norm, ReLU.
struct PointJoin {
    int64_t coarse;
    int64_t own;
    const float* left;   // packed (coarse, own)
    const float* right;  // packed (own, own)
    const float* bias;
};

// The whole network, see point_network.h.
struct PointNetwork {
    int64_t batch;
    int64_t k;
    int64_t ins;
    const float* rows;  // (batch, points, ins)
    const float* xyz;   // (batch, points, 3), relative to each sample's middle
    int64_t n_levels;
    const PointLevel* levels;
    const PointBlock* blocks;
    const PointJoin* joins;  // coarse to fine, one fewer
    const float* init;       // packed (ins, first block's ins)
    const float* init_bias;
    int64_t hidden;
    const float* tail;  // packed (first block's outputs, hidden)
    const float* tail_bias;
    int64_t classes;
    const float* last;  // packed (hidden, classes)
    const float* last_bias;
    int64_t cells;    // along an axis
    int64_t nearest;  // how blocks round to cells; branches round towards zero
    float* out;       // (batch, points, classes)
    int64_t threads;
};

constexpr int64_t PANEL = 16;  // columns of a panel of packed weights; the last may have 8
constexpr int64_t TAPS = 9;    // of a kernel's 3x3 layers
constexpr int64_t TAKEN = 96;  // outputs of a product in bfloat16 or int8 that a thread takes at a time

}  // namespace sm

// What the kernels are told: plain structs, the same in library.py.
#pragma once
#include <cstdint>

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
};

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
};

// Blocks in turn: where a block computes, if it has a mask, and what.
struct Link {
    int64_t masked;
    Locate locate;
    Inverted block;
};

constexpr int64_t PANEL = 16;  // columns of a panel of packed weights; the last may have 8

}  // namespace sm

// What the kernels are told: plain structs, the same in library.py.
#pragma once
#include <cstdint>

namespace sm {

// A stretch of input channels that every output row reads from one row of a buffer. The row of output r is
// map[pos[r] + offset] (or pos[r] + offset without a map); below zero it is a row of zeros.
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
    int64_t activation;  // 0 none, 1 relu, 2 leaky relu with `slope`
    double slope;
    // Columns [0, split) of row r go to row at0[r] (or r) of out0, the rest to row at1[r] (or r) of out1.
    int64_t split;
    float* out0;
    const int32_t* at0;
    int64_t stride0;
    float* out1;
    const int32_t* at1;
    int64_t stride1;
    const float* add;  // or null: row at0[r] (or r), all columns
    int64_t add_stride;
    double* sums;  // or null: (threads, columns), to which the outputs are added
    int64_t threads;
};

constexpr int64_t PANEL = 16;  // columns of a panel of packed weights; the last may have 8

}  // namespace sm

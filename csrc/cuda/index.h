// Index arithmetic of the kernels: plain functions for host and device, which host tests run
// exhaustively against the definition.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FSDINO_BOTH __host__ __device__ inline
#else
#define FSDINO_BOTH inline
#endif

namespace fsdino::cuda {

FSDINO_BOTH int ceil_div(int size, int block) { return (size + block - 1) / block; }
FSDINO_BOTH int64_t ceil_div(int64_t size, int64_t block) { return (size + block - 1) / block; }
FSDINO_BOTH int smaller(int a, int b) { return a < b ? a : b; }
FSDINO_BOTH int larger(int a, int b) { return a > b ? a : b; }
FSDINO_BOTH int clamp(int value, int low, int high) { return smaller(larger(value, low), high); }

// Matrix operands lie in shared memory in words of 4 bytes along the inner dimension: two halves or
// one float. A product step takes 8 of them.
using Word = uint32_t;
constexpr int kStepWords = 8;
template <typename T>
constexpr int kPerWord = int(sizeof(Word) / sizeof(T));
constexpr int kWarp = 32;

// On sm_90a operands of 16-bit elements lie in shared memory in rows of 128 bytes, 8 rows to a
// pattern, in the swizzle that bulk copies and tensor cores share: the 16-byte pieces of a row are
// permuted by the row's number, so that a column of pieces spreads over all banks.
constexpr int kWarpgroup = 128;
constexpr int kBoxBytes = 128;                 // of a row
constexpr int kBoxDepth = kBoxBytes / 2;       // its elements
constexpr int kPatternBytes = 8 * kBoxBytes;   // where operands start
constexpr int kAsyncRows = 64, kAsyncColumns = 128, kAsyncDepth = 16;  // of a warpgroup's product
FSDINO_BOTH uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// Tells tensor cores where an operand lies: rows from `address` on in shared memory, which is where
// a pattern starts plus less than a row; see "Matrix Descriptor" of wgmma in the PTX manual. Of a
// swizzled operand with its inner dimension along the rows the leading offset is not used.
FSDINO_BOTH uint64_t matrix_descriptor(uint32_t address) {
  constexpr uint64_t kLeadingOffset = 1, kStride = kPatternBytes / 16, kSwizzle128 = 1;
  return uint64_t((address & 0x3ffff) >> 4) | kLeadingOffset << 16 | kStride << 32 |
         kSwizzle128 << 62;
}
// Of the operand `elements` further along the inner dimension, in the same rows.
FSDINO_BOTH uint64_t descriptor_along(uint64_t descriptor, int elements) {
  return descriptor + uint64_t(elements * 2 / 16);
}

// A tensor of 16-bit elements, innermost dimension first, and the box of it that one bulk copy
// brings; strides in bytes.
constexpr int kBoxDims = 5;
struct BoxShape {
  int64_t sizes[kBoxDims], strides[kBoxDims];
  int box[kBoxDims];
};
// Whether tokens of this size can be copied so.
FSDINO_BOTH bool in_boxes(int element_bytes, int channels) {
  return element_bytes == 2 && channels > 0 && channels % 8 == 0;
}
// Features [batches, layers, rows, columns, channels] in boxes of rows x columns tokens. A dimension
// that is shared (stride 0) has one element in the map; it has no coordinate but 0.
inline BoxShape box_shape(int batches, int64_t batch_stride, int layers, int64_t layer_stride,
                          int rows, int columns, int channels, int box_rows, int box_columns) {
  const int64_t token = int64_t(channels) * 2;
  const auto own = [](int size, int64_t stride) { return size > 1 && stride != 0; };
  const bool own_layers = own(layers, layer_stride), own_batches = own(batches, batch_stride);
  const int64_t layer = own_layers ? layer_stride * 2 : rows * columns * token;
  const int64_t batch = own_batches ? batch_stride * 2 : layer * (own_layers ? layers : 1);
  return {{channels, columns, rows, own_layers ? layers : 1, own_batches ? batches : 1},
          {2, token, columns * token, layer, batch},
          {kBoxDepth, box_columns, box_rows, 1, 1}};
}

// A position of a volume [Hq, Wq, Hs, Ws].
struct Position {
  int query_row, query_column, support_row, support_column;
};

// Sizes of a volume without its channels.
struct Volume {
  int query_rows, query_columns, support_rows, support_columns;

  FSDINO_BOTH int64_t support() const { return int64_t(support_rows) * support_columns; }
  FSDINO_BOTH int64_t positions() const { return int64_t(query_rows) * query_columns * support(); }

  FSDINO_BOTH bool holds(const Position& p) const {
    return p.query_row >= 0 && p.query_row < query_rows && p.query_column >= 0 &&
           p.query_column < query_columns && p.support_row >= 0 && p.support_row < support_rows &&
           p.support_column >= 0 && p.support_column < support_columns;
  }
  // In positions from the first one. Linear: of a move it is the difference of two offsets.
  FSDINO_BOTH int64_t offset(const Position& p) const {
    return ((int64_t(p.query_row) * query_columns + p.query_column) * support_rows +
            p.support_row) * support_columns + p.support_column;
  }
  FSDINO_BOTH Position at(int64_t offset) const {
    Position p{};
    p.support_column = int(offset % support_columns);
    offset /= support_columns;
    p.support_row = int(offset % support_rows);
    offset /= support_rows;
    p.query_column = int(offset % query_columns);
    p.query_row = int(offset / query_columns);
    return p;
  }
};

// What a tap adds to a position of the source, and which matrix it multiplies with.
struct Tap {
  Position move;
  int matrix;
};

// The walk over taps of the convolution or of its transpose, as one implicit matrix product.
//
// A row of the product is a position of `walked`. It stands for a position of `output` and one of
// `source`; each tap moves the latter. Taps over the query dims come first. Going back, a stride of
// s leaves s * s classes of support positions, by their remainders, and each is a walk of its own
// over the taps that reach it.
struct Walk {
  Volume source, output, walked;
  int source_step, output_step;      // from one support row or column walked to the next
  int output_row, output_column;     // the first one in the output
  int first_query_row;               // query row of the source above which the output's first lies
  int direction;                     // 1: the convolution, -1: its transpose
  int kernel_query, kernel_support;  // sizes of the kernels
  int query_taps;                    // kq * kq, or 0 where they do not reach this class
  int tap_rows, tap_columns;         // taps over the support dims
  int first_row_shift, first_column_shift;  // the first of them moves the source by this
  int first_tap_row, first_tap_column;      // its place in the kernel
  int tap_step;                             // from one to the next in the kernel

  FSDINO_BOTH int taps() const { return query_taps + tap_rows * tap_columns; }

  FSDINO_BOTH Tap tap(int index) const {
    if (index < query_taps) {
      const int row = index / kernel_query, column = index % kernel_query;
      const int half = kernel_query / 2;
      return {{direction * (row - half), direction * (column - half), 0, 0}, index};
    }
    const int row = (index - query_taps) / tap_columns;
    const int column = (index - query_taps) % tap_columns;
    const int kernel_row = first_tap_row + tap_step * row;
    const int kernel_column = first_tap_column + tap_step * column;
    return {{0, 0, first_row_shift + direction * row, first_column_shift + direction * column},
            kernel_query * kernel_query + kernel_row * kernel_support + kernel_column};
  }
  FSDINO_BOTH Position in_source(const Position& p) const {
    return {p.query_row + first_query_row, p.query_column, p.support_row * source_step,
            p.support_column * source_step};
  }
  FSDINO_BOTH Position in_output(const Position& p) const {
    return {p.query_row, p.query_column, output_row + p.support_row * output_step,
            output_column + p.support_column * output_step};
  }
};

FSDINO_BOTH Position moved(const Position& p, const Position& by) {
  return {p.query_row + by.query_row, p.query_column + by.query_column,
          p.support_row + by.support_row, p.support_column + by.support_column};
}

// Sizes of a convolution, and the query row of its source above which its output's first one lies.
struct Convolution {
  int kernel_query, kernel_support, stride, first_query_row;
};

inline Walk walk_forward(const Volume& source, const Volume& output, const Convolution& c) {
  const int pad = c.kernel_support / 2;
  return {source, output, output, c.stride, 1, 0, 0, c.first_query_row, 1, c.kernel_query,
          c.kernel_support, c.kernel_query * c.kernel_query, c.kernel_support, c.kernel_support,
          -pad, -pad, 0, 0, 1};
}

// Class (row, column) of the transpose: support positions of the output with these remainders.
inline Walk walk_back(const Volume& source, const Volume& output, const Convolution& c, int row,
                      int column) {
  const int pad = c.kernel_support / 2, stride = c.stride;
  const int first_row = (row + pad) % stride, first_column = (column + pad) % stride;
  const auto taps = [&](int first) {
    return first < c.kernel_support ? ceil_div(c.kernel_support - first, stride) : 0;
  };
  const Volume walked{output.query_rows, output.query_columns,
                      ceil_div(output.support_rows - row, stride),
                      ceil_div(output.support_columns - column, stride)};
  const int over_query = row == 0 && column == 0 ? c.kernel_query * c.kernel_query : 0;
  return {source, output, walked, 1, stride, row, column, c.first_query_row, -1, c.kernel_query,
          c.kernel_support, over_query, taps(first_row), taps(first_column),
          (row + pad - first_row) / stride, (column + pad - first_column) / stride,
          first_row, first_column, stride};
}

}  // namespace fsdino::cuda

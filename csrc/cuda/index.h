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
struct alignas(8) WordPair {
  Word first, second;
};
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
constexpr int kBoxDims = 4;
struct BoxShape {
  int64_t sizes[kBoxDims], strides[kBoxDims];
  int box[kBoxDims];
};
// Whether tokens of this size can be copied so.
FSDINO_BOTH bool in_boxes(int element_bytes, int channels) {
  return element_bytes == 2 && channels > 0 && channels % 8 == 0;
}
// Features [batches, layers, tokens, channels] in boxes of `box_tokens`. A dimension that is shared
// (stride 0) has one element in the map; it has no coordinate but 0.
inline BoxShape box_shape(int batches, int64_t batch_stride, int layers, int64_t layer_stride,
                          int tokens, int channels, int box_tokens) {
  const int64_t token = int64_t(channels) * 2;
  const auto own = [](int size, int64_t stride) { return size > 1 && stride != 0; };
  const bool own_layers = own(layers, layer_stride), own_batches = own(batches, batch_stride);
  const int64_t layer = own_layers ? layer_stride * 2 : tokens * token;
  const int64_t batch = own_batches ? batch_stride * 2 : layer * (own_layers ? layers : 1);
  return {{channels, tokens, own_layers ? layers : 1, own_batches ? batches : 1},
          {2, token, layer, batch},
          {kBoxDepth, box_tokens, 1, 1}};
}

}  // namespace fsdino::cuda

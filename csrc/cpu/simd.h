// The inner loops, compiled once per instruction set and chosen at run time.
//
// A computes in float or double. Vectors are GCC's and Clang's generic vector types, so that the
// same source becomes AVX-512, AVX2, NEON or plain code; tile.h holds it, simd.cpp includes it once
// per instruction set. ATEN_CPU_CAPABILITY, PyTorch's own switch, limits the choice.

#pragma once

#include <cstdint>
#include <type_traits>

namespace fsdino::cpu {

// Largest tile of one call of `multiply`: rows are output channels, columns positions.
constexpr int64_t kTileRows = 8;

// How many channels one packed block of weights holds, when `left` channels are left.
constexpr int64_t block_rows(int64_t left) {
  return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// An integer as wide as A.
template <typename A>
using Word = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

// One channel of relu((value - mean - low) * scale + shift). `low` is what the mean loses when it is
// rounded to A: where all values lie close to a large mean, it is not small beside their spread.
template <typename A>
struct Affine {
  A mean, low, scale, shift;
};

// One channel of relu(normalised * gain + offset), where the normalised value is (value - mean - low)
// * rstd, and what its gradient is multiplied by: 1, or 1 / kept positions where the forward pass
// took their mean.
template <typename A>
struct NormChannel {
  A mean, low, rstd, gain, offset, grad_scale;
};

template <typename A>
struct Simd {
  int64_t lanes;  // values of a vector
  int64_t width;  // columns of the widest tile, a multiple of `lanes`

  // out[r][c] = sum_t sum_k weights[t][k * rows + r] * panel[(t * inner + k) * padded + c] + offset[r]
  // for r < rows, one of 1, 2, 4, 8, and c < columns <= width. `padded` is `columns` rounded up to
  // whole vectors. offset: one value per row, or null for 0.
  void (*multiply)(const A* const* weights, int64_t taps, int64_t inner, const A* panel,
                   const A* offset, int64_t rows, int64_t columns, A* out, int64_t out_stride);

  // panel[k][c] = source[begin + k * stride + c] for k < inner, 0 where c lies outside [low, high)
  // or `mask`, one word per column, all bits or none, is 0. Nothing outside [low, high) is read.
  // A row of the panel has `padded` values.
  void (*pack)(const A* source, int64_t begin, int64_t stride, int64_t inner, int64_t low,
               int64_t high, const Word<A>* mask, int64_t padded, A* panel);

  // panel[k][c] = source[k * stride + c] * scale[c] for c < columns, 0 up to `padded`.
  void (*pack_scaled)(const A* source, int64_t stride, int64_t inner, const A* scale,
                      int64_t columns, int64_t padded, A* panel);

  // sums[c] = sum_k source[k * stride + c]^2 for c < columns.
  void (*sum_squares)(const A* source, int64_t stride, int64_t inner, int64_t columns, A* sums);

  // Mean of rows x columns values, the sum of `mean` and `low`, and the sum of their squared distances
  // from it.
  void (*moments)(const A* values, int64_t rows, int64_t columns, int64_t stride, double* mean,
                  double* low, double* squares);

  // out[i] = max(affine of values[i], 0), NaN stays NaN.
  void (*affine_relu)(const A* values, const Affine<A>& affine, int64_t count, A* out);

  // sums[i] += max(affine of values[i], 0).
  void (*add_affine_relu)(const A* values, const Affine<A>& affine, int64_t count, A* sums);

  // The sum of values[i] - from for i < count.
  double (*sum_distances)(const A* values, A from, int64_t count);

  // Adds the sum of the gradient to the affine step, and of that times the normalised value, over
  // `count` values before normalisation and the gradients after the ReLU.
  void (*norm_sums)(const A* raw, const A* grad, int64_t count, const NormChannel<A>& channel,
                    double* plain, double* weighted);

  // The gradient before normalisation; the means are those over the group of the gradient times
  // gain, and of that times the normalised value.
  void (*norm_backward)(const A* raw, const A* grad, int64_t count, const NormChannel<A>& channel,
                        A mean_plain, A mean_weighted, A* out);

  // out[i] = max(values[i], 0) * scale.
  void (*relu_scale)(const A* values, A scale, int64_t count, A* out);
};

template <typename A>
const Simd<A>& simd();

}  // namespace fsdino::cpu

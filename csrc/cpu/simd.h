// The inner loops, compiled once per instruction set and chosen at run time.
//
// T is what tensors hold, Compute<T> what is added up. Vectors are GCC's and Clang's generic vector
// types, so that the same source becomes AVX-512, AVX2, NEON or plain code; elements.h and tile.h hold
// it, and simd.cpp includes them once per instruction set. pairs.h has the products of processors that
// multiply bfloat16 themselves. ATEN_CPU_CAPABILITY, PyTorch's own switch, and ONEDNN_MAX_CPU_ISA, that
// of the library behind its products, limit the choice.

#pragma once

#include <ATen/OpMathType.h>

#include <cstdint>
#include <type_traits>

namespace fsdino::cpu {

// float for the half-precision types, else the type itself.
template <typename T>
using Compute = at::opmath_type<T>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Steps that one instruction may have where nothing limits them.
constexpr int64_t kUnlimited = int64_t{1} << 40;

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

// A piece of a row in memory: columns 0, 1, ... are those from `begin` on; outside of [low, high)
// nothing is read, and there and where `mask`, one word per column, all bits or none, is 0, the
// value is 0. The mask may be null; its length is a multiple of `tile`.
template <typename A>
struct Piece {
  int64_t begin, low, high;
  const Word<A>* mask;
};

// What a product adds up is laid out in words of the size of A: a word is one value, converted to A,
// or, where the processor multiplies bfloat16, two of them that are neighbours along the sum. A step
// is one word of each operand. A panel, the operand on the right, lies in tiles of `tile` columns,
// each [steps, tile]; the one on the left in blocks of rows, as `arrange` makes them.
template <typename T>
struct Simd {
  using A = Compute<T>;

  const char* name;      // of the instruction set
  int64_t depth;         // values of a word
  int64_t tile;          // columns of a tile, a multiple of a vector's values
  int64_t block;         // most rows of a block
  int64_t row_multiple;  // blocks have room for a multiple of so many rows
  int64_t most_steps;    // of one instruction; longer sums are in equal parts of fewer

  // Steps of a sum over so many values.
  int64_t steps(int64_t values) const {
    const int64_t words = ceil_div(values, depth);
    const int64_t parts = ceil_div(words, most_steps);
    return parts * ceil_div(words, parts);
  }
  // Rows of the next block, when `left` rows are left.
  int64_t block_rows(int64_t left) const {
    if (row_multiple > 1) return left < block ? left : block;
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
  }
  // Rows that all blocks of so many rows have room for.
  int64_t room(int64_t rows) const { return ceil_div(rows, row_multiple) * row_multiple; }

  // out[r][c] = sum_t sum_k left[t][k, r] * panel[t * steps + k][c] + offset[r] for the rows of a block
  // and c < columns <= tile. offset: one value per row, or null for 0. Where T is not A, out has room
  // for `room(rows)` rows of a whole tile, and may be written there.
  void (*multiply)(const A* const* left, int64_t taps, int64_t steps, const A* panel,
                   const A* offset, int64_t rows, int64_t columns, A* out, int64_t out_stride);

  // out[r][c] += sum_k left[r * left_stride + k] * panel[k][c], for the rows of a block that lie one
  // after the other, as `copy` makes them. Rows up to `room(rows)` and the columns of a whole tile may
  // be read and written.
  void (*multiply_rows)(const A* left, int64_t left_stride, int64_t steps, const A* panel,
                        int64_t rows, int64_t columns, A* out, int64_t out_stride);

  // Ends a run of products on this thread; null where there is nothing to end. See `Products`.
  void (*release)();

  // A block from words [steps, stride], of which the first `rows` of each step are taken.
  void (*arrange)(const A* words, int64_t stride, int64_t steps, int64_t rows, A* out);

  // Pieces of the planes of `channels` channels, `stride` apart, as steps(channels) rows of a panel
  // whose tiles are `tile_stride` words apart.
  void (*pack)(const T* source, int64_t stride, int64_t channels, const Piece<A>& piece,
               int64_t columns, int64_t tile_stride, A* panel);

  // The same of whole rows, each column times its scale unless `scale` is null; steps are `step_stride`
  // words apart.
  void (*pack_scaled)(const T* source, int64_t stride, int64_t channels, const A* scale,
                      int64_t columns, int64_t tile_stride, int64_t step_stride, A* panel);

  // The same pieces as rows for `multiply_rows`, `words` long, 0 behind the last column.
  void (*copy)(const T* source, int64_t stride, int64_t channels, const Piece<A>& piece,
               int64_t columns, int64_t words, A* rows);

  // The panel for `multiply_rows` whose columns are `channels` channels: steps over `count` values of
  // each. Columns and steps behind the last are 0.
  void (*transpose)(const T* source, int64_t stride, int64_t channels, int64_t count, A* panel);

  // sums[c] = sum_k source[k * stride + c]^2 for c < columns.
  void (*sum_squares)(const T* source, int64_t stride, int64_t inner, int64_t columns, A* sums);

  // out[i] = values[i], which become what is stored, unless T is A.
  void (*round)(A* values, int64_t count, T* out);

  // Mean of rows x columns values, the sum of `mean` and `low`, and the sum of their squared distances
  // from it.
  void (*moments)(const A* values, int64_t rows, int64_t columns, int64_t stride, double* mean,
                  double* low, double* squares);

  // out[i] = max(affine of values[i], 0), NaN stays NaN.
  void (*affine_relu)(const T* values, const Affine<A>& affine, int64_t count, T* out);

  // sums[i] += max(affine of values[i], 0).
  void (*add_affine_relu)(const T* values, const Affine<A>& affine, int64_t count, A* sums);

  // The sum of values[i] - from for i < count.
  double (*sum_distances)(const T* values, A from, int64_t count);

  // Adds the sum of the gradient to the affine step, and of that times the normalised value, over
  // `count` values before normalisation and the gradients after the ReLU.
  void (*norm_sums)(const T* raw, const T* grad, int64_t count, const NormChannel<A>& channel,
                    double* plain, double* weighted);

  // The gradient before normalisation; the means are those over the group of the gradient times
  // gain, and of that times the normalised value.
  void (*norm_backward)(const T* raw, const T* grad, int64_t count, const NormChannel<A>& channel,
                        A mean_plain, A mean_weighted, T* out);

  // values[i] *= row * columns[i].
  void (*scale)(A* values, A row, const A* columns, int64_t count);

  // out[i] = max(values[i], 0) * scale.
  void (*relu_scale)(const A* values, A scale, int64_t count, T* out);
};

template <typename T>
const Simd<T>& simd();

// A run of products on this thread, which must not be interrupted by those of others.
template <typename T>
struct Products {
  ~Products() {
    if (simd<T>().release) simd<T>().release();
  }
};

}  // namespace fsdino::cpu

// center_pivot_conv4d: the walk over the taps as one implicit matrix product, its transpose, and the
// gradient to its matrices. See `Walk` in index.h.

#include "tile.h"

namespace fsdino::cuda {

namespace {

// Rows of the product are positions, columns are channels of the output.
template <typename T, int COLUMNS>
using WalkProduct =
    Product<T, kWalkRows, COLUMNS, COLUMNS == 16 ? 16 : 32, COLUMNS == 16 ? 16 : 32>;

// Where a row of the product lies in source and output; beyond the last row the query row is kOutside.
struct RowPlace {
  int64_t offset, target;
  Position position;
};
constexpr int kOutside = INT32_MIN / 2;

// A step is a tap and a piece of the input channels, or two taps where one fills half of it.
template <typename T>
struct WalkSteps {
  int taps, inner, pieces;
  bool twice;

  FSDINO_DEVICE WalkSteps(int taps, int inner)
      : taps(taps), inner(inner), pieces(ceil_div(inner, kDepth<T>)), twice(2 * inner <= kDepth<T>) {}
  FSDINO_DEVICE int count() const { return twice ? ceil_div(taps, 2) : taps * pieces; }
  FSDINO_DEVICE int tap(int step, int element) const {
    return twice ? 2 * step + is_second(element) : step / pieces;
  }
  FSDINO_DEVICE int channel(int step, int element) const {
    return twice ? element - is_second(element) * kDepth<T> / 2 : step % pieces * kDepth<T> + element;
  }
  // Channels that there are from an element on.
  FSDINO_DEVICE int valid(int step, int element) const {
    return tap(step, element) < taps ? inner - channel(step, element) : 0;
  }

 private:
  FSDINO_DEVICE static bool is_second(int element) { return 2 * element >= kDepth<T>; }
};

template <typename T>
struct WalkSource {
  const Walk& walk;
  const WalkSteps<T> steps;
  const T* source;
  const RowPlace* rows;

  FSDINO_DEVICE const T* at(int row, int step, int element, int& valid) const {
    const Position move = walk.tap(steps.tap(step, element)).move;
    const RowPlace& place = rows[row];
    valid = walk.source.holds(moved(place.position, move)) ? steps.valid(step, element) : 0;
    if (valid <= 0) return source;
    const int64_t position = place.offset + walk.source.offset(move);
    return source + position * steps.inner + steps.channel(step, element);
  }
};

template <typename T>
struct MatrixSource {
  const Walk& walk;
  const WalkSteps<T> steps;
  const T* weights;
  int first, outer;

  FSDINO_DEVICE const T* at(int row, int step, int element, int& valid) const {
    const int column = first + row;
    valid = column < outer ? steps.valid(step, element) : 0;
    if (valid <= 0) return weights;
    const int64_t matrix = walk.tap(steps.tap(step, element)).matrix;
    return weights + (matrix * outer + column) * steps.inner + steps.channel(step, element);
  }
};

// Two elements that lie side by side.
template <typename T>
struct alignas(2 * sizeof(T)) Two {
  T first, second;
};

template <typename T>
FSDINO_DEVICE Two<T> with_bias(const WalkArguments<T>& arguments, int column, const float* pair) {
  const auto bias = [&](int at) {
    return arguments.bias && at < arguments.outer ? static_cast<float>(arguments.bias[at]) : 0.0f;
  };
  return {T(pair[0] + bias(column)), T(pair[1] + bias(column + 1))};
}

// Mean and sum of squared deviations of each of the first `columns` columns, over the first `rows`
// rows; the one is `pitch` floats before the other.
template <typename P>
FSDINO_DEVICE void store_moments(P& product, int rows, int columns, float* out, int pitch) {
  float* const memory = reinterpret_cast<float*>(shared_memory());
  typename P::OfColumns mean, squares;
  product.sum_columns(mean, memory, rows, [](float value, int, int) { return value; });
  P::for_each_column([&](int, int j, int k) { mean[j][k] /= float(rows); });
  product.sum_columns(squares, memory, rows, [&](float value, int j, int k) {
    return (value - mean[j][k]) * (value - mean[j][k]);
  });
  if (!P::has_first_row()) return;
  P::for_each_column([&](int column, int j, int k) {
    if (column >= columns) return;
    out[column] = mean[j][k];
    out[pitch + column] = squares[j][k];
  });
}

template <typename T, int COLUMNS, int BYTES>
FSDINO_KERNEL((WalkProduct<T, COLUMNS>::kThreads))
walk_kernel(const Walk walk, const WalkArguments<T> arguments) {
  using P = WalkProduct<T, COLUMNS>;
  const int64_t positions = walk.walked.positions();
  const int64_t row_blocks = ceil_div(positions, int64_t(P::kRows));
  const int column_blocks = ceil_div(arguments.outer, COLUMNS);
  const int first_column = block_index() % column_blocks * COLUMNS;
  const int64_t block = block_index() / column_blocks;
  const int64_t first = block % row_blocks * P::kRows, batch = block / row_blocks;

  Word* const memory = reinterpret_cast<Word*>(shared_memory());
  RowPlace* const rows = reinterpret_cast<RowPlace*>(shared_memory() + P::kSharedBytes);
  for (int i = thread_index(); i < P::kRows; i += P::kThreads) {
    if (first + i < positions) {
      const Position position = walk.in_source(walk.walked.at(first + i));
      const int64_t target = walk.output.offset(walk.in_output(walk.walked.at(first + i)));
      rows[i] = {walk.source.offset(position), target, position};
    } else {
      rows[i] = {0, 0, {kOutside, 0, 0, 0}};
    }
  }
  synchronise();

  const WalkSteps<T> steps{walk.taps(), arguments.inner};
  const WalkSource<T> source{
      walk, steps, arguments.source + batch * arguments.source_batch * arguments.inner, rows};
  const MatrixSource<T> weights{walk, steps, arguments.weights, first_column, arguments.outer};
  P product;
  product.run(memory, steps.count(), arguments.tf32,
              [&](Word* row_words, Word* column_words, int step) {
                stage_along<T, BYTES, P::kThreads>(row_words, P::kRows, step, source);
                stage_along<T, BYTES, P::kThreads>(column_words, COLUMNS, step, weights);
              });
  T* const out = arguments.out + batch * arguments.out_batch * arguments.outer;
  const int count = positions - first < P::kRows ? int(positions - first) : P::kRows;
  product.for_each_pair([&](int row, int column, float* pair) {
    column += first_column;
    if (row >= count || column >= arguments.outer) return;
    // What is stored is what its statistics are of.
    const Two<T> two = with_bias(arguments, column, pair);
    pair[0] = static_cast<float>(two.first);
    pair[1] = static_cast<float>(two.second);
    T* const place = out + rows[row].target * arguments.outer + column;
    if (arguments.outer % 2 == 0) {
      *reinterpret_cast<Two<T>*>(place) = two;
    } else {
      place[0] = two.first;
      if (column + 1 < arguments.outer) place[1] = two.second;
    }
  });
  if (arguments.moments) {
    float* const own = arguments.moments + block * 2 * arguments.outer + first_column;
    store_moments(product, count, arguments.outer - first_column, own, arguments.outer);
  }
}

// One tap's matrix of gradients, [CI, CO], the inner dimension being positions.
template <typename T>
using GradientProduct = Product<T, 64, 64, 32, 32>;

// A step is a run of positions of one sample; both operands lie across it.
template <typename T>
struct StepPlace {
  int64_t batch, position;

  FSDINO_DEVICE StepPlace(const Walk& walk, int64_t step, int element) {
    const int64_t steps = ceil_div(walk.walked.positions(), int64_t(kDepth<T>));
    batch = step / steps;
    position = step % steps * kDepth<T> + element;
  }
};

template <typename T>
struct MovedSource {
  const Walk& walk;
  const T* source;
  Tap tap;
  int64_t batch_stride, first_step;
  int first, inner;

  FSDINO_DEVICE const T* at(int row, int step, int element, int& valid) const {
    const StepPlace<T> place(walk, first_step + step, element);
    valid = 0;
    if (first + row >= inner || place.position >= walk.walked.positions()) return source;
    const Position position = moved(walk.in_source(walk.walked.at(place.position)), tap.move);
    if (!walk.source.holds(position)) return source;
    valid = 1;
    const int64_t at = place.batch * batch_stride + walk.source.offset(position);
    return source + at * inner + first + row;
  }
};

template <typename T>
struct GradSource {
  const Walk& walk;
  const T* grad;
  int64_t batch_stride, first_step;
  int first, outer;

  FSDINO_DEVICE const T* at(int row, int step, int element, int& valid) const {
    const StepPlace<T> place(walk, first_step + step, element);
    valid = first + row < outer && place.position < walk.walked.positions();
    if (!valid) return grad;
    return grad + (place.batch * batch_stride + place.position) * outer + first + row;
  }
};

template <typename T>
FSDINO_KERNEL(GradientProduct<T>::kThreads)
weight_gradient_kernel(const Walk walk, const WeightGradientArguments<T> arguments, int64_t steps,
                       int64_t share) {
  using P = GradientProduct<T>;
  const int inner_blocks = ceil_div(arguments.inner, P::kRows);
  const int outer_blocks = ceil_div(arguments.outer, P::kColumns);
  int block = block_index();
  const int first_outer = block % outer_blocks * P::kColumns;
  block /= outer_blocks;
  const int first_inner = block % inner_blocks * P::kRows;
  block /= inner_blocks;
  const int tap = block % walk.taps();
  const int64_t split = block / walk.taps();
  const int64_t first_step = split * share;
  const int64_t own = first_step + share < steps ? share : steps - first_step;

  const MovedSource<T> source{walk, arguments.source, walk.tap(tap), arguments.source_batch,
                              first_step, first_inner, arguments.inner};
  const GradSource<T> grad{walk, arguments.grad, arguments.grad_batch, first_step, first_outer,
                           arguments.outer};
  P product;
  product.run(reinterpret_cast<Word*>(shared_memory()), int(own), arguments.tf32,
              [&](Word* rows, Word* columns, int step) {
                stage_across<T, P::kThreads>(rows, P::kRows, step, source);
                stage_across<T, P::kThreads>(columns, P::kColumns, step, grad);
              });
  float* const out =
      arguments.partial + (split * walk.taps() + tap) * arguments.inner * arguments.outer;
  product.for_each([&](int row, int column, float sum) {
    const int inner = first_inner + row, outer = first_outer + column;
    if (inner >= arguments.inner || outer >= arguments.outer) return;
    out[int64_t(inner) * arguments.outer + outer] = sum;
  });
}

template <typename T, int COLUMNS>
void walk_with_columns(const Walk& walk, const WalkArguments<T>& arguments, Stream stream) {
  using P = WalkProduct<T, COLUMNS>;
  const int64_t blocks = arguments.batches * ceil_div(walk.walked.positions(), int64_t(P::kRows)) *
                         ceil_div(arguments.outer, COLUMNS);
  const int64_t shared = P::kSharedBytes + P::kRows * int64_t(sizeof(RowPlace));
  const auto run = [&](auto bytes) {
    launch(walk_kernel<T, COLUMNS, bytes()>, blocks, P::kThreads, shared, stream, walk, arguments);
  };
  const int64_t row_bytes = arguments.inner * sizeof(T);
  if (row_bytes % 16 == 8) {  // 12 layers of halves
    run(std::integral_constant<int, 8>());
  } else {
    with_piece_bytes<T>(row_bytes, run);
  }
}

}  // namespace

template <typename T>
void walk(const Walk& walk, const WalkArguments<T>& arguments, Stream stream) {
  if (arguments.outer <= 16) {
    walk_with_columns<T, 16>(walk, arguments, stream);
  } else {
    walk_with_columns<T, 64>(walk, arguments, stream);
  }
}

int64_t weight_gradient_steps(const Walk& walk, int batches, int element_bytes) {
  const int depth = kDepthWords * int(sizeof(Word)) / element_bytes;
  return batches * ceil_div(walk.walked.positions(), int64_t(depth));
}

template <typename T>
void weight_gradients(const Walk& walk, const WeightGradientArguments<T>& arguments,
                      Stream stream) {
  using P = GradientProduct<T>;
  const int64_t steps = weight_gradient_steps(walk, arguments.batches, sizeof(T));
  const int64_t share = ceil_div(steps, int64_t(arguments.shares));
  const int64_t blocks = int64_t(arguments.shares) * walk.taps() *
                         ceil_div(arguments.inner, P::kRows) *
                         ceil_div(arguments.outer, P::kColumns);
  launch(weight_gradient_kernel<T>, blocks, P::kThreads, P::kSharedBytes, stream, walk, arguments,
         steps, share);
}

#define FSDINO_INSTANTIATE(T)                                              \
  template void walk<T>(const Walk&, const WalkArguments<T>&, Stream);     \
  template void weight_gradients<T>(const Walk&, const WeightGradientArguments<T>&, Stream);
FSDINO_FOR_EACH_TYPE(FSDINO_INSTANTIATE)

}  // namespace fsdino::cuda

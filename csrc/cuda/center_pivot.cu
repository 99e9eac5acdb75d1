// center_pivot_conv4d: the walk over the taps as one implicit matrix product, its transpose, and the
// gradient to its matrices. See `Walk` in index.h.

#include <algorithm>

#include "tile.h"

namespace fsdino::cuda {

namespace {

// Rows of the product are positions, columns are channels of the output.
template <typename T, int COLUMNS>
using WalkProduct =
    Product<T, kWalkRows, COLUMNS, COLUMNS == 16 ? 16 : 32, COLUMNS == 16 ? 16 : 32>;

// Places are worked out once, into shared memory: of a row of the product in source and output, and of
// a tap. Beyond the last row the query row is kOutside.
struct RowPlace {
  int64_t offset, target;
  Position position;
};
struct TapPlace {
  Position move;
  int64_t offset;
  int matrix;
};
constexpr int kOutside = INT32_MIN / 2;

FSDINO_DEVICE TapPlace place_of(const Walk& walk, int index) {
  const Tap tap = walk.tap(index);
  return {tap.move, walk.source.offset(tap.move), tap.matrix};
}

// A step is a tap and a piece of the input channels, or two taps where one fills half of it.
template <typename T>
struct WalkSteps {
  int taps, inner, pieces;
  bool twice;

  FSDINO_DEVICE WalkSteps(int taps, int inner)
      : taps(taps), inner(inner), pieces(ceil_div(inner, kDepth<T>)), twice(2 * inner <= kDepth<T>) {}
  FSDINO_DEVICE int count() const { return twice ? ceil_div(taps, 2) : taps * pieces; }
};
// One of them: of an element its tap, its channel, and how many channels there are from it on.
template <typename T>
struct WalkStep {
  int first_tap, first_channel, taps, inner;
  bool twice;

  FSDINO_DEVICE WalkStep(const WalkSteps<T>& steps, int step)
      : first_tap(steps.twice ? 2 * step : step / steps.pieces),
        first_channel(steps.twice ? 0 : (step - first_tap * steps.pieces) * kDepth<T>),
        taps(steps.taps), inner(steps.inner), twice(steps.twice) {}
  FSDINO_DEVICE int tap(int element) const { return first_tap + is_second(element); }
  FSDINO_DEVICE int channel(int element) const {
    return first_channel + element - (is_second(element) ? kDepth<T> / 2 : 0);
  }
  FSDINO_DEVICE int valid(int element) const {
    return tap(element) < taps ? inner - channel(element) : 0;
  }

 private:
  FSDINO_DEVICE bool is_second(int element) const { return twice && 2 * element >= kDepth<T>; }
};

template <typename T>
struct WalkSource {
  const Volume& volume;
  const WalkStep<T> now;
  const T* source;
  const RowPlace* rows;
  const TapPlace* taps;

  FSDINO_DEVICE const T* at(int row, int, int element, int& valid) const {
    valid = now.valid(element);
    if (valid <= 0) return source;
    const TapPlace& tap = taps[now.tap(element)];
    const RowPlace& place = rows[row];
    if (!volume.holds(moved(place.position, tap.move))) {
      valid = 0;
      return source;
    }
    return source + (place.offset + tap.offset) * now.inner + now.channel(element);
  }
};

template <typename T>
struct MatrixSource {
  const WalkStep<T> now;
  const T* weights;
  const TapPlace* taps;
  int first, outer;

  FSDINO_DEVICE const T* at(int row, int, int element, int& valid) const {
    const int column = first + row;
    valid = column < outer ? now.valid(element) : 0;
    if (valid <= 0) return weights;
    const int64_t matrix = taps[now.tap(element)].matrix;
    return weights + (matrix * outer + column) * now.inner + now.channel(element);
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

// Mean, in two parts, and sum of squared deviations of each of the first `columns` columns, over the
// first `rows` rows; each is `pitch` floats before the next. What a mean loses when it is rounded is
// not small beside the deviations of values that all lie close to it.
template <typename P>
FSDINO_DEVICE void store_moments(P& product, int rows, int columns, float* out, int pitch) {
  float* const memory = reinterpret_cast<float*>(shared_memory());
  typename P::OfColumns mean, low, squares;
  const auto divide = [&](typename P::OfColumns& sums) {
    P::for_each_column([&](int, int j, int k) { sums[j][k] /= float(rows); });
  };
  product.sum_columns(mean, memory, rows, [](float value, int, int) { return value; });
  divide(mean);
  product.sum_columns(low, memory, rows, [&](float value, int j, int k) {
    return value - mean[j][k];
  });
  divide(low);
  product.sum_columns(squares, memory, rows, [&](float value, int j, int k) {
    const float deviation = value - mean[j][k] - low[j][k];
    return deviation * deviation;
  });
  if (!P::has_first_row()) return;
  P::for_each_column([&](int column, int j, int k) {
    if (column >= columns) return;
    out[column] = mean[j][k];
    out[pitch + column] = low[j][k];
    out[2 * pitch + column] = squares[j][k];
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
  TapPlace* const taps = reinterpret_cast<TapPlace*>(rows + P::kRows);
  for (int i = thread_index(); i < P::kRows; i += P::kThreads) {
    if (first + i < positions) {
      const Position walked = walk.walked.at(first + i), position = walk.in_source(walked);
      rows[i] = {walk.source.offset(position), walk.output.offset(walk.in_output(walked)), position};
    } else {
      rows[i] = {0, 0, {kOutside, 0, 0, 0}};
    }
  }
  for (int i = thread_index(); i < walk.taps(); i += P::kThreads) taps[i] = place_of(walk, i);
  synchronise();

  const WalkSteps<T> steps(walk.taps(), arguments.inner);
  const T* const source = arguments.source + batch * arguments.source_batch * arguments.inner;
  P product;
  product.run(memory, steps.count(), arguments.tf32, [&](Word* row_words, Word* column_words, int step) {
    const WalkStep<T> now(steps, step);
    stage_along<T, BYTES, P::kThreads>(row_words, P::kRows, step,
                                       WalkSource<T>{walk.source, now, source, rows, taps});
    stage_along<T, BYTES, P::kThreads>(
        column_words, COLUMNS, step,
        MatrixSource<T>{now, arguments.weights, taps, first_column, arguments.outer});
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
    float* const own = arguments.moments + block * 3 * arguments.outer + first_column;
    store_moments(product, count, arguments.outer - first_column, own, arguments.outer);
  }
}

// Outside of the grid there is no output whose gradient could reach anything. As a 0 it reaches nothing
// either, unless it meets a weight that is not finite: then the transposed walk's elements that came
// out not finite are summed once more, without what lies outside. By itself, since the walk has no
// registers to spare.
constexpr int kMendThreads = 256, kMendBlocks = 256;
template <typename T>
FSDINO_KERNEL(kMendThreads) mend_edges_kernel(const Walk walk, const WalkArguments<T> arguments) {
  if (*arguments.finite) return;
  const int64_t positions = walk.walked.positions(), outer = arguments.outer;
  const int64_t all = arguments.batches * positions * outer;
  for (int64_t i = int64_t(block_index()) * kMendThreads + thread_index(); i < all;
       i += kMendBlocks * kMendThreads) {
    const int64_t column = i % outer, batch = i / outer / positions;
    const Position walked = walk.walked.at(i / outer % positions), from = walk.in_source(walked);
    const int64_t target = walk.output.offset(walk.in_output(walked));
    T* const place = arguments.out + (batch * arguments.out_batch + target) * outer + column;
    if (is_finite(static_cast<float>(*place))) continue;
    const T* const source =
        arguments.source +
        (batch * arguments.source_batch + walk.source.offset(from)) * arguments.inner;
    float sum = 0.0f;
    for (int t = 0; t < walk.taps(); ++t) {
      const TapPlace tap = place_of(walk, t);
      if (!walk.source.holds(moved(from, tap.move))) continue;
      const T* const values = source + tap.offset * arguments.inner;
      const T* const weights = arguments.weights + (tap.matrix * outer + column) * arguments.inner;
      for (int c = 0; c < arguments.inner; ++c) {
        sum += static_cast<float>(values[c]) * static_cast<float>(weights[c]);
      }
    }
    *place = T(sum);
  }
}

// Gradients to the taps' matrices, one below the other: rows are taps and their input channels, the
// inner dimension is positions.
constexpr int kGradientRows = 64;
template <typename T, int COLUMNS>
using GradientProduct =
    Product<T, kGradientRows, COLUMNS, COLUMNS == 16 ? 16 : 32, COLUMNS == 16 ? 16 : 32>;

// What a row is; beyond the last one the channel is negative.
struct GradientRow {
  TapPlace tap;
  int channel;
};
// A position of the step that is staged: where it lies in the source and, if it exists, in the
// gradient.
struct StepPlace {
  int64_t source, grad;
  Position position;
};

template <typename T>
struct MovedSource {
  const Volume& volume;
  const T* source;
  const GradientRow* rows;
  const StepPlace* places;
  int inner;

  FSDINO_DEVICE const T* at(int row, int, int element, int& valid) const {
    const GradientRow& own = rows[row];
    const StepPlace& place = places[element];
    valid = own.channel >= 0 && volume.holds(moved(place.position, own.tap.move));
    return valid ? source + (place.source + own.tap.offset) * inner + own.channel : source;
  }
};

template <typename T>
struct GradSource {
  const T* grad;
  const StepPlace* places;
  int first, outer;

  FSDINO_DEVICE const T* at(int row, int, int element, int& valid) const {
    const int64_t place = places[element].grad;
    valid = first + row < outer && place >= 0;
    return valid ? grad + place * outer + first + row : grad;
  }
};

template <typename T, int COLUMNS>
constexpr int64_t kGradientSharedBytes = GradientProduct<T, COLUMNS>::kSharedBytes +
                                         kGradientRows * int64_t(sizeof(GradientRow)) +
                                         2 * kDepth<T> * int64_t(sizeof(StepPlace));

template <typename T, int COLUMNS>
FSDINO_KERNEL((GradientProduct<T, COLUMNS>::kThreads))
weight_gradient_kernel(const Walk walk, const WeightGradientArguments<T> arguments, int64_t steps,
                       int64_t share) {
  using P = GradientProduct<T, COLUMNS>;
  const int all_rows = walk.taps() * arguments.inner;
  const int row_blocks = ceil_div(all_rows, P::kRows);
  const int column_blocks = ceil_div(arguments.outer, COLUMNS);
  int block = block_index();
  const int first_outer = block % column_blocks * COLUMNS;
  block /= column_blocks;
  const int first_row = block % row_blocks * P::kRows;
  const int64_t split = block / row_blocks, first_step = split * share;
  const int64_t own = first_step + share < steps ? share : steps - first_step;

  GradientRow* const rows = reinterpret_cast<GradientRow*>(shared_memory() + P::kSharedBytes);
  StepPlace* const places = reinterpret_cast<StepPlace*>(rows + P::kRows);
  for (int i = thread_index(); i < P::kRows; i += P::kThreads) {
    const int row = first_row + i, tap = row / arguments.inner;
    rows[i] = row < all_rows ? GradientRow{place_of(walk, tap), row - tap * arguments.inner}
                             : GradientRow{{}, -1};
  }
  // Positions of a step are of one sample.
  const int64_t positions = walk.walked.positions();
  const int64_t steps_of_sample = ceil_div(positions, int64_t(kDepth<T>));
  const auto place = [&](int64_t step, int element) {
    const int64_t batch = step / steps_of_sample;
    const int64_t at = (step - batch * steps_of_sample) * kDepth<T> + element;
    if (at >= positions) return StepPlace{0, -1, {kOutside, 0, 0, 0}};
    const Position position = walk.in_source(walk.walked.at(at));
    return StepPlace{batch * arguments.source_batch + walk.source.offset(position),
                     batch * arguments.grad_batch + at, position};
  };

  P product;
  product.run(reinterpret_cast<Word*>(shared_memory()), int(own), arguments.tf32,
              [&](Word* row_words, Word* column_words, int step) {
                StepPlace* const now = places + step % 2 * kDepth<T>;
                if (thread_index() < kDepth<T>) {
                  now[thread_index()] = place(first_step + step, thread_index());
                }
                synchronise();
                stage_across<T, P::kThreads>(
                    row_words, P::kRows, step,
                    MovedSource<T>{walk.source, arguments.source, rows, now, arguments.inner});
                stage_across<T, P::kThreads>(
                    column_words, COLUMNS, step,
                    GradSource<T>{arguments.grad, now, first_outer, arguments.outer});
              });
  float* const out = arguments.partial + split * all_rows * arguments.outer;
  product.for_each([&](int row, int column, float sum) {
    const int outer = first_outer + column;
    if (first_row + row >= all_rows || outer >= arguments.outer) return;
    out[int64_t(first_row + row) * arguments.outer + outer] = sum;
  });
}

template <typename T, int COLUMNS>
void walk_with_columns(const Walk& walk, const WalkArguments<T>& arguments, Stream stream) {
  using P = WalkProduct<T, COLUMNS>;
  const int64_t blocks = arguments.batches * ceil_div(walk.walked.positions(), int64_t(P::kRows)) *
                         ceil_div(arguments.outer, COLUMNS);
  const int64_t shared = P::kSharedBytes + P::kRows * int64_t(sizeof(RowPlace)) +
                         walk.taps() * int64_t(sizeof(TapPlace));
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

template <typename T, int COLUMNS>
void gradients_with_columns(const Walk& walk, const WeightGradientArguments<T>& arguments,
                            Stream stream) {
  const int64_t steps = weight_gradient_steps(walk, arguments.batches, sizeof(T));
  const int64_t share = ceil_div(steps, int64_t(arguments.shares));
  const int64_t blocks = int64_t(arguments.shares) *
                         weight_gradient_blocks(walk, arguments.inner, arguments.outer);
  launch(weight_gradient_kernel<T, COLUMNS>, blocks, GradientProduct<T, COLUMNS>::kThreads,
         kGradientSharedBytes<T, COLUMNS>, stream, walk, arguments, steps, share);
}

int columns_of_block(int outer) { return outer <= 16 ? 16 : 64; }

}  // namespace

template <typename T>
void walk(const Walk& walk, const WalkArguments<T>& arguments, Stream stream) {
  if (columns_of_block(arguments.outer) == 16) {
    walk_with_columns<T, 16>(walk, arguments, stream);
  } else {
    walk_with_columns<T, 64>(walk, arguments, stream);
  }
  if (arguments.finite) {
    const int64_t all = arguments.batches * walk.walked.positions() * arguments.outer;
    const int64_t blocks = std::min(ceil_div(all, int64_t(kMendThreads)), int64_t(kMendBlocks));
    launch(mend_edges_kernel<T>, blocks, kMendThreads, 0, stream, walk, arguments);
  }
}

int64_t weight_gradient_steps(const Walk& walk, int batches, int element_bytes) {
  const int depth = kDepthWords * int(sizeof(Word)) / element_bytes;
  return batches * ceil_div(walk.walked.positions(), int64_t(depth));
}

int64_t weight_gradient_blocks(const Walk& walk, int inner, int outer) {
  return int64_t(ceil_div(walk.taps() * inner, kGradientRows)) *
         ceil_div(outer, columns_of_block(outer));
}

template <typename T>
void weight_gradients(const Walk& walk, const WeightGradientArguments<T>& arguments,
                      Stream stream) {
  if (columns_of_block(arguments.outer) == 16) {
    gradients_with_columns<T, 16>(walk, arguments, stream);
  } else {
    gradients_with_columns<T, 64>(walk, arguments, stream);
  }
}

#define FSDINO_INSTANTIATE(T)                                              \
  template void walk<T>(const Walk&, const WalkArguments<T>&, Stream);     \
  template void weight_gradients<T>(const Walk&, const WeightGradientArguments<T>&, Stream);
FSDINO_FOR_EACH_TYPE(FSDINO_INSTANTIATE)

}  // namespace fsdino::cuda

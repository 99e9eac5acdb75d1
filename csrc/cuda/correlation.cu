// correlation4d: cosines on tensor cores. Features are multiplied as they are; the reciprocals of
// their lengths come from a light pass and scale the product. Tiles of support positions whose
// weights are all 0 multiply nothing. Going back, the cosines are computed again.

#include "hopper.h"
#include "tile.h"

namespace fsdino::cuda {

namespace {

template <typename T>
using CosineProduct = Product<T, kCorrelationRows, 64, 32, 32>;

constexpr int kLightThreads = 256;
constexpr int kLightWarps = kLightThreads / kWarp;

FSDINO_DEVICE float sum_of_warp(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += from_lane(value, mask);
  return value;
}

// A warp for each token.
template <typename T>
FSDINO_KERNEL(kLightThreads) lengths_kernel(const T* values, float* inverses, int64_t rows,
                                            int64_t batch_stride, int layers, int64_t layer_stride,
                                            int64_t count, int channels, float eps) {
  const int64_t row = int64_t(block_index()) * kLightWarps + warp_index();
  if (row >= rows) return;
  const int64_t plane = row / count;
  const T* const token = values + plane / layers * batch_stride + plane % layers * layer_stride +
                         row % count * channels;
  float squares = 0.0f;
  for (int c = lane_index(); c < channels; c += kWarp) {
    const float value = static_cast<float>(token[c]);
    squares += value * value;
  }
  squares = sum_of_warp(squares);
  if (lane_index() == 0) inverses[row] = inverse(root(squares) + eps);
}

// Consecutive tokens of one layer.
template <typename T>
struct TokenSource {
  const T* values;
  int first, count, channels;

  FSDINO_DEVICE const T* at(int row, int step, int element, int& valid) const {
    const int channel = step * kDepth<T> + element, token = first + row;
    valid = token < count ? channels - channel : 0;
    return valid <= 0 ? values : values + int64_t(token) * channels + channel;
  }
};

// A block's share of the cosines: ROWS query and COLUMNS support tokens of one sample and layer.
// Blocks of the same tokens follow each other, layer by layer: what they write lies side by side.
template <typename T, int ROWS, int COLUMNS>
struct CosineBlock {
  int64_t batch;
  int layer, query_block, first_query, first_support;

  FSDINO_DEVICE explicit CosineBlock(const Cosines<T>& cosines) {
    const int support_blocks = ceil_div(cosines.support.count, COLUMNS);
    const int query_blocks = ceil_div(cosines.query.count, ROWS);
    int block = block_index();
    layer = block % cosines.layers;
    block /= cosines.layers;
    first_support = block % support_blocks * COLUMNS;
    block /= support_blocks;
    query_block = block % query_blocks;
    first_query = query_block * ROWS;
    batch = block / query_blocks;
  }
  FSDINO_DEVICE float weight(const Cosines<T>& cosines, int token) const {
    return cosines.weight ? static_cast<float>(cosines.weight[batch * cosines.support.count + token])
                          : 1.0f;
  }
  FSDINO_DEVICE bool all_weights_are_zero(const Cosines<T>& cosines) const {
    const int last = smaller(first_support + COLUMNS, cosines.support.count);
    for (int token = first_support; token < last; ++token) {
      if (weight(cosines, token) != 0.0f) return false;
    }
    return true;
  }
  // Rectified and weighted, into the correlation; row and column count from the block's first.
  FSDINO_DEVICE void store(const Cosines<T>& cosines, T* out, int row, int column, float sum) const {
    const int64_t queries = cosines.query.count, supports = cosines.support.count;
    const int query = first_query + row, support = first_support + column;
    if (query >= queries || support >= supports) return;
    const float of_support = weight(cosines, support);
    const float cosine =
        rectified(sum * query_inverse(cosines)[query] * support_inverse(cosines)[support]);
    out[((batch * queries + query) * supports + support) * cosines.layers + layer] =
        T(of_support == 0.0f ? 0.0f : cosine * of_support);
  }
  // Runs the product of features.
  template <int BYTES>
  FSDINO_DEVICE void multiply(CosineProduct<T>& product, const Cosines<T>& cosines) const {
    using P = CosineProduct<T>;
    const TokenSource<T> query{cosines.query.values + batch * cosines.query.batch +
                                   layer * cosines.query.layer,
                               first_query, cosines.query.count, cosines.channels};
    const TokenSource<T> support{cosines.support.values + batch * cosines.support.batch +
                                     layer * cosines.support.layer,
                                 first_support, cosines.support.count, cosines.channels};
    product.run(reinterpret_cast<Word*>(shared_memory()), ceil_div(cosines.channels, kDepth<T>),
                cosines.tf32, [&](Word* rows, Word* columns, int step) {
                  stage_along<T, BYTES, P::kThreads>(rows, P::kRows, step, query);
                  stage_along<T, BYTES, P::kThreads>(columns, P::kColumns, step, support);
                });
  }
  FSDINO_DEVICE const float* query_inverse(const Cosines<T>& cosines) const {
    return cosines.query.inverse + batch * cosines.query.inverse_batch +
           int64_t(layer) * cosines.query.count;
  }
  FSDINO_DEVICE const float* support_inverse(const Cosines<T>& cosines) const {
    return cosines.support.inverse + batch * cosines.support.inverse_batch +
           int64_t(layer) * cosines.support.count;
  }
};

template <typename T>
using PlainBlock = CosineBlock<T, CosineProduct<T>::kRows, CosineProduct<T>::kColumns>;

template <typename T, int BYTES>
FSDINO_KERNEL(CosineProduct<T>::kThreads) correlation_kernel(const Cosines<T> cosines, T* out) {
  const PlainBlock<T> block(cosines);
  CosineProduct<T> product;
  if (!block.all_weights_are_zero(cosines)) block.template multiply<BYTES>(product, cosines);
  product.for_each(
      [&](int row, int column, float sum) { block.store(cosines, out, row, column, sum); });
}

// The same on sm_90a: two warpgroups, one below the other. Two blocks share a multiprocessor, so
// that one multiplies while the other writes.
struct HopperTile {
  static constexpr int kWarpgroups = 2, kThreads = kWarpgroups * kWarpgroup, kStages = 3;
  static constexpr int kRows = kWarpgroups * kAsyncRows, kColumns = 128;
  static constexpr int kStageBytes = (kRows + kColumns) * kBoxBytes;
  using Pipeline = BoxPipeline<kStages>;
  static constexpr int kSharedBytes = kStages * kStageBytes + Pipeline::kSharedBytes;
};

template <typename T>
FSDINO_KERNEL_PAIR(HopperTile::kThreads)
correlation_hopper_kernel(FSDINO_PARAMETER FeatureMap query, FSDINO_PARAMETER FeatureMap support,
                          const Cosines<T> cosines, T* out) {
  if constexpr (kHopper) {
    using Tile = HopperTile;
    const CosineBlock<T, Tile::kRows, Tile::kColumns> block(cosines);
    AsyncProduct<T, Tile::kColumns> product;
    if (!block.all_weights_are_zero(cosines)) {
      char* const memory = shared_memory();
      Tile::Pipeline pipeline(memory + Tile::kStages * Tile::kStageBytes, Tile::kThreads / kWarp);
      const auto stage_at = [&](int stage) { return memory + stage * Tile::kStageBytes; };
      const auto copy = [&](int step, int stage, PhaseBarrier* barrier) {
        const int channel = step * kBoxDepth, batch = int(block.batch);
        char* const rows = stage_at(stage);
        query.copy(rows, channel, block.first_query, 0, block.layer, batch, barrier);
        support.copy(rows + Tile::kRows * kBoxBytes, channel, block.first_support, 0, block.layer,
                     batch, barrier);
      };
      const int steps = ceil_div(cosines.channels, kBoxDepth);
      pipeline.begin(steps, Tile::kStageBytes, copy);
      pipeline.run(steps, copy, [&](int stage) {
        const char* const rows = stage_at(stage);
        product.multiply(rows + warpgroup_index() * kAsyncRows * kBoxBytes,
                         rows + Tile::kRows * kBoxBytes);
      });
    }
    product.for_each([&](int row, int column, float sum) {
      block.store(cosines, out, warpgroup_index() * kAsyncRows + row, column, sum);
    });
  }
}

template <typename T, int BYTES>
FSDINO_KERNEL(CosineProduct<T>::kThreads)
correlation_gradient_kernel(const Cosines<T> cosines, const T* grad, int64_t grad_batch,
                            T* cosine_grad, float* weight_grad) {
  using P = CosineProduct<T>;
  const PlainBlock<T> block(cosines);
  const int64_t queries = cosines.query.count, supports = cosines.support.count;
  P product;
  // The gradient to the weights skips nothing.
  if (weight_grad || !block.all_weights_are_zero(cosines)) {
    block.template multiply<BYTES>(product, cosines);
  }
  const float* const query_inverse = block.query_inverse(cosines);
  const float* const support_inverse = block.support_inverse(cosines);
  const int64_t plane = block.batch * cosines.layers + block.layer;
  float along[P::kAcross][2] = {};
  product.for_each([&](int row, int column, float sum) {
    const int at = (column - P::first_column()) / 8;
    const int query = block.first_query + row, support = block.first_support + column;
    if (query >= queries || support >= supports) return;
    const float cosine = sum * query_inverse[query] * support_inverse[support];
    const float value = static_cast<float>(
        grad[block.batch * grad_batch + (query * supports + support) * cosines.layers + block.layer]);
    along[at][column % 2] += value * rectified(cosine);
    if (!cosine_grad) return;
    const float weight = block.weight(cosines, support);
    cosine_grad[(plane * queries + query) * supports + support] =
        T(weight == 0.0f || cosine <= 0.0f ? 0.0f : value * weight);
  });
  if (!weight_grad) return;
  // Sums over the rows: of the lanes of a warp, then of the warps below each other.
  float* const sums = reinterpret_cast<float*>(shared_memory());
  synchronise();
  for (int j = 0; j < P::kAcross; ++j) {
    for (int k = 0; k < 2; ++k) {
      float total = along[j][k];
      for (int mask = 4; mask < kWarp; mask *= 2) total += from_lane(total, mask);
      const int column = P::first_column() + 8 * j + lane_index() % 4 * 2 + k;
      if (lane_index() < 4) sums[warp_index() / P::kWarpsAcross * P::kColumns + column] = total;
    }
  }
  synchronise();
  const int64_t query_blocks = ceil_div(queries, int64_t(P::kRows));
  for (int column = thread_index(); column < P::kColumns; column += P::kThreads) {
    if (block.first_support + column >= supports) continue;
    float total = 0.0f;
    for (int warp = 0; warp < P::kWarpsDown; ++warp) total += sums[warp * P::kColumns + column];
    weight_grad[(plane * query_blocks + block.query_block) * supports + block.first_support +
                column] = total;
  }
}

// A warp for each token of what follows: plane and token of a row, and its values.
template <typename T>
struct TokenRow {
  int64_t plane, batch, token;
  const T* values;

  FSDINO_DEVICE TokenRow(const Tokens<T>& tokens, int64_t row, int layers, int channels)
      : plane(row / tokens.count), batch(plane / layers), token(row % tokens.count),
        values(tokens.values + batch * tokens.batch + plane % layers * tokens.layer +
               token * channels) {}
};

template <typename T>
FSDINO_KERNEL(kLightThreads) unit_kernel(const Tokens<T> tokens, const T* weight, T* out,
                                         int64_t rows, int layers, int channels) {
  const int64_t index = int64_t(block_index()) * kLightWarps + warp_index();
  if (index >= rows) return;
  const TokenRow<T> row(tokens, index, layers, channels);
  const bool silent =
      weight && static_cast<float>(weight[row.batch * tokens.count + row.token]) == 0.0f;
  const float scale = tokens.inverse[row.batch * tokens.inverse_batch +
                                     row.plane % layers * tokens.count + row.token];
  for (int c = lane_index(); c < channels; c += kWarp) {
    out[index * channels + c] = T(silent ? 0.0f : static_cast<float>(row.values[c]) * scale);
  }
}

// The gradient of a zero vector's length is 0, as in PyTorch.
template <typename T>
FSDINO_KERNEL(kLightThreads)
unit_gradient_kernel(const Tokens<T> tokens, const T* weight, const T* grad, T* out, int64_t rows,
                     int layers, int channels, float eps) {
  const int64_t index = int64_t(block_index()) * kLightWarps + warp_index();
  if (index >= rows) return;
  const TokenRow<T> row(tokens, index, layers, channels);
  const bool silent =
      weight && static_cast<float>(weight[row.batch * tokens.count + row.token]) == 0.0f;
  float squares = 0.0f, products = 0.0f;
  for (int c = lane_index(); c < channels; c += kWarp) {
    const float value = static_cast<float>(row.values[c]);
    squares += value * value;
    products += value * static_cast<float>(grad[index * channels + c]);
  }
  const float length = root(sum_of_warp(squares));
  products = sum_of_warp(products);
  const float along = length == 0.0f ? 0.0f : products / (length * (length + eps));
  for (int c = lane_index(); c < channels; c += kWarp) {
    const float value = static_cast<float>(grad[index * channels + c]) -
                        static_cast<float>(row.values[c]) * along;
    out[index * channels + c] = T(silent ? 0.0f : value / (length + eps));
  }
}

template <typename Tile, typename T>
int64_t cosine_blocks(const Cosines<T>& cosines) {
  return int64_t(cosines.batches) * cosines.layers * ceil_div(cosines.query.count, Tile::kRows) *
         ceil_div(cosines.support.count, Tile::kColumns);
}

}  // namespace

template <typename T>
void lengths(const T* values, float* inverses, int64_t batches, int64_t batch_stride, int layers,
             int64_t layer_stride, int64_t count, int channels, float eps, Stream stream) {
  const int64_t rows = batches * layers * count;
  launch(lengths_kernel<T>, ceil_div(rows, int64_t(kLightWarps)), kLightThreads, 0, stream, values,
         inverses, rows, batch_stride, layers, layer_stride, count, channels, eps);
}

template <typename T>
void correlate(const Cosines<T>& cosines, T* out, Stream stream) {
  using P = CosineProduct<T>;
  if constexpr (sizeof(T) == 2) {
    const int64_t blocks = cosine_blocks<HopperTile>(cosines);
    if (blocks > 0 && in_boxes(sizeof(T), cosines.channels) && runs_hopper_code()) {
      const auto map = [&](const Tokens<T>& tokens, int box) {
        return feature_map(cosines, tokens, 1, tokens.count, 1, box);
      };
      launch(correlation_hopper_kernel<T>, blocks, HopperTile::kThreads, HopperTile::kSharedBytes,
             stream, map(cosines.query, HopperTile::kRows),
             map(cosines.support, HopperTile::kColumns), cosines, out);
      return;
    }
  }
  with_piece_bytes<T>(cosines.channels * sizeof(T), [&](auto bytes) {
    launch(correlation_kernel<T, bytes()>, cosine_blocks<P>(cosines), P::kThreads, P::kSharedBytes,
           stream, cosines, out);
  });
}

template <typename T>
void correlate_back(const Cosines<T>& cosines, const T* grad, int64_t grad_batch, T* cosine_grad,
                    float* weight_grad, Stream stream) {
  using P = CosineProduct<T>;
  with_piece_bytes<T>(cosines.channels * sizeof(T), [&](auto bytes) {
    launch(correlation_gradient_kernel<T, bytes()>, cosine_blocks<P>(cosines), P::kThreads,
           P::kSharedBytes, stream, cosines, grad, grad_batch, cosine_grad, weight_grad);
  });
}

template <typename T>
void units(const Tokens<T>& tokens, const T* weight, T* out, int batches, int layers, int channels,
           Stream stream) {
  const int64_t rows = int64_t(batches) * layers * tokens.count;
  launch(unit_kernel<T>, ceil_div(rows, int64_t(kLightWarps)), kLightThreads, 0, stream, tokens,
         weight, out, rows, layers, channels);
}

template <typename T>
void units_back(const Tokens<T>& tokens, const T* weight, const T* grad, T* out, int batches,
                int layers, int channels, float eps, Stream stream) {
  const int64_t rows = int64_t(batches) * layers * tokens.count;
  launch(unit_gradient_kernel<T>, ceil_div(rows, int64_t(kLightWarps)), kLightThreads, 0, stream,
         tokens, weight, grad, out, rows, layers, channels, eps);
}

#define FSDINO_INSTANTIATE(T)                                                                   \
  template void lengths<T>(const T*, float*, int64_t, int64_t, int, int64_t, int64_t, int,      \
                           float, Stream);                                                      \
  template void correlate<T>(const Cosines<T>&, T*, Stream);                                    \
  template void correlate_back<T>(const Cosines<T>&, const T*, int64_t, T*, float*, Stream);    \
  template void units<T>(const Tokens<T>&, const T*, T*, int, int, int, Stream);                \
  template void units_back<T>(const Tokens<T>&, const T*, const T*, T*, int, int, int, float,   \
                              Stream);
FSDINO_FOR_EACH_TYPE(FSDINO_INSTANTIATE)

}  // namespace fsdino::cuda

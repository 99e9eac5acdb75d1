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

// A block's share of the cosines: ROWS query and COLUMNS support tokens of one sample, in LAYERS
// layers from `layer` on. Blocks of the same tokens follow each other, layer by
// layer: what they write lies side by side.
template <typename T, int ROWS, int COLUMNS, int LAYERS = 1>
struct CosineBlock {
  int64_t batch;
  int layer, query_block, first_query, first_support;

  FSDINO_DEVICE explicit CosineBlock(const Cosines<T>& cosines) {
    const int support_blocks = ceil_div(cosines.support.count, COLUMNS);
    const int query_blocks = ceil_div(cosines.query.count, ROWS);
    const int layer_blocks = ceil_div(cosines.layers, LAYERS);
    int block = block_index();
    layer = block % layer_blocks * LAYERS;
    block /= layer_blocks;
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
  // Whether all weights are 0; asks all threads.
  FSDINO_DEVICE bool is_silent(const Cosines<T>& cosines) const {
    bool heard = false;
    const int last = smaller(first_support + COLUMNS, cosines.support.count);
    for (int token = first_support + thread_index(); token < last; token += thread_count()) {
      heard |= weight(cosines, token) != 0.0f;
    }
    return !synchronise_or(heard);
  }
  // Whether an element exists; rows and columns count from the block's first.
  FSDINO_DEVICE bool holds(const Cosines<T>& cosines, int row, int column) const {
    return first_query + row < cosines.query.count && first_support + column < cosines.support.count;
  }
  // The correlation: rectified and weighted.
  FSDINO_DEVICE T value(const Cosines<T>& cosines, int row, int column, float sum) const {
    const int query = first_query + row, support = first_support + column;
    const float of_support = weight(cosines, support);
    const float cosine =
        rectified(sum * query_inverse(cosines)[query] * support_inverse(cosines)[support]);
    return T(of_support == 0.0f ? 0.0f : cosine * of_support);
  }
  // Where it lies.
  FSDINO_DEVICE int64_t place(const Cosines<T>& cosines, int row, int column) const {
    const int64_t query = batch * cosines.query.count + first_query + row;
    return (query * cosines.support.count + first_support + column) * cosines.layers + layer;
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
  // Of the tokens of this layer, or of the block's next.
  FSDINO_DEVICE const float* query_inverse(const Cosines<T>& cosines, int next = 0) const {
    return cosines.query.inverse + batch * cosines.query.inverse_batch +
           int64_t(layer + next) * cosines.query.count;
  }
  FSDINO_DEVICE const float* support_inverse(const Cosines<T>& cosines, int next = 0) const {
    return cosines.support.inverse + batch * cosines.support.inverse_batch +
           int64_t(layer + next) * cosines.support.count;
  }
};

template <typename T>
using PlainBlock = CosineBlock<T, CosineProduct<T>::kRows, CosineProduct<T>::kColumns>;

template <typename T, int BYTES>
FSDINO_KERNEL(CosineProduct<T>::kThreads) correlation_kernel(const Cosines<T> cosines, T* out) {
  const PlainBlock<T> block(cosines);
  CosineProduct<T> product;
  if (!block.is_silent(cosines)) block.template multiply<BYTES>(product, cosines);
  product.for_each([&](int row, int column, float sum) {
    if (!block.holds(cosines, row, column)) return;
    out[block.place(cosines, row, column)] = block.value(cosines, row, column, sum);
  });
}

// The same on sm_90a: two warpgroups, one below the other, take two layers, one after the other, and
// write both at once. Two blocks share a multiprocessor, so that one multiplies while the other writes.
struct HopperTile {
  static constexpr int kWarpgroups = 2, kThreads = kWarpgroups * kWarpgroup, kStages = 3;
  static constexpr int kRows = kWarpgroups * kAsyncRows, kColumns = kAsyncColumns, kLayers = 2;
  static constexpr int kStageBytes = (kRows + kColumns) * kBoxBytes;
  using Pipeline = BoxPipeline<kStages, kStageBytes>;
  // What the elements are multiplied by.
  struct Scales {
    float query[kLayers][kRows], support[kLayers][kColumns], weight[kColumns];
  };
  static constexpr int kSharedBytes =
      kStages * kStageBytes + int(sizeof(Scales)) + Pipeline::kBarrierBytes;
  // In the end the stages hold the elements, both layers of one in a word. With rows 8 words apart
  // beyond a multiple of 32, what half a warp writes at once lies in different banks.
  static constexpr int kPitch = kColumns + 8;
  static_assert(kRows * kPitch * int(sizeof(Word)) <= kStages * kStageBytes);

  template <typename T>
  using Block = CosineBlock<T, kRows, kColumns, kLayers>;

  // Loads the scales of a block; whether all of its weights are 0. What does not exist counts 0.
  template <typename T>
  FSDINO_DEVICE static bool stage(Scales& scales, const Block<T>& block, const Cosines<T>& cosines,
                                  int layers) {
    const auto inverse = [&](const float* inverses, int token, int count) {
      return token < count ? inverses[token] : 0.0f;
    };
    for (int i = thread_index(); i < layers * kRows; i += kThreads) {
      const int layer = i / kRows, row = i % kRows;
      scales.query[layer][row] = inverse(block.query_inverse(cosines, layer), block.first_query + row,
                                         cosines.query.count);
    }
    for (int i = thread_index(); i < layers * kColumns; i += kThreads) {
      const int layer = i / kColumns, column = i % kColumns;
      scales.support[layer][column] = inverse(block.support_inverse(cosines, layer),
                                              block.first_support + column, cosines.support.count);
    }
    bool heard = false;
    for (int column = thread_index(); column < kColumns; column += kThreads) {
      const int token = block.first_support + column;
      const float weight = token < cosines.support.count ? block.weight(cosines, token) : 0.0f;
      scales.weight[column] = weight;
      heard |= weight != 0.0f;
    }
    return !synchronise_or(heard);
  }

  // This thread's elements of one layer, `values[2 * j + half]` those of two columns in a row.
  using Values = Word[kColumns / 4];
  template <typename T>
  FSDINO_DEVICE static void scale(Values& values, const AsyncProduct<T>& product,
                                  const Scales& scales, int layer, int first_row) {
    const float of_row[2] = {scales.query[layer][first_row + product.row_of(0)],
                             scales.query[layer][first_row + product.row_of(1)]};
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const int column = product.column_of(j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Word word = 0;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float weight = scales.weight[column + k];
          const float cosine = rectified(product.sums[j][2 * half + k] * of_row[half] *
                                         scales.support[layer][column + k]);
          word |= Word(T(weight == 0.0f ? 0.0f : cosine * weight).x) << 16 * k;
        }
        values[2 * j + half] = word;
      }
    }
  }
};

template <typename T>
FSDINO_KERNEL_PAIR(HopperTile::kThreads)
correlation_hopper_kernel(FSDINO_PARAMETER FeatureMap query, FSDINO_PARAMETER FeatureMap support,
                          const Cosines<T> cosines, T* out) {
  if constexpr (kHopper) {
    using Tile = HopperTile;
    const Tile::Block<T> block(cosines);
    const int steps = ceil_div(cosines.channels, kBoxDepth);
    const int layers = smaller(Tile::kLayers, cosines.layers - block.layer);

    char* const memory = shared_memory();
    auto& scales = *reinterpret_cast<Tile::Scales*>(memory + Tile::kStages * Tile::kStageBytes);
    Tile::Pipeline pipeline(memory, reinterpret_cast<char*>(&scales + 1), Tile::kThreads / kWarp);
    int channel = 0, copied_layer = block.layer;
    const auto copy = [&](char* stage, PhaseBarrier* barrier) {
      const int batch = int(block.batch);
      query.copy(stage, channel, block.first_query, copied_layer, batch, barrier);
      support.copy(stage + Tile::kRows * kBoxBytes, channel, block.first_support, copied_layer, batch,
                   barrier);
      channel += kBoxDepth;
      if (channel >= cosines.channels) {
        channel = 0;
        ++copied_layer;
      }
    };
    const bool silent = Tile::stage(scales, block, cosines, layers);
    if (!silent) pipeline.begin(layers * steps, copy);

    AsyncProduct<T> product;
    const int own_row = warpgroup_index() * kAsyncRows;
    Tile::Values earlier = {}, values = {};
#pragma unroll 1
    for (int layer = 0; layer < layers; ++layer) {
#pragma unroll
      for (int i = 0; i < Tile::kColumns / 4; ++i) earlier[i] = values[i];
      product.clear();
      if (!silent) {
        pipeline.run(steps, copy, [&](const char* rows) {
          product.multiply(rows + own_row * kBoxBytes, rows + Tile::kRows * kBoxBytes);
        });
      }
      Tile::scale(values, product, scales, layer, own_row);
    }

    synchronise();  // no warp multiplies any more: the stages are free
    Word* const elements = reinterpret_cast<Word*>(memory) + own_row * Tile::kPitch;
#pragma unroll
    for (int i = 0; i < Tile::kColumns / 4; ++i) {
      const WordPair both{(earlier[i] & 0xffff) | values[i] << 16,
                          earlier[i] >> 16 | (values[i] & 0xffff0000)};
      const int place = product.row_of(i % 2) * Tile::kPitch + product.column_of(i / 2);
      *reinterpret_cast<WordPair*>(elements + place) = both;
    }
    synchronise_warp();  // which writes the rows that it has

    constexpr int kWarpRows = AsyncProduct<T>::kWarpRows;
    const int first_row = warp_index() * kWarpRows;
    const int rows = smaller(kWarpRows, cosines.query.count - block.first_query - first_row);
    const int columns = cosines.support.count - block.first_support;
    const Word* from = reinterpret_cast<const Word*>(memory) + first_row * Tile::kPitch;
    T* to = out + block.place(cosines, first_row, 0);
    const bool in_words = layers == 2 && cosines.layers % 2 == 0;
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
#pragma unroll
      for (int first = 0; first < Tile::kColumns; first += kWarp) {
        const int column = first + lane_index();
        if (column >= columns) continue;
        T* const place = to + int64_t(column) * cosines.layers;
        const Word word = from[column];
        if (in_words) {
          *reinterpret_cast<Word*>(place) = word;
        } else {
          if (layers == 2) *reinterpret_cast<uint16_t*>(place) = uint16_t(word);
          reinterpret_cast<uint16_t*>(place)[layers - 1] = uint16_t(word >> 16);
        }
      }
      from += Tile::kPitch;
      to += int64_t(cosines.support.count) * cosines.layers;
    }
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
  if (weight_grad || !block.is_silent(cosines)) {
    block.template multiply<BYTES>(product, cosines);
  }
  const float* const query_inverse = block.query_inverse(cosines);
  const float* const support_inverse = block.support_inverse(cosines);
  const int64_t plane = block.batch * cosines.layers + block.layer;
  product.for_each([&](int row, int column, float& sum) {
    const int query = block.first_query + row, support = block.first_support + column;
    if (query >= queries || support >= supports) {
      sum = 0.0f;
      return;
    }
    const float cosine = sum * query_inverse[query] * support_inverse[support];
    const float value = static_cast<float>(
        grad[block.batch * grad_batch + (query * supports + support) * cosines.layers + block.layer]);
    sum = value * rectified(cosine);
    if (!cosine_grad) return;
    const float weight = block.weight(cosines, support);
    cosine_grad[(plane * queries + query) * supports + support] =
        T(weight == 0.0f ? 0.0f : (cosine <= 0.0f ? 0.0f : value) * weight);
  });
  if (!weight_grad) return;
  typename P::OfColumns totals;
  product.sum_columns(totals, reinterpret_cast<float*>(shared_memory()));
  if (!P::has_first_row()) return;
  const int64_t query_blocks = ceil_div(queries, int64_t(P::kRows));
  float* const out = weight_grad + (plane * query_blocks + block.query_block) * supports;
  P::for_each_column([&](int column, int j, int k) {
    column += block.first_support;
    if (column < supports) out[column] = totals[j][k];
  });
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
int64_t cosine_blocks(const Cosines<T>& cosines, int layers_of_block = 1) {
  return int64_t(cosines.batches) * ceil_div(cosines.layers, layers_of_block) *
         ceil_div(cosines.query.count, Tile::kRows) *
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
    const int64_t blocks = cosine_blocks<HopperTile>(cosines, HopperTile::kLayers);
    if (blocks > 0 && in_boxes(sizeof(T), cosines.channels) && runs_hopper_code()) {
      const auto map = [&](const Tokens<T>& tokens, int box) {
        return feature_map(cosines, tokens, box);
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

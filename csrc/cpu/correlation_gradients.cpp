// The gradients of the correlation to the features and to the support's weights.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <cmath>

#include "cosines.h"

namespace fsdino::cpu {
namespace {

constexpr int64_t kColumns = 256;  // tokens whose sums over the channels stay in the first cache
constexpr int64_t kPartial = 32;   // channels that are summed before they join the total

// sums[i] = sum over channels of term(channel, i), for i < count <= kColumns, in two levels.
template <typename A, typename Term>
void sum_over_channels(int64_t channels, int64_t count, const Term& term, A* sums) {
  std::fill_n(sums, count, A(0));
  for (int64_t first = 0; first < channels; first += kPartial) {
    A partial[kColumns] = {};
    for (int64_t c = first; c < std::min(first + kPartial, channels); ++c) {
      for (int64_t i = 0; i < count; ++i) partial[i] += term(c, i);
    }
    for (int64_t i = 0; i < count; ++i) sums[i] += partial[i];
  }
}

// All unit tokens at chosen positions, [C, positions.size()], rows `stride` apart and 0 behind.
template <typename T, typename U>
void unit_tokens(const Features<T>& features, int64_t b, int64_t layer,
                 const std::vector<int64_t>& positions, int64_t stride, U* out) {
  using A = Compute<T>;
  const int64_t count = static_cast<int64_t>(positions.size());
  const T* map = features.map(b, layer);
  std::vector<A> scales(count);
  for (int64_t i = 0; i < count; ++i) scales[i] = features.scale(b, layer, positions[i]);
  at::parallel_for(0, features.channels(), grain(count), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t i = 0; i < count; ++i) {
        const A value = static_cast<A>(map[c * features.tokens() + positions[i]]);
        out[c * stride + i] = static_cast<U>(value * scales[i]);
      }
      std::fill(out + c * stride + count, out + (c + 1) * stride, U(0));
    }
  });
}

template <typename A>
Tensor matrix(A* data, int64_t rows, int64_t columns) {
  return at::from_blob(const_cast<std::remove_const_t<A>*>(data), {rows, columns},
                       kScalar<std::remove_const_t<A>>);
}

// out [C, columns] += unit tokens at chosen positions, [C, positions], times a panel.
template <typename T>
void add_product(const Features<T>& features, int64_t b, int64_t layer,
                 const std::vector<int64_t>& positions, const Compute<T>* panel, int64_t columns,
                 Compute<T>* out) {
  using A = Compute<T>;
  const Simd<T>& functions = simd<T>();
  const int64_t steps = functions.steps(positions.size()), width = steps * functions.depth;
  const int64_t rows = features.channels(), room = functions.room(rows);
  const Scratch<T> left(room * width);
  unit_tokens(features, b, layer, positions, width, left.data());
  std::fill(left.data() + rows * width, left.data() + room * width, T(0));
  const A* words = reinterpret_cast<const A*>(left.data());
  const int64_t tile = functions.tile, block = functions.block;
  at::parallel_for(0, ceil_div(rows, block), grain(block * steps * columns),
                   [&](int64_t begin, int64_t end) {
    const Products<T> products;
    const Scratch<A> sums(functions.room(block) * tile);
    for (int64_t first = begin * block; first < std::min(end * block, rows);) {
      const int64_t count = functions.block_rows(rows - first);
      for (int64_t c = 0; c < columns; c += tile) {
        const int64_t width = std::min(tile, columns - c);
        std::fill_n(sums.data(), functions.room(count) * tile, A(0));
        functions.multiply_rows(words + first * steps, steps, steps, panel + c * steps, count, width,
                                sums.data(), tile);
        for (int64_t r = 0; r < count; ++r) {
          A* to = out + (first + r) * columns + c;
          for (int64_t i = 0; i < width; ++i) to[i] += sums.data()[r * tile + i];
        }
      }
      first += count;
    }
  });
}

// Operands of the products are of type P, sums of type A.
template <typename P, typename T>
void gradients_by(const Features<T>& query, const Features<T>& support, int64_t b, int64_t layer,
                  const std::vector<Row<const T>>& rows, const std::vector<Compute<T>>& weights,
                  const FeatureGradients<T>& gradients) {
  using A = Compute<T>;
  const int64_t tokens = query.tokens(), channels = query.channels();
  // Positions of weight 0 come last: they matter to the gradient of the weight only.
  std::vector<Row<const T>> chosen;
  for (const auto& row : rows) {
    if (weights[row.position] != 0) chosen.push_back(row);
  }
  const int64_t live = static_cast<int64_t>(chosen.size());
  for (const auto& row : rows) {
    if (weights[row.position] != 0) continue;
    if (gradients.weight) chosen.push_back(row);
    if (gradients.support) {
      for (int64_t c = 0; c < channels; ++c) {
        gradients.support[c * support.tokens() + row.position] = T(0);
      }
    }
  }
  std::vector<int64_t> positions;
  for (const auto& row : chosen) positions.push_back(row.position);
  const int64_t runs = ceil_div(tokens, simd<T>().tile);
  std::vector<double> weight_sums(gradients.weight ? chosen.size() * runs : 0);
  const Scratch<P> grad_cosine(live * tokens);
  cosines<T>(query, support, b, layer, positions,
             [&](int64_t row, int64_t count, int64_t first, int64_t columns, const A* tile,
                 int64_t stride) {
    for (int64_t r = row; r < row + count; ++r, tile += stride) {
      const T* grad = chosen[r].plane + first;
      if (gradients.weight) {
        double sum = 0;
        for (int64_t n = 0; n < columns; ++n) {
          sum += static_cast<A>(grad[n]) * (tile[n] <= 0 ? A(0) : tile[n]);
        }
        weight_sums[r * runs + first / simd<T>().tile] = sum;
      }
      if (r >= live) continue;
      P* out = grad_cosine.data() + r * tokens + first;
      const A weight = weights[positions[r]];
      for (int64_t n = 0; n < columns; ++n) {
        out[n] = static_cast<P>((tile[n] <= 0 ? A(0) : static_cast<A>(grad[n])) * weight);
      }
    }
  });
  for (size_t i = 0; i < weight_sums.size(); ++i) {
    gradients.weight[positions[i / runs]] += weight_sums[i];
  }
  positions.resize(live);
  if (live == 0) return;
  const Simd<T>& functions = simd<T>();
  if (gradients.unit_query) {
    if constexpr (std::is_same_v<P, A>) {
      const Scratch<A> units(channels * live);
      unit_tokens(support, b, layer, positions, live, units.data());
      matrix(gradients.unit_query, channels, tokens)
          .addmm_(matrix(units.data(), channels, live), matrix(grad_cosine.data(), live, tokens));
    } else {
      const int64_t steps = functions.steps(live);
      const Scratch<A> panel(steps * ceil_div(tokens, functions.tile) * functions.tile);
      functions.pack_scaled(grad_cosine.data(), tokens, live, nullptr, tokens,
                            steps * functions.tile, functions.tile, panel.data());
      add_product<T>(support, b, layer, positions, panel.data(), tokens, gradients.unit_query);
    }
  }
  if (gradients.support) {
    const Scratch<A> unit_grad(channels * live);
    if constexpr (std::is_same_v<P, A>) {
      const Scratch<A> units(channels * tokens);
      unit_tokens(query, b, layer, all_positions(tokens), tokens, units.data());
      Tensor out = matrix(unit_grad.data(), channels, live);
      at::mm_out(out, matrix(units.data(), channels, tokens),
                 matrix(grad_cosine.data(), live, tokens).t());
    } else {
      const int64_t steps = functions.steps(tokens);
      const Scratch<A> panel(steps * ceil_div(live, functions.tile) * functions.tile);
      functions.transpose(grad_cosine.data(), tokens, live, tokens, panel.data());
      std::fill_n(unit_grad.data(), channels * live, A(0));
      add_product<T>(query, b, layer, all_positions(tokens), panel.data(), live, unit_grad.data());
    }
    unit_backward<T>(support.map(b, layer), support.tokens(), positions, channels, support.eps(),
                     unit_grad.data(), gradients.support);
  }
}

}  // namespace

template <typename T>
void correlate_backward(const Features<T>& query, const Features<T>& support, int64_t b,
                        int64_t layer, const std::vector<Row<const T>>& rows,
                        const std::vector<Compute<T>>& weights,
                        const FeatureGradients<T>& gradients) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (simd<T>().depth > 1) {
    gradients_by<T>(query, support, b, layer, rows, weights, gradients);
  } else {
    gradients_by<Compute<T>>(query, support, b, layer, rows, weights, gradients);
  }
}

template <typename T>
void unit_backward(const T* tokens, int64_t map_size, const std::vector<int64_t>& positions,
                   int64_t channels, double eps, const Compute<T>* unit_grad, T* grad) {
  using A = Compute<T>;
  const int64_t all = static_cast<int64_t>(positions.size());
  at::parallel_for(0, ceil_div(all, kColumns), grain(channels * kColumns),
                   [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t first = run * kColumns, count = std::min(kColumns, all - first);
      const int64_t* places = positions.data() + first;
      const A* from = unit_grad + first;
      const auto token = [&](int64_t c, int64_t i) {
        return static_cast<A>(tokens[c * map_size + places[i]]);
      };
      A squares[kColumns], along[kColumns], inverse[kColumns];
      sum_over_channels<A>(channels, count,
                           [&](int64_t c, int64_t i) { return token(c, i) * token(c, i); }, squares);
      sum_over_channels<A>(channels, count,
                           [&](int64_t c, int64_t i) { return from[c * all + i] * token(c, i); },
                           along);
      for (int64_t i = 0; i < count; ++i) {
        const A length = std::sqrt(squares[i]);
        inverse[i] = A(1) / (length + static_cast<A>(eps));
        along[i] = length == 0 ? A(0) : along[i] / (length * (length + static_cast<A>(eps)));
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < count; ++i) {
          const A value = (from[c * all + i] - token(c, i) * along[i]) * inverse[i];
          grad[c * map_size + places[i]] = static_cast<T>(value);
        }
      }
    }
  });
}

#define FSDINO_INSTANTIATE(T)                                                                     \
  template void correlate_backward<T>(const Features<T>&, const Features<T>&, int64_t, int64_t,   \
                                      const std::vector<Row<const T>>&,                           \
                                      const std::vector<Compute<T>>&, const FeatureGradients<T>&); \
  template void unit_backward<T>(const T*, int64_t, const std::vector<int64_t>&, int64_t, double, \
                                 const Compute<T>*, T*)
FSDINO_INSTANTIATE(float);
FSDINO_INSTANTIATE(double);
FSDINO_INSTANTIATE(at::Half);
FSDINO_INSTANTIATE(at::BFloat16);
#undef FSDINO_INSTANTIATE

}  // namespace fsdino::cpu

// correlation4d, forward and backward.

#include "correlation.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <numeric>

namespace fsdino::cpu {
namespace {

constexpr int64_t kColumns = 256;  // tokens whose sums over the channels stay in the first cache
constexpr int64_t kPartial = 32;   // channels that are summed before they join the total
constexpr int64_t kPanel = 768 << 10;  // bytes of query features that stay in the second cache

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

// Features whose maps [C, H * W] are dense; those that batches or layers share are copied once.
Tensor dense_maps(const Tensor& features) {
  const bool dense = features.stride(4) == 1 && features.stride(3) == features.size(4) &&
                     features.stride(2) == features.size(3) * features.size(4);
  if (dense) return features;
  Tensor distinct = features;
  for (const int64_t dim : {0, 1}) {
    if (features.size(dim) > 1 && features.stride(dim) == 0) distinct = distinct.narrow(dim, 0, 1);
  }
  return distinct.contiguous().expand(features.sizes());
}

// A map's tokens at chosen positions, in blocks of rows as `multiply` reads them.
template <typename T>
void pack_tokens(const Features<T>& features, int64_t b, int64_t layer,
                 const std::vector<int64_t>& positions, Compute<T>* packed) {
  using A = Compute<T>;
  const Simd<T>& functions = simd<T>();
  const int64_t count = static_cast<int64_t>(positions.size()), channels = features.channels();
  const int64_t steps = functions.steps(channels), stride = features.tokens();
  const T* map = features.map(b, layer);
  const A* factors = features.factors(b, layer);
  // A line of the map is read once for all blocks of a span, a multiple of every block.
  constexpr int64_t kSpan = 128, kBlock = 32, kBytes = 1 << 20;
  const int64_t fit = kBytes / (steps * static_cast<int64_t>(sizeof(A))) / kBlock * kBlock;
  const int64_t span = std::clamp(fit, kBlock, kSpan);
  const int64_t width = ceil_div(span, functions.tile) * functions.tile;
  at::parallel_for(0, ceil_div(count, span), grain(channels * span), [&](int64_t begin, int64_t end) {
    const Scratch<A> words(steps * width);
    std::vector<T> chosen;
    std::vector<A> chosen_factors(span);
    for (int64_t first = begin * span; first < std::min(end * span, count); first += span) {
      const int64_t rows = std::min(span, count - first);
      const int64_t* places = positions.data() + first;
      const T* from = map + places[0];
      const A* scale = factors ? factors + places[0] : nullptr;
      int64_t row = stride;
      bool dense = true;
      for (int64_t i = 1; i < rows; ++i) dense = dense && places[i] == places[0] + i;
      if (!dense) {
        chosen.resize(channels * span);
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t i = 0; i < rows; ++i) chosen[c * rows + i] = map[c * stride + places[i]];
        }
        for (int64_t i = 0; factors && i < rows; ++i) chosen_factors[i] = factors[places[i]];
        from = chosen.data();
        if (factors) scale = chosen_factors.data();
        row = rows;
      }
      functions.pack_scaled(from, row, channels, scale, rows, functions.tile, width, words.data());
      for (int64_t r = 0; r < rows;) {
        const int64_t block = functions.block_rows(rows - r);
        functions.arrange(words.data() + r, width, steps, block, packed + (first + r) * steps);
        r += block;
      }
    }
  });
}

// Cosines of chosen support positions with all query positions, in tiles: calls
// sink(first position, positions, first query, queries, tile, its stride).
template <typename T, typename Sink>
void cosines(const Features<T>& query, const Features<T>& support, int64_t b, int64_t layer,
             const std::vector<int64_t>& positions, const Sink& sink) {
  using A = Compute<T>;
  const Simd<T>& functions = simd<T>();
  const int64_t count = static_cast<int64_t>(positions.size()), channels = query.channels();
  const int64_t tokens = query.tokens(), tile = functions.tile, steps = functions.steps(channels);
  const Scratch<A> packed(functions.room(count) * steps);
  pack_tokens(support, b, layer, positions, packed.data());

  const T* map = query.map(b, layer);
  const A *factors = query.factors(b, layer), *rest = query.rest(b, layer);
  const A* support_rest = support.rest(b, layer);
  // A block of support positions is multiplied by some tiles while it is in the first cache.
  const int64_t tiles = ceil_div(tokens, tile);
  const int64_t fit = kPanel / (steps * tile * static_cast<int64_t>(sizeof(A)));
  const int64_t group = std::clamp<int64_t>(std::min(fit, ceil_div(tiles, at::get_num_threads())), 1, 16);
  at::parallel_for(0, ceil_div(tiles, group), grain(channels * count * tile * group),
                   [&](int64_t begin, int64_t end) {
    const Scratch<A> panel(steps * tile * group);
    const Scratch<A> result(functions.block * tile);
    for (int64_t run = begin; run < end; ++run) {
      const int64_t first = run * tile * group, columns = std::min(tile * group, tokens - first);
      functions.pack_scaled(map + first, tokens, channels, factors ? factors + first : nullptr,
                            columns, steps * tile, tile, panel.data());
      for (int64_t row = 0; row < count;) {
        const int64_t rows = functions.block_rows(count - row);
        const A* left = packed.data() + row * steps;
        for (int64_t c = 0; c < columns; c += tile) {
          const int64_t width = std::min(tile, columns - c);
          functions.multiply(&left, 1, steps, panel.data() + c * steps, nullptr, rows, width,
                             result.data(), tile);
          for (int64_t r = 0; rest && r < rows; ++r) {
            functions.scale(result.data() + r * tile, support_rest[positions[row + r]],
                            rest + first + c, width);
          }
          sink(row, rows, first + c, width, result.data(), tile);
        }
        row += rows;
      }
    }
    if (functions.release) functions.release();
  });
}

// All unit tokens at chosen positions, [C, positions.size()].
template <typename T, typename U>
void unit_tokens(const Features<T>& features, int64_t b, int64_t layer,
                 const std::vector<int64_t>& positions, U* out) {
  using A = Compute<T>;
  const int64_t count = static_cast<int64_t>(positions.size());
  const T* map = features.map(b, layer);
  std::vector<A> scales(count);
  for (int64_t i = 0; i < count; ++i) scales[i] = features.scale(b, layer, positions[i]);
  at::parallel_for(0, features.channels(), grain(count), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t i = 0; i < count; ++i) {
        const A value = static_cast<A>(map[c * features.tokens() + positions[i]]);
        out[c * count + i] = static_cast<U>(value * scales[i]);
      }
    }
  });
}

template <typename A>
Tensor matrix(A* data, int64_t rows, int64_t columns) {
  return at::from_blob(const_cast<std::remove_const_t<A>*>(data), {rows, columns},
                       kScalar<std::remove_const_t<A>>);
}

template <typename T>
Tensor forward(const Tensor& query, const Tensor& support, const MaybeTensor& support_weight,
               double eps) {
  const Features<T> queries(query, eps), supports(support, eps);
  Tensor out = empty({query.size(0), query.size(1), support.size(3), support.size(4),
                      query.size(3), query.size(4)}, query.options());
  T* planes = out.mutable_data_ptr<T>();
  const int64_t layers = queries.layers(), positions = supports.tokens(), count = queries.tokens();
  for_each_map(queries.batch(), layers, [&](int64_t b, int64_t layer) {
    std::vector<Row<T>> rows(positions);
    for (int64_t p = 0; p < positions; ++p) {
      rows[p] = {p, planes + ((b * layers + layer) * positions + p) * count};
    }
    correlate<T>(queries, supports, b, layer, rows, weights_of<T>(support_weight, b, positions));
  });
  return from_planes(out);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& query,
                                            const Tensor& support,
                                            const MaybeTensor& support_weight, double eps,
                                            bool need_query, bool need_support, bool need_weight) {
  using A = Compute<T>;
  const Features<T> queries(query, eps), supports(support, eps);
  const Tensor planes = to_planes(grad);
  const T* incoming = planes.const_data_ptr<T>();
  const int64_t batch = queries.batch(), layers = queries.layers(), channels = queries.channels();
  const int64_t positions = supports.tokens(), count = queries.tokens();
  Tensor grad_query = at::empty({0}, query.options()), grad_support = grad_query.clone();
  Tensor grad_weight = grad_query.clone();
  if (need_query) grad_query = at::empty(query.sizes(), query.options());
  if (need_support) grad_support = at::empty(support.sizes(), support.options());
  std::vector<double> weight_sums(need_weight ? batch * layers * positions : 0);
  T* to_query = need_query ? grad_query.mutable_data_ptr<T>() : nullptr;
  T* to_support = need_support ? grad_support.mutable_data_ptr<T>() : nullptr;
  for_each_map(batch, layers, [&](int64_t b, int64_t layer) {
    const int64_t map = b * layers + layer;
    std::vector<Row<const T>> rows(positions);
    for (int64_t p = 0; p < positions; ++p) {
      rows[p] = {p, incoming + (map * positions + p) * count};
    }
    const Scratch<A> unit_query(need_query ? channels * count : 0);
    if (need_query) std::fill_n(unit_query.data(), channels * count, A(0));
    correlate_backward<T>(
        queries, supports, b, layer, rows, weights_of<T>(support_weight, b, positions),
        {need_query ? unit_query.data() : nullptr,
         need_support ? to_support + map * channels * positions : nullptr,
         need_weight ? weight_sums.data() + map * positions : nullptr});
    if (need_query) {
      unit_backward<T>(queries.map(b, layer), count, all_positions(count), channels, eps,
                       unit_query.data(), to_query + map * channels * count);
    }
  });
  if (need_weight) {
    grad_weight = sum_layers(weight_sums, batch, layers, support.sizes().slice(3))
                      .to(query.scalar_type());
  }
  return {grad_query, grad_support, grad_weight};
}

}  // namespace

std::vector<int64_t> all_positions(int64_t count) {
  std::vector<int64_t> positions(count);
  std::iota(positions.begin(), positions.end(), 0);
  return positions;
}

Tensor sum_layers(const std::vector<double>& sums, int64_t batch, int64_t layers,
                  at::IntArrayRef support) {
  Tensor total = at::zeros({batch, support[0], support[1]}, at::kDouble);
  const int64_t positions = support[0] * support[1];
  for (size_t i = 0; i < sums.size(); ++i) {
    const int64_t position = static_cast<int64_t>(i) % positions;
    const int64_t b = static_cast<int64_t>(i) / positions / layers;
    total.mutable_data_ptr<double>()[b * positions + position] += sums[i];
  }
  return total;
}

template <typename T>
Features<T>::Features(const Tensor& features, double eps)
    : tensor_(dense_maps(features)), eps_(eps), scales_(batch() * layers() * tokens()) {
  const int64_t runs = ceil_div(tokens(), kColumns);
  at::parallel_for(0, batch() * layers() * runs, grain(channels() * kColumns),
                   [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t map = task / runs, first = task % runs * kColumns;
      const int64_t count = std::min(kColumns, tokens() - first);
      A squares[kColumns];
      simd<T>().sum_squares(this->map(map / layers(), map % layers()) + first, tokens(),
                            channels(), count, squares);
      for (int64_t i = 0; i < count; ++i) {
        scales_[map * tokens() + first + i] = A(1) / (std::sqrt(squares[i]) + static_cast<A>(eps_));
      }
    }
  });
  if (simd<T>().depth == 1) return;
  // Words of two values hold tokens as they are: scaled, they would be rounded once more. Their
  // products are scaled, unless those could leave the range of A; then powers of 2 bring them back.
  constexpr A kFar = A(1 << 30);
  for (const A scale : scales_) extreme_ = extreme_ || !(scale < kFar && scale * kFar > 1);
  if (!extreme_) return;
  factors_.resize(scales_.size());
  for (size_t i = 0; i < scales_.size(); ++i) {
    int exponent = 0;
    std::frexp(scales_[i], &exponent);
    factors_[i] = scales_[i] == 0 || std::isnan(scales_[i]) ? scales_[i] : std::ldexp(A(1), exponent);
    if (scales_[i] != 0) scales_[i] /= factors_[i];
  }
}

template <typename T>
std::vector<Compute<T>> weights_of(const MaybeTensor& weight, int64_t b, int64_t positions) {
  if (!weight) return std::vector<Compute<T>>(positions, 1);
  const Tensor row = weight->select(0, b).contiguous();
  const T* values = row.const_data_ptr<T>();
  return {values, values + positions};
}

template <typename T>
void correlate(const Features<T>& query, const Features<T>& support, int64_t b, int64_t layer,
               const std::vector<Row<T>>& rows, const std::vector<Compute<T>>& weights) {
  using A = Compute<T>;
  std::vector<int64_t> positions;
  std::vector<T*> planes;
  for (const Row<T>& row : rows) {
    if (weights[row.position] == 0) {
      std::fill_n(row.plane, query.tokens(), T(0));
    } else {
      positions.push_back(row.position);
      planes.push_back(row.plane);
    }
  }
  cosines<T>(query, support, b, layer, positions,
             [&](int64_t row, int64_t count, int64_t first, int64_t columns, const A* tile,
                 int64_t stride) {
    for (int64_t r = 0; r < count; ++r, tile += stride) {
      const A weight = weights[positions[row + r]];
      T* out = planes[row + r] + first;
      simd<T>().relu_scale(tile, weight, columns, out);
    }
  });
}

// Of the products behind the gradients, operands are of type P, sums of type A.
template <typename P, typename T>
void backward_products(const Features<T>& query, const Features<T>& support, int64_t b,
                       int64_t layer, const std::vector<Row<const T>>& rows,
                       const std::vector<Compute<T>>& weights,
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
  const Tensor grads = matrix(grad_cosine.data(), live, tokens);
  if (gradients.unit_query) {
    const Scratch<P> units(channels * live);
    unit_tokens(support, b, layer, positions, units.data());
    Tensor total = matrix(gradients.unit_query, channels, tokens);
    const Tensor left = matrix(units.data(), channels, live);
    if constexpr (std::is_same_v<P, A>) {
      total.addmm_(left, grads);
    } else {
      total.add_(at::mm(left, grads));
    }
  }
  if (gradients.support) {
    const Scratch<P> units(channels * tokens);
    unit_tokens(query, b, layer, all_positions(tokens), units.data());
    const Tensor product = at::mm(matrix(units.data(), channels, tokens), grads.t());
    unit_backward<T>(support.map(b, layer), support.tokens(), positions, channels, support.eps(),
                     product.to(kScalar<A>).template const_data_ptr<A>(), gradients.support);
  }
}

template <typename T>
void correlate_backward(const Features<T>& query, const Features<T>& support, int64_t b,
                        int64_t layer, const std::vector<Row<const T>>& rows,
                        const std::vector<Compute<T>>& weights,
                        const FeatureGradients<T>& gradients) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  // PyTorch's products of bfloat16 are fast where ours have instructions for them.
  if (simd<T>().depth == 2) {
    backward_products<T>(query, support, b, layer, rows, weights, gradients);
  } else {
    backward_products<Compute<T>>(query, support, b, layer, rows, weights, gradients);
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
  template class Features<T>;                                                                     \
  template std::vector<Compute<T>> weights_of<T>(const MaybeTensor&, int64_t, int64_t);           \
  template void correlate<T>(const Features<T>&, const Features<T>&, int64_t, int64_t,            \
                             const std::vector<Row<T>>&, const std::vector<Compute<T>>&);         \
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

Tensor correlation4d(const Tensor& query, const Tensor& support, const MaybeTensor& support_weight,
                     double eps) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return FSDINO_DISPATCH(query, "correlation4d", [&] {
    return forward<scalar_t>(query, support, support_weight, eps);
  });
}

std::tuple<Tensor, Tensor, Tensor> correlation4d_backward(const Tensor& grad, const Tensor& query,
                                                          const Tensor& support,
                                                          const MaybeTensor& support_weight,
                                                          double eps, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return FSDINO_DISPATCH(query, "correlation4d_backward", [&] {
    return backward<scalar_t>(grad, query, support, support_weight, eps, needs[0], needs[1],
                              support_weight && needs[2]);
  });
}

}  // namespace fsdino::cpu

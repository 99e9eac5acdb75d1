// correlation4d, forward and backward.

#include "cosines.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <numeric>

namespace fsdino::cpu {
namespace {

constexpr int64_t kColumns = 256;  // tokens whose sums over the channels stay in the first cache

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

template <typename T>
Tensor forward(const Tensor& query, const Tensor& support, const MaybeTensor& support_weight,
               double eps) {
  const Features<T> queries(query, eps), supports(support, eps);
  Tensor out = empty({query.size(0), query.size(1), support.size(3), support.size(4),
                      query.size(3), query.size(4)}, query.scalar_type());
  T* planes = out.mutable_data_ptr<T>();
  const int64_t layers = queries.layers(), positions = supports.tokens(), count = queries.tokens();
  const int64_t cost = queries.channels() * positions * count;
  for_each_map(queries.batch(), layers, cost, [&](int64_t b, int64_t layer) {
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
  for_each_map(batch, layers, channels * positions * count, [&](int64_t b, int64_t layer) {
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

#define FSDINO_INSTANTIATE(T)                                                                     \
  template class Features<T>;                                                                     \
  template std::vector<Compute<T>> weights_of<T>(const MaybeTensor&, int64_t, int64_t);           \
  template void correlate<T>(const Features<T>&, const Features<T>&, int64_t, int64_t,            \
                             const std::vector<Row<T>>&, const std::vector<Compute<T>>&)
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

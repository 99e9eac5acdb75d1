// correlation_center_pivot4d: the convolution of a correlation that is never held.
//
// A ring holds the correlation of the support rows that a band of output rows needs.

#include <ATen/core/LegacyTypeDispatch.h>

#include "convolution.h"
#include "correlation.h"
#include "ring.h"

namespace fsdino::cpu {
namespace {

template <typename T>
Tensor forward(const Tensor& query, const Tensor& support, const MaybeTensor& support_weight,
               const Tensor& weight_query, const Tensor& weight_support, const MaybeTensor& bias,
               int64_t support_stride, double eps) {
  const Geometry g = geometry_of(query.sizes().slice(3), support.sizes().slice(3), weight_query,
                                 weight_support, support_stride);
  const Features<T> queries(query, eps), supports(support, eps);
  const int64_t batch = query.size(0), outer = weight_query.size(0);
  const Convolution<T> convolution(g, weight_query, weight_support, bias, false);
  Tensor y = empty({batch, outer, g.kept_height(), g.kept_width(), g.query_height,
                    g.query_width}, query.scalar_type());
  const Ring<T> ring(g, queries.layers(), CorrelationRows<T>::kBytes);
  for (int64_t b = 0; b < batch; ++b) {
    const auto out = sample<T>(y.mutable_data_ptr<T>(), b, outer, g.kept_height(), g.kept_width(),
                               g.query());
    ring.walk(CorrelationRows<T>(g, queries, supports, support_weight, b),
              [&](const Planes<const T>& rows, int64_t row, int64_t last) {
      convolution.run({rows}, {out}, row, last);
    });
  }
  return from_planes(y);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& query, const Tensor& support,
    const MaybeTensor& support_weight, const Tensor& weight_query, const Tensor& weight_support,
    int64_t support_stride, double eps, const std::array<bool, 6>& needs) {
  using A = Compute<T>;
  const Geometry g = geometry_of(query.sizes().slice(3), support.sizes().slice(3), weight_query,
                                 weight_support, support_stride);
  const Features<T> queries(query, eps), supports(support, eps);
  const int64_t batch = query.size(0), layers = query.size(1), channels = query.size(2);
  const int64_t outer = weight_query.size(0), count = g.query(), positions = supports.tokens();
  const Tensor planes = to_planes(grad);
  const auto grads_of = [&](int64_t b) {
    return sample<const T>(planes.const_data_ptr<T>(), b, outer, g.kept_height(), g.kept_width(),
                           count);
  };
  const auto like = [&](bool need, const Tensor& tensor) {
    return need ? at::empty(tensor.sizes(), tensor.options()) : at::empty({0}, tensor.options());
  };
  Tensor grad_query = like(needs[0], query), grad_support = like(needs[1], support);
  Tensor grad_weight_query = like(needs[3], weight_query);
  Tensor grad_weight_support = like(needs[4], weight_support);

  if (needs[3] || needs[4]) {
    const Ring<T> ring(g, layers, CorrelationRows<T>::kBytes);
    WeightGradient<T> sums(g, outer, layers, ring.band() * g.kept_width());
    for (int64_t b = 0; b < batch; ++b) {
      ring.walk(CorrelationRows<T>(g, queries, supports, support_weight, b),
                [&](const Planes<const T>& rows, int64_t row, int64_t last) {
        sums.add({grads_of(b)}, {rows}, row, last);
      });
    }
    sums.finish(grad_weight_query, grad_weight_support);
  }

  std::vector<double> weight_sums(needs[2] ? batch * layers * positions : 0);
  if (needs[0] || needs[1] || needs[2]) {
    const Convolution<T> convolution(g, weight_query, weight_support, std::nullopt, true);
    // The gradient to a band of support rows of the correlation, [L, band, Ws, N]: enough rows for
    // matrix products of a good size.
    const int64_t band = std::min(ceil_div(256, g.support_width), g.support_height);
    const int64_t row_size = g.support_width * count;
    const Scratch<T> memory(layers * band * row_size);
    const Planes<T> band_grad{memory.data(), band * row_size, row_size, count, band};
    const Scratch<A> unit_query(needs[0] ? layers * channels * count : 0);
    for (int64_t b = 0; b < batch; ++b) {
      std::fill_n(unit_query.data(), needs[0] ? layers * channels * count : 0, A(0));
      const std::vector<A> weights = weights_of<T>(support_weight, b, positions);
      for (int64_t top = 0; top < g.support_height; top += band) {
        const int64_t bottom = std::min(top + band, g.support_height);
        convolution.run({grads_of(b)}, {band_grad}, top, bottom);
        const int64_t cost = channels * (bottom - top) * g.support_width * count;
        for_each_map(1, layers, cost, [&](int64_t, int64_t layer) {
          const int64_t map = b * layers + layer;
          std::vector<Row<const T>> rows;
          for (int64_t i = top; i < bottom; ++i) {
            for (int64_t j = 0; j < g.support_width; ++j) {
              rows.push_back({i * g.support_width + j, band_grad.at(layer, i, j)});
            }
          }
          correlate_backward<T>(
              queries, supports, b, layer, rows, weights,
              {needs[0] ? unit_query.data() + layer * channels * count : nullptr,
               needs[1] ? grad_support.mutable_data_ptr<T>() + map * channels * positions : nullptr,
               needs[2] ? weight_sums.data() + map * positions : nullptr});
        });
      }
      for (int64_t layer = 0; needs[0] && layer < layers; ++layer) {
        unit_backward<T>(queries.map(b, layer), count, all_positions(count), channels, eps,
                         unit_query.data() + layer * channels * count,
                         grad_query.mutable_data_ptr<T>() + (b * layers + layer) * channels * count);
      }
    }
  }
  Tensor grad_weight = at::empty({0}, query.options());
  if (needs[2]) {
    grad_weight = sum_layers(weight_sums, batch, layers, support.sizes().slice(3))
                      .to(query.scalar_type());
  }
  Tensor grad_bias = at::empty({0}, query.options());
  if (needs[5]) grad_bias = sum_channels(planes).to(weight_query.scalar_type());
  return {grad_query, grad_support, grad_weight, grad_weight_query, grad_weight_support, grad_bias};
}

}  // namespace

Tensor correlation_center_pivot4d(const Tensor& query, const Tensor& support,
                                  const MaybeTensor& support_weight, const Tensor& weight_query,
                                  const Tensor& weight_support, const MaybeTensor& bias,
                                  int64_t support_stride, double eps) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return FSDINO_DISPATCH(query, "correlation_center_pivot4d", [&] {
    return forward<scalar_t>(query, support, support_weight, weight_query, weight_support, bias,
                             support_stride, eps);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> correlation_center_pivot4d_backward(
    const Tensor& grad, const Tensor& query, const Tensor& support,
    const MaybeTensor& support_weight, const Tensor& weight_query, const Tensor& weight_support,
    int64_t support_stride, double eps, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return FSDINO_DISPATCH(query, "correlation_center_pivot4d_backward", [&] {
    return backward<scalar_t>(grad, query, support, support_weight, weight_query, weight_support,
                              support_stride, eps,
                              {needs[0], needs[1], support_weight && needs[2], needs[3], needs[4],
                               needs[5]});
  });
}

}  // namespace fsdino::cpu

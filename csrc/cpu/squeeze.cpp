// squeeze4d: the correlation and the blocks behind it.
//
// The correlation passes through a ring. Each convolution leaves its output as it is, and the next one
// normalises what it reads, so that no volume but these is written.

#include <ATen/core/LegacyTypeDispatch.h>

#include "convolution.h"
#include "correlation.h"
#include "normalise.h"
#include "ring.h"

namespace fsdino::cpu {
namespace {

struct Blocks {
  at::TensorList weights_query, weights_support;
  const MaybeTensors& biases;
  at::TensorList norm_weights, norm_biases;
  at::IntArrayRef strides;
  int64_t groups;
  double norm_eps;

  size_t count() const { return strides.size(); }
  template <typename T>
  std::vector<Affine<Compute<T>>> affines(size_t i, const std::vector<Moments>& moments) const {
    return affines_of<T>(moments, groups, norm_weights[i], norm_biases[i], norm_eps);
  }
};

template <typename T>
Tensor forward(const Tensor& query, const Tensor& support, const MaybeTensor& support_weight,
               const Blocks& blocks, double eps) {
  using A = Compute<T>;
  const Features<T> queries(query, eps), supports(support, eps);
  std::vector<Geometry> geometries;
  std::vector<Convolution<T>> convolutions;
  at::DimVector size(support.sizes().slice(3));  // of the support that a block reads
  for (size_t i = 0; i < blocks.count(); ++i) {
    geometries.push_back(geometry_of(query.sizes().slice(3), size, blocks.weights_query[i],
                                     blocks.weights_support[i], blocks.strides[i]));
    convolutions.emplace_back(geometries[i], blocks.weights_query[i], blocks.weights_support[i],
                              blocks.biases.get(i), false);
    size = {geometries[i].kept_height(), geometries[i].kept_width()};
  }
  const auto volume = [&](size_t i) {
    const Geometry& g = geometries[i];
    return empty({1, blocks.weights_query[i].size(0), g.kept_height(), g.kept_width(),
                  g.query_height, g.query_width}, query.options());
  };

  const int64_t batch = query.size(0), outer = blocks.weights_query.back().size(0);
  Tensor y = at::empty({batch, outer, query.size(3), query.size(4)}, query.options());
  Ring<T> ring(geometries[0], queries, supports);
  for (int64_t b = 0; b < batch; ++b) {
    Tensor raw = volume(0);
    std::vector<Moments> moments(blocks.groups);
    ring.start(b, support_weight);
    for (int64_t row = 0; row < geometries[0].kept_height(); row += ring.band()) {
      const int64_t end = std::min(row + ring.band(), geometries[0].kept_height());
      convolutions[0].run({ring.advance(row, end)}, {}, targets_of<T>(raw), row, end, blocks.groups,
                          &moments);
    }
    std::vector<Affine<A>> affines = blocks.affines<T>(0, moments);
    for (size_t i = 1; i < blocks.count(); ++i) {
      const Tensor next = volume(i);
      moments.assign(blocks.groups, {});
      convolutions[i].run(sources_of<T>(raw), affines, targets_of<T>(next), 0,
                          geometries[i].kept_height(), blocks.groups, &moments);
      affines = blocks.affines<T>(i, moments);
      raw = next;
    }
    y[b].copy_(normalise<T>(raw, affines, true, false)[0]);
  }
  return y;
}

}  // namespace

Tensor squeeze4d(const Tensor& query, const Tensor& support, const MaybeTensor& support_weight,
                 at::TensorList weights_query, at::TensorList weights_support,
                 const MaybeTensors& biases, at::TensorList norm_weights,
                 at::TensorList norm_biases, at::IntArrayRef support_strides, int64_t num_groups,
                 double norm_eps, double eps) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Blocks blocks{weights_query, weights_support, biases,     norm_weights,
                      norm_biases,   support_strides, num_groups, norm_eps};
  return FSDINO_DISPATCH(query, "squeeze4d", [&] {
    return forward<scalar_t>(query, support, support_weight, blocks, eps);
  });
}

}  // namespace fsdino::cpu

// squeeze4d: the correlation and the blocks behind it.
//
// The correlation passes through a ring. Each convolution leaves its output as it is, and what the next
// one reads of it passes through a ring, too, normalised: no other volume is written. Rows of a large
// one are given back when they have been read, so that two are never whole at a time.

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

// Fills a ring with relu(affine of raw), one affine step for each channel; raw's rows, each of all
// channels, are read once.
template <typename T>
struct NormalisedRows {
  // Few enough to stay in a cache.
  static constexpr int64_t kBytes = 16 << 20;
  // Smaller volumes are kept: their pages would have to be cleared again in the next call.
  static constexpr int64_t kLarge = 64 << 20;

  const Planes<T>& raw;
  const std::vector<Affine<Compute<T>>>& affines;
  int64_t width, query;

  void operator()(int64_t begin, int64_t end, const Planes<T>& planes) const {
    const int64_t channels = static_cast<int64_t>(affines.size()), rows = end - begin;
    at::parallel_for(0, channels * rows * width, grain(query), [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t c = task / (rows * width), i = begin + task / width % rows, j = task % width;
        simd<T>().affine_relu(raw.at(c, i, j), affines[c], query, planes.at(c, i, j));
      }
    });
    const int64_t row_bytes = raw.row * static_cast<int64_t>(sizeof(T));
    if (raw.rows * row_bytes >= kLarge) discard(raw.at(0, begin, 0), rows * row_bytes);
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
  const int64_t batch = query.size(0), outer = blocks.weights_query.back().size(0);
  Tensor y = at::empty({batch, outer, query.size(3), query.size(4)}, query.options());
  for (int64_t b = 0; b < batch; ++b) {
    Tensor memory;  // of the volume that the next block reads
    Planes<T> raw{};
    std::vector<Affine<A>> affines;
    for (size_t i = 0; i < blocks.count(); ++i) {
      const Geometry& g = geometries[i];
      const int64_t inner = blocks.weights_query[i].size(1), channels = blocks.weights_query[i].size(0);
      const int64_t row_size = g.kept_width() * g.query();
      const bool last = i + 1 == blocks.count();
      // Rows outermost, so that they can be given back; the last is whole, for its mean.
      const Tensor next = empty({1, channels, g.kept_height(), g.kept_width(), g.query_height,
                                  g.query_width}, query.scalar_type());
      const Planes<T> target = last ? targets_of<T>(next)[0]
                                    : Planes<T>{next.mutable_data_ptr<T>(), row_size,
                                                channels * row_size, g.query(), g.kept_height()};
      std::vector<Moments> moments(blocks.groups);
      const auto use = [&](const Planes<const T>& rows, int64_t row, int64_t end) {
        convolutions[i].run({rows}, {target}, row, end, blocks.groups, &moments);
      };
      const int64_t bytes = i ? NormalisedRows<T>::kBytes : CorrelationRows<T>::kBytes;
      const Ring<T> ring(g, inner, bytes);
      if (i == 0) {
        ring.walk(CorrelationRows<T>(g, queries, supports, support_weight, b), use);
      } else {
        ring.walk(NormalisedRows<T>{raw, affines, g.support_width, g.query()}, use);
      }
      affines = blocks.affines<T>(i, moments);
      memory = next;
      raw = target;
    }
    y[b].copy_(normalise<T>(memory, affines, true, false)[0]);
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

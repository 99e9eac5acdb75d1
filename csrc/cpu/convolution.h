// The center-pivot convolution and the gradients to its weights, on planes.

#pragma once

#include <cmath>

#include "../ops.h"
#include "walk.h"

namespace fsdino::cpu {

inline Geometry geometry_of(at::IntArrayRef query, at::IntArrayRef support,
                            const Tensor& weight_query, const Tensor& weight_support,
                            int64_t support_stride) {
  return {query[0], query[1], support[0], support[1], weight_query.size(2), weight_support.size(2),
          support_stride};
}

// A vector in the type to compute in; empty where there is none.
template <typename T>
std::vector<Compute<T>> vector_of(const MaybeTensor& values) {
  if (!values) return {};
  const Tensor dense = values->contiguous();
  const T* data = dense.template const_data_ptr<T>();
  return {data, data + dense.numel()};
}

// Mean, the sum of `mean` and `low`, and sum of squared distances from it, of `count` values.
struct Moments {
  double count = 0, mean = 0, low = 0, squares = 0;

  void add(const Moments& other);
  double deviation(double eps) const { return std::sqrt(squares / count + eps); }
};

// Samples of contiguous planes [B, C, H, W, Hq, Wq].
template <typename T>
std::vector<Planes<const T>> sources_of(const Tensor& planes) {
  std::vector<Planes<const T>> samples;
  for (int64_t b = 0; b < planes.size(0); ++b) {
    samples.push_back(sample(planes.const_data_ptr<T>(), b, planes.size(1), planes.size(2),
                             planes.size(3), planes.size(4) * planes.size(5)));
  }
  return samples;
}

template <typename T>
std::vector<Planes<T>> targets_of(const Tensor& planes) {
  std::vector<Planes<T>> samples;
  for (int64_t b = 0; b < planes.size(0); ++b) {
    samples.push_back(sample(planes.mutable_data_ptr<T>(), b, planes.size(1), planes.size(2),
                             planes.size(3), planes.size(4) * planes.size(5)));
  }
  return samples;
}

// The convolution, or with `backward` the gradient to its input, as sums over planes.
template <typename T>
class Convolution {
 public:
  using A = Compute<T>;
  Convolution(const Geometry& geometry, const Tensor& weight_query, const Tensor& weight_support,
              const MaybeTensor& bias, bool backward);

  // Computes rows begin .. end - 1 of the targets, one target for each source. With `groups`, also
  // the moments of these rows for each sample and group, [B, G], gathered run by run while it is in
  // cache and added in order.
  void run(const std::vector<Planes<const T>>& sources, const std::vector<Planes<T>>& targets,
           int64_t begin, int64_t end, int64_t groups = 0,
           std::vector<Moments>* moments = nullptr) const;

 private:
  // Weights that are not finite, at the edges of the grids. There the convolution multiplies them by
  // its padding, 0, which `sum_terms` leaves out over the support; its gradient does not, but
  // `sum_terms` does over the query.
  void mend_edges(const Planes<const T>& source, const std::vector<Term>& terms, int64_t first,
                  int64_t columns, A* tile, int64_t stride) const;

  Geometry geometry_;
  bool backward_;
  PackedWeights<T> weights_;
  Packer<T> packer_;
  std::vector<A> offset_;
};

// Adds up the gradients to both weights: for every output plane, the rows [taps * Ci, N] of its
// sources times the transposed gradient [N, Co]. Planes are dealt to a fixed number of sums, which are
// added in order, so that the result does not depend on the number of threads.
template <typename T>
class WeightGradient {
 public:
  using A = Compute<T>;

  // At most `planes` output planes are added in one call.
  WeightGradient(const Geometry& geometry, int64_t outer, int64_t inner, int64_t planes);

  // Adds output rows begin .. end - 1 of samples, each with its gradient and its source.
  void add(const std::vector<Planes<const T>>& grads, const std::vector<Planes<const T>>& sources,
           int64_t begin, int64_t end);

  // Writes gradients like the weights; those of size 0 are not asked for.
  void finish(Tensor& weight_query, Tensor& weight_support) const;

 private:
  void add_plane(const Planes<const T>& grad, const Planes<const T>& source, int64_t row,
                 int64_t column, A* total);

  Geometry geometry_;
  Packer<T> packer_;
  int64_t outer_, inner_, sums_, steps_, rows_, columns_;
  Tensor totals_;  // [sums, taps * Ci and more, Co and more]
  Scratch<A> lefts_, panels_;
};

// Sum over everything but the channels of planes [B, C, ...]: [C].
Tensor sum_channels(const Tensor& planes);

}  // namespace fsdino::cpu

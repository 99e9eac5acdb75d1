// Pieces of the correlation that the fused op shares.

#pragma once

#include <vector>

#include "../ops.h"
#include "planes.h"

namespace fsdino::cpu {

// Features [B, L, C, H, W] whose maps [C, H * W] are dense; batch and layers may be expanded, so
// that K shots of one query are read, not copied.
template <typename T>
class Features {
 public:
  using A = Compute<T>;
  Features(const Tensor& features, double eps);

  int64_t batch() const { return tensor_.size(0); }
  int64_t layers() const { return tensor_.size(1); }
  int64_t channels() const { return tensor_.size(2); }
  int64_t tokens() const { return tensor_.size(3) * tensor_.size(4); }
  double eps() const { return eps_; }

  // [C, tokens].
  const T* map(int64_t b, int64_t layer) const {
    return tensor_.const_data_ptr<T>() + b * tensor_.stride(0) + layer * tensor_.stride(1);
  }
  // 1 / (length + eps) of a token; of every token of a map what it is multiplied by before a product,
  // and what the result still is to be multiplied by. Null for 1.
  const A* factors(int64_t b, int64_t layer) const {
    return simd<T>().depth == 1 ? of(scales_, b, layer) : extreme_ ? of(factors_, b, layer) : nullptr;
  }
  A scale(int64_t b, int64_t layer, int64_t token) const {
    const A scale = of(scales_, b, layer)[token];
    return extreme_ ? scale * of(factors_, b, layer)[token] : scale;
  }
  const A* rest(int64_t b, int64_t layer) const {
    return simd<T>().depth == 1 ? nullptr : of(scales_, b, layer);
  }

 private:
  const A* of(const std::vector<A>& values, int64_t b, int64_t layer) const {
    return values.data() + (b * layers() + layer) * tokens();
  }

  Tensor tensor_;
  double eps_;
  bool extreme_ = false;
  std::vector<A> scales_, factors_;
};

// A plane of the correlation: its support position, and the plane itself, [N].
template <typename T>
struct Row {
  int64_t position;
  T* plane;
};

// Computes planes relu(cosine) * weight of one sample and layer; those of weight 0 become 0 without
// a look at their features. weights: of every support position.
template <typename T>
void correlate(const Features<T>& query, const Features<T>& support, int64_t b, int64_t layer,
               const std::vector<Row<T>>& rows, const std::vector<Compute<T>>& weights);

// Where the gradients of one sample and layer go; null where nobody asks.
template <typename T>
struct FeatureGradients {
  Compute<T>* unit_query;  // [C, N]: added to
  T* support;              // [C, Hs * Ws]: written at the positions of the rows
  double* weight;          // [Hs * Ws]: added to
};

// Gradients from the gradients to some planes.
template <typename T>
void correlate_backward(const Features<T>& query, const Features<T>& support, int64_t b,
                        int64_t layer, const std::vector<Row<const T>>& rows,
                        const std::vector<Compute<T>>& weights,
                        const FeatureGradients<T>& gradients);

// The gradient to tokens [C, positions of a map], at chosen positions, from the gradient to their
// unit tokens, [C, positions.size()].
template <typename T>
void unit_backward(const T* tokens, int64_t map_size, const std::vector<int64_t>& positions,
                   int64_t channels, double eps, const Compute<T>* unit_grad, T* grad);

// Weights [B, Hs, Ws] of sample `b`; 1 where there are none.
template <typename T>
std::vector<Compute<T>> weights_of(const MaybeTensor& weight, int64_t b, int64_t positions);

std::vector<int64_t> all_positions(int64_t count);

// [B, L, Hs * Ws] summed over the layers: float64 [B, Hs, Ws].
Tensor sum_layers(const std::vector<double>& sums, int64_t batch, int64_t layers,
                  at::IntArrayRef support);

// Runs `work` for every sample and layer: side by side where they fill the threads evenly, else one
// after the other, each on all threads. cost: products of one of them.
template <typename F>
void for_each_map(int64_t batch, int64_t layers, int64_t cost, const F& work) {
  const int64_t pairs = batch * layers, threads = at::get_num_threads();
  const bool even = pairs % threads == 0 || pairs >= 4 * threads;
  const int64_t together = even ? grain(cost) : std::max<int64_t>(1, pairs);
  at::parallel_for(0, pairs, together, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) work(pair / layers, pair % layers);
  });
}

}  // namespace fsdino::cpu

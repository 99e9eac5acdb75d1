// The center-pivot convolution as a sum over planes: which planes, shifted how, times which weights.

#pragma once

#include <vector>

#include "planes.h"

namespace fsdino::cpu {

struct Geometry {
  int64_t query_height, query_width;      // Hq, Wq
  int64_t support_height, support_width;  // Hs, Ws
  int64_t query_kernel, support_kernel;   // kq, ks
  int64_t stride;

  int64_t query() const { return query_height * query_width; }
  int64_t kept_height() const { return ceil_div(support_height, stride); }
  int64_t kept_width() const { return ceil_div(support_width, stride); }
  // Taps of both kernels: the query's first.
  int64_t query_taps() const { return query_kernel * query_kernel; }
  int64_t taps() const { return query_taps() + support_kernel * support_kernel; }
};

// One term of the sum at a plane: a source plane, moved over the query, times the weights of a tap.
struct Term {
  int64_t row, column;  // of the source plane
  int64_t down, right;  // the value at query position (y, x) comes from (y + down, x + right)
  int64_t tap;
};

// The terms of output plane (row, column) of the convolution.
std::vector<Term> forward_terms(const Geometry& geometry, int64_t row, int64_t column);

// The terms of plane (row, column) of the gradient to its input; the sources are the planes of the
// gradient to its output.
std::vector<Term> backward_terms(const Geometry& geometry, int64_t row, int64_t column);

// Weights [Co, Ci, k, k] of both kernels as `multiply` reads them: for each tap, the blocks of output
// channels. For the gradient to the input, input and output channels change places.
template <typename T>
class PackedWeights {
 public:
  using A = Compute<T>;
  PackedWeights(const Geometry& geometry, const T* weight_query, const T* weight_support,
                int64_t outer, int64_t inner, bool backward);

  int64_t outer() const { return outer_; }
  int64_t inner() const { return inner_; }
  int64_t steps() const { return steps_; }  // of a tap
  bool finite() const { return values_.empty(); }
  // The weights of a tap for the block of output channels that starts at `channel`.
  const A* at(int64_t tap, int64_t channel) const {
    return data_.data() + (tap * room_ + channel) * steps_;
  }
  // One of them; only where they are not finite.
  A value(int64_t tap, int64_t channel, int64_t k) const {
    return values_[(tap * inner_ + k) * outer_ + channel];
  }

 private:
  int64_t outer_, inner_, steps_, room_;
  std::vector<A> data_, values_;
};

// Which pieces of source planes a term takes: for every shift, where it stays inside the query grid.
template <typename T>
class Packer {
 public:
  using A = Compute<T>;
  explicit Packer(const Geometry& geometry);

  // Of query positions first .. first + columns - 1.
  Piece<A> piece(const Term& term, int64_t first, int64_t columns) const;

 private:
  int64_t width_, query_, radius_, stride_;
  std::vector<Word<A>> inside_;  // [shifts, query positions and more]
};

// A run of query positions: as many tiles as keep the panel in the second cache.
template <typename T>
int64_t run_of(int64_t steps);

// out[channel][position] = sum of the terms + offset[channel], for a run of query positions.
// panel: room for terms.size() * steps * columns rounded up to whole tiles. Threads share nothing but
// the arguments.
template <typename T>
void sum_terms(const Packer<T>& packer, const PackedWeights<T>& weights,
               const Planes<const T>& source, const std::vector<Term>& terms,
               const Compute<T>* offset, int64_t first, int64_t columns, Compute<T>* panel,
               Compute<T>* out, int64_t out_stride);

}  // namespace fsdino::cpu

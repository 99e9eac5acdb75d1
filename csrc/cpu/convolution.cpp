#include "convolution.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros.h>

#include <cmath>

namespace fsdino::cpu {

// Chan, Golub and LeVeque, 1979; `mean` stays that of the first.
void Moments::add(const Moments& other) {
  if (other.count == 0) return;
  if (count == 0) mean = other.mean;
  const double total = count + other.count, step = other.mean - mean + (other.low - low);
  low += step * other.count / total;
  squares += other.squares + step * step * count * other.count / total;
  count = total;
}

template <typename T>
Convolution<T>::Convolution(const Geometry& geometry, const Tensor& weight_query,
                            const Tensor& weight_support, const MaybeTensor& bias, bool backward)
    : geometry_(geometry),
      backward_(backward),
      weights_(geometry, weight_query.contiguous().const_data_ptr<T>(),
               weight_support.contiguous().const_data_ptr<T>(),
               weight_query.size(backward ? 1 : 0), weight_query.size(backward ? 0 : 1), backward),
      packer_(geometry),
      offset_(vector_of<T>(bias)) {}

template <typename T>
void Convolution<T>::mend_edges(const Planes<const T>& source, const std::vector<Term>& terms,
                                int64_t first, int64_t columns, A* tile, int64_t stride) const {
  const Geometry& g = geometry_;
  std::vector<bool> padding(g.taps(), true);
  for (const Term& term : terms) padding[term.tap] = false;
  for (int64_t c = 0; c < weights_.outer(); ++c) {
    A* values = tile + c * stride;
    if (!backward_) {
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        for (int64_t k = 0; padding[tap] && k < weights_.inner(); ++k) {
          const A nothing = A(0) * weights_.value(tap, c, k);
          for (int64_t n = 0; n < columns; ++n) values[n] += nothing;
        }
      }
      continue;
    }
    for (int64_t n = 0; n < columns; ++n) {
      if (std::isfinite(values[n])) continue;
      values[n] = 0;
      for (const Term& term : terms) {
        const int64_t y = (first + n) / g.query_width + term.down;
        const int64_t x = (first + n) % g.query_width + term.right;
        if (y < 0 || y >= g.query_height || x < 0 || x >= g.query_width) continue;
        for (int64_t k = 0; k < weights_.inner(); ++k) {
          const T* plane = source.at(k, term.row, term.column);
          values[n] += weights_.value(term.tap, c, k) * static_cast<A>(plane[y * g.query_width + x]);
        }
      }
    }
  }
}

template <typename T>
void Convolution<T>::run(const std::vector<Planes<const T>>& sources,
                         const std::vector<Planes<T>>& targets, int64_t begin, int64_t end,
                         int64_t groups, std::vector<Moments>* moments) const {
  const Simd<T>& functions = simd<T>();
  const Geometry& g = geometry_;
  const int64_t query = g.query(), outer = weights_.outer(), inner = weights_.inner();
  const int64_t width = backward_ ? g.support_width : g.kept_width();
  const int64_t steps = g.taps() * weights_.steps(), run = run_of<T>(steps);
  const int64_t runs = ceil_div(query, run), per_sample = (end - begin) * width * runs;
  const int64_t tasks = static_cast<int64_t>(sources.size()) * per_sample;
  std::vector<Moments> parts(groups * tasks);
  const int64_t threads = at::get_num_threads();
  const Scratch<A> panels(steps * run, threads);
  const Scratch<A> results(std::is_same_v<T, A> ? 0 : functions.room(outer) * run, threads);

  const int64_t cost = g.taps() * inner * outer * std::min(query, run);
  at::parallel_for(0, tasks, grain(cost), [&](int64_t first_task, int64_t last_task) {
    const Products<T> products;
    for (int64_t task = first_task; task < last_task; ++task) {
      // Neighbouring planes follow each other: they share sources.
      const int64_t b = task / per_sample, row = begin + task % per_sample / (runs * width);
      const int64_t first = task / width % runs * run, column = task % width;
      const int64_t columns = std::min(run, query - first);
      // The result is made where it belongs, or aside where it has to be rounded.
      A* result = results.mine();
      int64_t stride = run;
      if constexpr (std::is_same_v<T, A>) {
        result = targets[b].at(0, row, column) + first;
        stride = targets[b].channel;
      }
      const std::vector<Term> terms =
          backward_ ? backward_terms(g, row, column) : forward_terms(g, row, column);
      sum_terms<T>(packer_, weights_, sources[b], terms,
                   offset_.empty() ? nullptr : offset_.data(), first, columns, panels.mine(),
                   result, stride);
      if (!weights_.finite()) mend_edges(sources[b], terms, first, columns, result, stride);
      if constexpr (!std::is_same_v<T, A>) {
        // What is stored is what its moments are of.
        for (int64_t c = 0; c < outer; ++c) {
          functions.round(result + c * stride, columns, targets[b].at(c, row, column) + first);
        }
      }
      for (int64_t group = 0; group < groups; ++group) {
        Moments& here = parts[task * groups + group];
        const int64_t rows = outer / groups;
        here.count = static_cast<double>(rows * columns);
        functions.moments(result + group * rows * stride, rows, columns, stride, &here.mean,
                          &here.low, &here.squares);
      }
    }
  });
  for (int64_t i = 0; i < groups * tasks; ++i) {
    (*moments)[i / groups / per_sample * groups + i % groups].add(parts[i]);
  }
}

template class Convolution<float>;
template class Convolution<double>;
template class Convolution<at::Half>;
template class Convolution<at::BFloat16>;

template <typename T>
WeightGradient<T>::WeightGradient(const Geometry& geometry, int64_t outer, int64_t inner,
                                  int64_t planes)
    : geometry_(geometry),
      packer_(geometry),
      outer_(outer),
      inner_(inner),
      sums_(std::clamp<int64_t>(planes, 1, 16)),
      steps_(simd<T>().steps(geometry.query())),
      rows_(simd<T>().room(geometry.taps() * inner)),
      columns_(ceil_div(outer, simd<T>().tile) * simd<T>().tile),
      totals_(at::zeros({sums_, rows_, columns_}, kScalar<A>)),
      lefts_(rows_ * steps_, std::min<int64_t>(sums_, at::get_num_threads())),
      panels_(steps_ * columns_, std::min<int64_t>(sums_, at::get_num_threads())) {}

template <typename T>
void WeightGradient<T>::add(const std::vector<Planes<const T>>& grads,
                            const std::vector<Planes<const T>>& sources, int64_t begin,
                            int64_t end) {
  const int64_t width = geometry_.kept_width(), planes = (end - begin) * width;
  const int64_t tasks = static_cast<int64_t>(grads.size()) * planes;
  A* totals = totals_.mutable_data_ptr<A>();
  at::parallel_for(0, sums_, 1, [&](int64_t first, int64_t last) {
    const Products<T> products;
    const int64_t taps = geometry_.taps() * inner_;
    // Rows that no tap fills are multiplied, too.
    std::fill_n(lefts_.mine() + taps * steps_, (rows_ - taps) * steps_, A(0));
    for (int64_t sum = first; sum < last; ++sum) {
      for (int64_t task = sum; task < tasks; task += sums_) {
        const int64_t b = task / planes;
        add_plane(grads[b], sources[b], begin + task % planes / width, task % width,
                  totals + sum * rows_ * columns_);
      }
    }
  });
}

template <typename T>
void WeightGradient<T>::add_plane(const Planes<const T>& grad, const Planes<const T>& source,
                                  int64_t row, int64_t column, A* total) {
  const Simd<T>& functions = simd<T>();
  const int64_t query = geometry_.query(), tap_size = inner_ * steps_;
  A *lefts = lefts_.mine(), *panel = panels_.mine();
  functions.transpose(grad.at(0, row, column), grad.channel, outer_, query, panel);
  std::vector<bool> present(geometry_.taps());
  for (const Term& term : forward_terms(geometry_, row, column)) {
    functions.copy(source.at(0, term.row, term.column), source.channel, inner_,
                   packer_.piece(term, 0, query), query, steps_, lefts + term.tap * tap_size);
    present[term.tap] = true;
  }
  for (int64_t tap = 0; tap < geometry_.taps(); ++tap) {
    if (!present[tap]) std::fill_n(lefts + tap * tap_size, tap_size, A(0));
  }
  const int64_t depth = geometry_.taps() * inner_;
  for (int64_t first = 0; first < depth;) {
    const int64_t rows = functions.block_rows(depth - first);
    for (int64_t c = 0; c < outer_; c += functions.tile) {
      functions.multiply_rows(lefts + first * steps_, steps_, steps_, panel + c * steps_, rows,
                              std::min(functions.tile, outer_ - c), total + first * columns_ + c,
                              columns_);
    }
    first += rows;
  }
}

template <typename T>
void WeightGradient<T>::finish(Tensor& weight_query, Tensor& weight_support) const {
  Tensor total = totals_.select(0, 0);
  for (int64_t sum = 1; sum < sums_; ++sum) total.add_(totals_.select(0, sum));
  const Tensor taps = total.slice(0, 0, geometry_.taps() * inner_)
                          .slice(1, 0, outer_)
                          .view({geometry_.taps(), inner_, outer_})
                          .permute({2, 1, 0});
  const int64_t split = geometry_.query_taps();
  if (weight_query.numel()) {
    weight_query.copy_(taps.slice(2, 0, split).reshape(weight_query.sizes()));
  }
  if (weight_support.numel()) {
    weight_support.copy_(taps.slice(2, split).reshape(weight_support.sizes()));
  }
}

template class WeightGradient<float>;
template class WeightGradient<double>;
template class WeightGradient<at::Half>;
template class WeightGradient<at::BFloat16>;

Tensor sum_channels(const Tensor& planes) {
  const auto wide = planes.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return planes.sum({0, 2, 3, 4, 5}, false, wide);
}

}  // namespace fsdino::cpu

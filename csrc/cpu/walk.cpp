#include "walk.h"

#include <cmath>

namespace fsdino::cpu {

std::vector<Term> forward_terms(const Geometry& g, int64_t row, int64_t column) {
  std::vector<Term> terms;
  const int64_t q = g.query_kernel / 2, s = g.support_kernel / 2;
  const int64_t top = row * g.stride, left = column * g.stride;
  for (int64_t y = -q; y <= q; ++y) {
    for (int64_t x = -q; x <= q; ++x) {
      if (std::abs(y) >= g.query_height || std::abs(x) >= g.query_width) continue;
      terms.push_back({top, left, y, x, (y + q) * g.query_kernel + x + q});
    }
  }
  for (int64_t i = top - s; i <= top + s; ++i) {
    for (int64_t j = left - s; j <= left + s; ++j) {
      if (i < 0 || i >= g.support_height || j < 0 || j >= g.support_width) continue;
      const int64_t tap = (i - top + s) * g.support_kernel + j - left + s;
      terms.push_back({i, j, 0, 0, g.query_taps() + tap});
    }
  }
  return terms;
}

std::vector<Term> backward_terms(const Geometry& g, int64_t row, int64_t column) {
  std::vector<Term> terms;
  const int64_t q = g.query_kernel / 2, s = g.support_kernel / 2;
  if (row % g.stride == 0 && column % g.stride == 0) {
    for (int64_t y = -q; y <= q; ++y) {
      for (int64_t x = -q; x <= q; ++x) {
        if (std::abs(y) >= g.query_height || std::abs(x) >= g.query_width) continue;
        const int64_t tap = (y + q) * g.query_kernel + x + q;
        terms.push_back({row / g.stride, column / g.stride, -y, -x, tap});
      }
    }
  }
  for (int64_t y = -s; y <= s; ++y) {
    for (int64_t x = -s; x <= s; ++x) {
      const int64_t top = row - y, left = column - x;
      if (top < 0 || left < 0 || top % g.stride || left % g.stride) continue;
      const int64_t i = top / g.stride, j = left / g.stride;
      if (i >= g.kept_height() || j >= g.kept_width()) continue;
      terms.push_back({i, j, 0, 0, g.query_taps() + (y + s) * g.support_kernel + x + s});
    }
  }
  return terms;
}

template <typename T>
PackedWeights<T>::PackedWeights(const Geometry& geometry, const T* weight_query,
                                const T* weight_support, int64_t outer, int64_t inner,
                                bool backward)
    : outer_(outer),
      inner_(inner),
      steps_(simd<T>().steps(inner)),
      room_(simd<T>().room(outer)),
      data_(geometry.taps() * room_ * steps_),
      values_(geometry.taps() * inner * outer) {
  const Simd<T>& functions = simd<T>();
  const int64_t query_taps = geometry.query_taps();
  // In memory [Co, Ci, taps]; `outer` counts what this walk produces.
  const int64_t outer_step = backward ? 1 : inner, inner_step = backward ? outer : 1;
  std::vector<T> tap_values(inner * outer);  // [inner, outer]
  const int64_t width = ceil_div(outer, functions.tile) * functions.tile;
  std::vector<A> words(steps_ * width);
  for (int64_t tap = 0; tap < geometry.taps(); ++tap) {
    const bool over_query = tap < query_taps;
    const T* weight = over_query ? weight_query + tap : weight_support + tap - query_taps;
    const int64_t step = over_query ? query_taps : geometry.taps() - query_taps;
    for (int64_t k = 0; k < inner; ++k) {
      for (int64_t c = 0; c < outer; ++c) {
        const T value = weight[(c * outer_step + k * inner_step) * step];
        tap_values[k * outer + c] = value;
        values_[(tap * inner + k) * outer + c] = static_cast<A>(value);
      }
    }
    functions.pack_scaled(tap_values.data(), outer, inner, nullptr, outer, functions.tile, width,
                          words.data());
    for (int64_t channel = 0; channel < outer;) {
      const int64_t rows = functions.block_rows(outer - channel);
      functions.arrange(words.data() + channel, width, steps_, rows,
                        data_.data() + (tap * room_ + channel) * steps_);
      channel += rows;
    }
  }
  const auto finite = [](A value) { return std::isfinite(value); };
  if (std::all_of(values_.begin(), values_.end(), finite)) values_.clear();
}

template <typename T>
Packer<T>::Packer(const Geometry& geometry)
    : width_(geometry.query_width),
      query_(geometry.query()),
      radius_(geometry.query_kernel / 2),
      stride_(ceil_div(query_, simd<T>().tile) * simd<T>().tile + simd<T>().tile) {
  const int64_t side = 2 * radius_ + 1;
  inside_.resize(side * side * stride_);
  for (int64_t down = -radius_; down <= radius_; ++down) {
    for (int64_t right = -radius_; right <= radius_; ++right) {
      Word<A>* inside = inside_.data() + ((down + radius_) * side + right + radius_) * stride_;
      for (int64_t n = 0; n < query_; ++n) {
        const int64_t row = n / width_ + down, column = n % width_ + right;
        const bool there = row >= 0 && row < geometry.query_height && column >= 0 && column < width_;
        inside[n] = there ? -1 : 0;
      }
    }
  }
}

template <typename T>
Piece<Compute<T>> Packer<T>::piece(const Term& term, int64_t first, int64_t columns) const {
  const int64_t shift = term.down * width_ + term.right;
  const int64_t low = std::clamp<int64_t>(-shift - first, 0, columns);
  const int64_t high = std::clamp<int64_t>(query_ - shift - first, low, columns);
  if (term.down == 0 && term.right == 0) return {first, low, high, nullptr};
  const int64_t index = (term.down + radius_) * (2 * radius_ + 1) + term.right + radius_;
  return {first + shift, low, high, inside_.data() + index * stride_ + first};
}

template <typename T>
int64_t run_of(int64_t steps) {
  constexpr int64_t kBytes = 256 << 10, kMost = 8;
  const int64_t tile = simd<T>().tile;
  const int64_t fit = kBytes / std::max<int64_t>(1, steps * tile * sizeof(Compute<T>));
  return std::clamp<int64_t>(fit, 1, kMost) * tile;
}

template <typename T>
void sum_terms(const Packer<T>& packer, const PackedWeights<T>& weights,
               const Planes<const T>& source, const std::vector<Term>& terms,
               const Compute<T>* offset, int64_t first, int64_t columns, Compute<T>* panel,
               Compute<T>* out, int64_t out_stride) {
  using A = Compute<T>;
  const Simd<T>& functions = simd<T>();
  const int64_t tile = functions.tile, steps = weights.steps();
  const int64_t count = static_cast<int64_t>(terms.size()), tile_stride = count * steps * tile;
  for (int64_t t = 0; t < count; ++t) {
    functions.pack(source.at(0, terms[t].row, terms[t].column), source.channel, weights.inner(),
                   packer.piece(terms[t], first, columns), columns, tile_stride,
                   panel + t * steps * tile);
  }
  std::vector<const A*> taps(terms.size());
  for (int64_t channel = 0; channel < weights.outer();) {
    const int64_t rows = functions.block_rows(weights.outer() - channel);
    for (int64_t t = 0; t < count; ++t) taps[t] = weights.at(terms[t].tap, channel);
    for (int64_t c = 0; c < columns; c += tile) {
      functions.multiply(taps.data(), count, steps, panel + c / tile * tile_stride,
                         offset ? offset + channel : nullptr, rows, std::min(tile, columns - c),
                         out + channel * out_stride + c, out_stride);
    }
    channel += rows;
  }
}

#define FSDINO_INSTANTIATE(T)                                                                     \
  template class PackedWeights<T>;                                                                \
  template class Packer<T>;                                                                       \
  template int64_t run_of<T>(int64_t);                                                            \
  template void sum_terms<T>(const Packer<T>&, const PackedWeights<T>&, const Planes<const T>&,   \
                             const std::vector<Term>&, const Compute<T>*, int64_t, int64_t,       \
                             Compute<T>*, Compute<T>*, int64_t)
FSDINO_INSTANTIATE(float);
FSDINO_INSTANTIATE(double);
FSDINO_INSTANTIATE(at::Half);
FSDINO_INSTANTIATE(at::BFloat16);
#undef FSDINO_INSTANTIATE

}  // namespace fsdino::cpu

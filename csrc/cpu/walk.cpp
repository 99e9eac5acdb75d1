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

template <typename A>
template <typename T>
PackedWeights<A>::PackedWeights(const Geometry& geometry, const T* weight_query,
                                const T* weight_support, int64_t outer, int64_t inner,
                                bool backward)
    : outer_(outer), inner_(inner), data_(geometry.taps() * outer * inner) {
  const int64_t query_taps = geometry.query_taps();
  // In memory [Co, Ci, taps]; `outer` counts what this walk produces.
  const int64_t outer_step = backward ? 1 : inner, inner_step = backward ? outer : 1;
  for (int64_t tap = 0; tap < geometry.taps(); ++tap) {
    const bool over_query = tap < query_taps;
    const T* weight = over_query ? weight_query + tap : weight_support + tap - query_taps;
    const int64_t step = over_query ? query_taps : geometry.taps() - query_taps;
    A* to = data_.data() + tap * outer * inner;
    for (int64_t channel = 0; channel < outer;) {
      const int64_t rows = block_rows(outer - channel);
      for (int64_t k = 0; k < inner; ++k) {
        for (int64_t r = 0; r < rows; ++r) {
          *to++ = static_cast<A>(weight[((channel + r) * outer_step + k * inner_step) * step]);
        }
      }
      channel += rows;
    }
  }
  for (const A weight : data_) finite_ = finite_ && std::isfinite(weight);
}

template <typename A>
A PackedWeights<A>::value(int64_t tap, int64_t channel, int64_t k) const {
  int64_t block = 0;
  while (block + block_rows(outer_ - block) <= channel) block += block_rows(outer_ - block);
  return at(tap, block)[k * block_rows(outer_ - block) + channel - block];
}

template <typename T>
Packer<T>::Packer(const Geometry& geometry)
    : width_(geometry.query_width), query_(geometry.query()), radius_(geometry.query_kernel / 2) {
  inside_.resize((2 * radius_ + 1) * query_);
  for (int64_t x = -radius_; x <= radius_; ++x) {
    for (int64_t n = 0; n < query_; ++n) {
      const int64_t column = n % width_ + x;
      inside_[(x + radius_) * query_ + n] = column >= 0 && column < width_ ? -1 : 0;
    }
  }
}

template <typename T>
void Packer<T>::pack(const Planes<const T>& source, const Term& term, int64_t channels,
                     int64_t first, int64_t columns, int64_t padded, A* panel) const {
  const int64_t shift = term.down * width_ + term.right;
  const int64_t low = std::clamp<int64_t>(-shift - first, 0, columns);
  const int64_t high = std::clamp<int64_t>(query_ - shift - first, low, columns);
  const Word<A>* inside =
      term.right == 0 ? nullptr : inside_.data() + (term.right + radius_) * query_ + first;
  const T* from = source.at(0, term.row, term.column);
  const int64_t begin = first + shift;
  if constexpr (std::is_same_v<T, A>) {
    simd<A>().pack(from, begin, source.channel, channels, low, high, inside, padded, panel);
  } else {
    for (int64_t c = 0; c < channels; ++c, from += source.channel, panel += padded) {
      std::fill(panel, panel + low, A(0));
      for (int64_t n = low; n < high; ++n) {
        panel[n] = !inside || inside[n] ? static_cast<A>(from[begin + n]) : A(0);
      }
      std::fill(panel + high, panel + padded, A(0));
    }
  }
}

template <typename T>
void sum_terms(const Packer<T>& packer, const PackedWeights<Compute<T>>& weights,
               const Planes<const T>& source, const std::vector<Term>& terms,
               const Compute<T>* offset, int64_t first, int64_t columns, Compute<T>* panel,
               Compute<T>* out, int64_t out_stride) {
  using A = Compute<T>;
  const Simd<A>& functions = simd<A>();
  const int64_t inner = weights.inner();
  const int64_t padded = ceil_div(columns, functions.lanes) * functions.lanes;
  const int64_t count = static_cast<int64_t>(terms.size());
  for (int64_t t = 0; t < count; ++t) {
    packer.pack(source, terms[t], inner, first, columns, padded, panel + t * inner * padded);
  }
  std::vector<const A*> taps(terms.size());
  for (int64_t channel = 0; channel < weights.outer();) {
    const int64_t rows = block_rows(weights.outer() - channel);
    for (int64_t t = 0; t < count; ++t) taps[t] = weights.at(terms[t].tap, channel);
    functions.multiply(taps.data(), count, inner, panel, offset ? offset + channel : nullptr, rows,
                       columns, out + channel * out_stride, out_stride);
    channel += rows;
  }
}

template class PackedWeights<float>;
template class PackedWeights<double>;

#define FSDINO_INSTANTIATE(T)                                                                     \
  template PackedWeights<Compute<T>>::PackedWeights(const Geometry&, const T*, const T*, int64_t, \
                                                    int64_t, bool);                               \
  template class Packer<T>;                                                                       \
  template void sum_terms<T>(const Packer<T>&, const PackedWeights<Compute<T>>&,                  \
                             const Planes<const T>&, const std::vector<Term>&, const Compute<T>*, \
                             int64_t, int64_t, Compute<T>*, Compute<T>*, int64_t)
FSDINO_INSTANTIATE(float);
FSDINO_INSTANTIATE(double);
FSDINO_INSTANTIATE(at::Half);
FSDINO_INSTANTIATE(at::BFloat16);
#undef FSDINO_INSTANTIATE

}  // namespace fsdino::cpu

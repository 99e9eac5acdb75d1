// Included by simd.cpp once per instruction set, inside a namespace of its own and under that set's
// target; FSDINO_VECTOR_BYTES is the size of a vector, FSDINO_TILE_VECTORS the widest tile in
// vectors, FSDINO_TILE_ROWS the most rows that the registers hold beside it.

template <typename A>
struct Tile {
  static constexpr int64_t kLanes = FSDINO_VECTOR_BYTES / sizeof(A);
  static constexpr int64_t kVectors = FSDINO_TILE_VECTORS;

  typedef A Vector __attribute__((vector_size(FSDINO_VECTOR_BYTES)));
  typedef A Loose __attribute__((vector_size(FSDINO_VECTOR_BYTES), aligned(sizeof(A)), may_alias));

  static inline Vector load(const A* from) { return *reinterpret_cast<const Loose*>(from); }
  static inline void store(A* to, Vector value) { *reinterpret_cast<Loose*>(to) = value; }
  static inline Vector all(A value) { return value - Vector{}; }
  // NaN passes: it is not below 0.
  static inline Vector relu(Vector value) { return value <= 0 ? Vector{} : value; }

  static inline A sum(Vector value) {
    A total = 0;
    for (int64_t i = 0; i < kLanes; ++i) total += value[i];
    return total;
  }

  // The accumulators of a tile of `Rows` x `Vectors` stay in registers over the whole sum.
  template <int64_t Rows, int64_t Vectors>
  static void tile(const A* const* weights, int64_t skip, int64_t weight_stride, int64_t taps,
                   int64_t inner, const A* panel, const A* offset, int64_t columns, A* out,
                   int64_t out_stride) {
    Vector sums[Rows][Vectors];
#pragma GCC unroll 8
    for (int64_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < Vectors; ++v) sums[r][v] = Vector{};
    }
    for (int64_t t = 0; t < taps; ++t) {
      const A* weight = weights[t] + skip;
      for (int64_t k = 0; k < inner; ++k) {
        Vector x[Vectors];
#pragma GCC unroll 8
        for (int64_t v = 0; v < Vectors; ++v) x[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
        for (int64_t r = 0; r < Rows; ++r) {
          const Vector w = all(weight[r]);
#pragma GCC unroll 8
          for (int64_t v = 0; v < Vectors; ++v) sums[r][v] += w * x[v];
        }
        weight += weight_stride;
        panel += Vectors * kLanes;
      }
    }
    const int64_t whole = columns / kLanes;
    for (int64_t r = 0; r < Rows; ++r) {
      A* row = out + r * out_stride;
      // Last, because a large offset would cost every partial sum its low digits.
      for (int64_t v = 0; v < Vectors; ++v) sums[r][v] += offset ? all(offset[r]) : Vector{};
      for (int64_t v = 0; v < whole; ++v) store(row + v * kLanes, sums[r][v]);
      for (int64_t c = whole * kLanes; c < columns; ++c) row[c] = sums[r][whole][c - whole * kLanes];
    }
  }

  // Blocks of more rows than the registers hold are multiplied in parts.
  template <int64_t Rows, int64_t Vectors>
  static void rows(const A* const* weights, int64_t taps, int64_t inner, const A* panel,
                   const A* offset, int64_t columns, A* out, int64_t out_stride) {
    constexpr int64_t kPart = Rows < FSDINO_TILE_ROWS ? Rows : FSDINO_TILE_ROWS;
    for (int64_t r = 0; r < Rows; r += kPart) {
      tile<kPart, Vectors>(weights, r, Rows, taps, inner, panel, offset ? offset + r : nullptr,
                           columns, out + r * out_stride, out_stride);
    }
  }

  template <int64_t Vectors>
  static void vectors(const A* const* weights, int64_t taps, int64_t inner, const A* panel,
                      const A* offset, int64_t row_count, int64_t columns, A* out,
                      int64_t out_stride) {
    switch (row_count) {
      case 8: return rows<8, Vectors>(weights, taps, inner, panel, offset, columns, out, out_stride);
      case 4: return rows<4, Vectors>(weights, taps, inner, panel, offset, columns, out, out_stride);
      case 2: return rows<2, Vectors>(weights, taps, inner, panel, offset, columns, out, out_stride);
      default: return rows<1, Vectors>(weights, taps, inner, panel, offset, columns, out, out_stride);
    }
  }

  static void multiply(const A* const* weights, int64_t taps, int64_t inner, const A* panel,
                       const A* offset, int64_t row_count, int64_t columns, A* out,
                       int64_t out_stride) {
    static_assert(kVectors <= 3);
    const int64_t needed = (columns + kLanes - 1) / kLanes;
    if (needed == 1) {
      vectors<1>(weights, taps, inner, panel, offset, row_count, columns, out, out_stride);
    } else if (needed == 2 || kVectors == 2) {
      vectors<2>(weights, taps, inner, panel, offset, row_count, columns, out, out_stride);
    } else {
      vectors<kVectors>(weights, taps, inner, panel, offset, row_count, columns, out, out_stride);
    }
  }

  static void pack(const A* source, int64_t begin, int64_t stride, int64_t inner, int64_t low,
                   int64_t high, const Word<A>* mask, int64_t padded, A* panel) {
    typedef Word<A> Mask __attribute__((vector_size(FSDINO_VECTOR_BYTES)));
    typedef Word<A> LooseMask
        __attribute__((vector_size(FSDINO_VECTOR_BYTES), aligned(sizeof(A)), may_alias));
    constexpr int64_t kAhead = 4;  // rows; they lie far apart, where no prefetcher expects them
    const bool whole = low == 0 && high == padded && padded % kLanes == 0;
    for (int64_t k = 0; k < inner; ++k, begin += stride, panel += padded) {
      if (k + kAhead < inner) {
        const A* ahead = source + begin + kAhead * stride;
        for (int64_t c = low; c < high; c += 64 / sizeof(A)) __builtin_prefetch(ahead + c);
      }
      if (whole && mask) {
        for (int64_t c = 0; c < padded; c += kLanes) {
          const Mask keep = *reinterpret_cast<const LooseMask*>(mask + c);
          store(panel + c, (Vector)((Mask)load(source + begin + c) & keep));
        }
      } else if (whole) {
        for (int64_t c = 0; c < padded; c += kLanes) store(panel + c, load(source + begin + c));
      } else {
        for (int64_t c = 0; c < low; ++c) panel[c] = 0;
        if (mask) {
          for (int64_t c = low; c < high; ++c) panel[c] = mask[c] ? source[begin + c] : 0;
        } else {
          for (int64_t c = low; c < high; ++c) panel[c] = source[begin + c];
        }
        for (int64_t c = high; c < padded; ++c) panel[c] = 0;
      }
    }
  }

  static void pack_scaled(const A* source, int64_t stride, int64_t inner, const A* scale,
                          int64_t columns, int64_t padded, A* panel) {
    for (int64_t k = 0; k < inner; ++k, source += stride, panel += padded) {
      for (int64_t c = 0; c < columns; ++c) panel[c] = source[c] * scale[c];
      for (int64_t c = columns; c < padded; ++c) panel[c] = 0;
    }
  }

  // In two levels, for the sake of the low digits.
  static void sum_squares(const A* source, int64_t stride, int64_t inner, int64_t columns, A* sums) {
    constexpr int64_t kPartial = 32;
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t count = columns - c < kLanes ? columns - c : kLanes;
      Vector total = {};
      for (int64_t first = 0; first < inner; first += kPartial) {
        const int64_t last = first + kPartial < inner ? first + kPartial : inner;
        Vector partial = {};
        for (int64_t k = first; k < last; ++k) {
          Vector value = {};
          if (count == kLanes) {
            value = load(source + k * stride + c);
          } else {
            for (int64_t i = 0; i < count; ++i) value[i] = source[k * stride + c + i];
          }
          partial += value * value;
        }
        total += partial;
      }
      for (int64_t i = 0; i < count; ++i) sums[c + i] = total[i];
    }
  }

  static void moments(const A* values, int64_t row_count, int64_t columns, int64_t stride,
                      double* mean, double* low, double* squares) {
    double total = 0;
    for (int64_t r = 0; r < row_count; ++r) {
      const A* row = values + r * stride;
      Vector sums = {};
      int64_t c = 0;
      for (; c + kLanes <= columns; c += kLanes) sums += load(row + c);
      A rest = sum(sums);
      for (; c < columns; ++c) rest += row[c];
      total += rest;
    }
    const double count = static_cast<double>(row_count * columns);
    const A middle = static_cast<A>(total / count);
    double distance = 0, offset = 0;
    for (int64_t r = 0; r < row_count; ++r) {
      const A* row = values + r * stride;
      Vector sums = {}, first = {};
      int64_t c = 0;
      for (; c + kLanes <= columns; c += kLanes) {
        const Vector from = load(row + c) - all(middle);
        sums += from * from;
        first += from;
      }
      A rest = sum(sums), rest_first = sum(first);
      for (; c < columns; ++c) {
        rest += (row[c] - middle) * (row[c] - middle);
        rest_first += row[c] - middle;
      }
      distance += rest;
      offset += rest_first;
    }
    // `middle` is the mean but for rounding.
    *mean = static_cast<double>(middle);
    *low = offset / count;
    *squares = distance - offset * offset / count;
    if (*squares < 0) *squares = 0;  // NaN stays
  }

  static Vector all_affine_relu(const A* values, const Affine<A>& affine) {
    const Vector centred = load(values) - all(affine.mean) - all(affine.low);
    return relu(centred * all(affine.scale) + all(affine.shift));
  }

  static A one_affine_relu(A value, const Affine<A>& affine) {
    const A result = (value - affine.mean - affine.low) * affine.scale + affine.shift;
    return result <= 0 ? 0 : result;
  }

  static void affine_relu(const A* values, const Affine<A>& affine, int64_t count, A* out) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(out + i, all_affine_relu(values + i, affine));
    for (; i < count; ++i) out[i] = one_affine_relu(values[i], affine);
  }

  static void add_affine_relu(const A* values, const Affine<A>& affine, int64_t count, A* sums) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      store(sums + i, load(sums + i) + all_affine_relu(values + i, affine));
    }
    for (; i < count; ++i) sums[i] += one_affine_relu(values[i], affine);
  }

  static double sum_distances(const A* values, A from, int64_t count) {
    Vector sums = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) sums += load(values + i) - all(from);
    A rest = sum(sums);
    for (; i < count; ++i) rest += values[i] - from;
    return rest;
  }

  static A normalised(A raw, const NormChannel<A>& channel) {
    return (raw - channel.mean - channel.low) * channel.rstd;
  }

  // The gradient before the ReLU, from the normalised value and the gradient after it.
  static A through_relu(A value, A grad, const NormChannel<A>& channel) {
    return value * channel.gain + channel.offset <= 0 ? 0 : grad * channel.grad_scale;
  }

  static Vector all_normalised(Vector raw, const NormChannel<A>& channel) {
    return (raw - all(channel.mean) - all(channel.low)) * all(channel.rstd);
  }

  static Vector all_through_relu(Vector value, Vector grad, const NormChannel<A>& channel) {
    const Vector affine = value * all(channel.gain) + all(channel.offset);
    return affine <= 0 ? Vector{} : grad * all(channel.grad_scale);
  }

  static void norm_sums(const A* raw, const A* grad, int64_t count, const NormChannel<A>& channel,
                        double* plain, double* weighted) {
    Vector first = {}, second = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Vector value = all_normalised(load(raw + i), channel);
      const Vector passed = all_through_relu(value, load(grad + i), channel);
      first += passed;
      second += passed * value;
    }
    A first_rest = 0, second_rest = 0;
    for (; i < count; ++i) {
      const A value = normalised(raw[i], channel), passed = through_relu(value, grad[i], channel);
      first_rest += passed;
      second_rest += passed * value;
    }
    *plain += static_cast<double>(sum(first)) + first_rest;
    *weighted += static_cast<double>(sum(second)) + second_rest;
  }

  static void norm_backward(const A* raw, const A* grad, int64_t count,
                            const NormChannel<A>& channel, A mean_plain, A mean_weighted, A* out) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Vector value = all_normalised(load(raw + i), channel);
      const Vector scaled = all_through_relu(value, load(grad + i), channel) * all(channel.gain);
      store(out + i, (scaled - all(mean_plain) - value * all(mean_weighted)) * all(channel.rstd));
    }
    for (; i < count; ++i) {
      const A value = normalised(raw[i], channel);
      const A scaled = through_relu(value, grad[i], channel) * channel.gain;
      out[i] = (scaled - mean_plain - value * mean_weighted) * channel.rstd;
    }
  }

  static void relu_scale(const A* values, A scale, int64_t count, A* out) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(out + i, relu(load(values + i)) * all(scale));
    for (; i < count; ++i) out[i] = (values[i] <= 0 ? 0 : values[i]) * scale;
  }
};

template <typename A>
const Simd<A>& table() {
  using T = Tile<A>;
  static const Simd<A> functions = {
      T::kLanes,          T::kLanes * T::kVectors, T::multiply,      T::pack,
      T::pack_scaled,     T::sum_squares,          T::moments,       T::affine_relu,
      T::add_affine_relu, T::sum_distances,        T::norm_sums,     T::norm_backward,
      T::relu_scale,
  };
  return functions;
}

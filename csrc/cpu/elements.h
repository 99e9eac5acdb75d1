// Included by simd.cpp once per instruction set, inside a namespace of its own and under that set's
// target; FSDINO_VECTOR_BYTES is the size of a vector.

// Memory as T, registers as Compute<T>.
template <typename T>
struct Lanes {
  using A = Compute<T>;
  static constexpr int64_t kLanes = FSDINO_VECTOR_BYTES / sizeof(A);

  typedef A Vector __attribute__((vector_size(FSDINO_VECTOR_BYTES)));
  typedef A Loose __attribute__((vector_size(FSDINO_VECTOR_BYTES), aligned(sizeof(A)), may_alias));
  typedef Word<A> Bits __attribute__((vector_size(FSDINO_VECTOR_BYTES)));
  typedef uint32_t Words __attribute__((vector_size(FSDINO_VECTOR_BYTES)));
  typedef uint16_t Halves __attribute__((vector_size(FSDINO_VECTOR_BYTES / 2)));
  typedef uint16_t LooseHalves
      __attribute__((vector_size(FSDINO_VECTOR_BYTES / 2), aligned(2), may_alias));

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

  static inline Vector read(const T* from) {
    if constexpr (std::is_same_v<T, A>) {
      return load(from);
    } else if constexpr (std::is_same_v<T, at::BFloat16>) {
      const Halves bits = *reinterpret_cast<const LooseHalves*>(from);
      return (Vector)(__builtin_convertvector(bits, Words) << 16);
    } else {
#if FSDINO_VECTOR_BYTES == 64
      // With a mask, though of all lanes: GCC 12 warns of the other, wrongly.
      return (Vector)_mm512_maskz_cvtph_ps(
          0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif FSDINO_VECTOR_BYTES == 32
      return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
      Vector value;
      for (int64_t i = 0; i < kLanes; ++i) value[i] = static_cast<A>(from[i]);
      return value;
#endif
    }
  }

  // The low half of each word is what the value is rounded to, to the nearest, ties to even.
  static inline Words rounded(Vector value) {
    const Words bits = (Words)value;
    const Words nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value == value ? nearest : Words{} + 0x7fc0;
  }

  static inline void write(T* to, Vector value) {
    if constexpr (std::is_same_v<T, A>) {
      store(to, value);
    } else if constexpr (std::is_same_v<T, at::BFloat16>) {
      *reinterpret_cast<LooseHalves*>(to) = __builtin_convertvector(rounded(value), Halves);
    } else {
#if FSDINO_VECTOR_BYTES == 64
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                          _mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif FSDINO_VECTOR_BYTES == 32
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                       _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
      for (int64_t i = 0; i < kLanes; ++i) to[i] = static_cast<T>(value[i]);
#endif
    }
  }

  // Lanes [low, high) of those at `from`; the others are 0 and not read.
  static inline Vector read_part(const T* from, int64_t low, int64_t high) {
    Vector value = {};
    for (int64_t i = std::max<int64_t>(low, 0); i < std::min(high, kLanes); ++i) {
      value[i] = static_cast<A>(from[i]);
    }
    return value;
  }

  static inline void write_part(T* to, Vector value, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(value[i]);
  }

  // Fetches what lies some rows on, of `left` rows that lie far apart, where no prefetcher expects them.
  static inline void ahead(const T* row, int64_t stride, int64_t left) {
    constexpr int64_t kRows = 6;
    if (left > kRows) __builtin_prefetch(row + kRows * stride);
  }

  // Calls step(i, lanes) for runs of whole vectors, and at last for the rest.
  template <typename Step>
  static inline void walk(int64_t count, const Step& step) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) step(i, kLanes);
    if (i < count) step(i, count - i);
  }
  static inline Vector take(const T* from, int64_t lanes) {
    return lanes == kLanes ? read(from) : read_part(from, 0, lanes);
  }
  static inline Vector take_wide(const A* from, int64_t lanes) {
    if (lanes == kLanes) return load(from);
    Vector value = {};
    for (int64_t i = 0; i < lanes; ++i) value[i] = from[i];
    return value;
  }
  static inline void put(T* to, Vector value, int64_t lanes) {
    lanes == kLanes ? write(to, value) : write_part(to, value, lanes);
  }
  static inline void put_wide(A* to, Vector value, int64_t lanes) {
    if (lanes == kLanes) {
      store(to, value);
    } else {
      for (int64_t i = 0; i < lanes; ++i) to[i] = value[i];
    }
  }
  // Lanes behind `lanes` become 0.
  static inline Vector only(Vector value, int64_t lanes) {
    for (int64_t i = lanes; i < kLanes; ++i) value[i] = 0;
    return value;
  }

  static inline Vector affine_relu(Vector value, const Affine<A>& affine) {
    const Vector centred = value - all(affine.mean) - all(affine.low);
    return relu(centred * all(affine.scale) + all(affine.shift));
  }

  // Columns c .. of a piece of the row `from`, whose column 0 it starts at.
  static inline Vector piece_at(const T* from, const Piece<A>& piece, int64_t c) {
    const Vector value = c >= piece.low && c + kLanes <= piece.high
                       ? read(from + c)
                       : read_part(from + c, piece.low - c, piece.high - c);
    if (!piece.mask) return value;
    typedef Word<A> LooseBits
        __attribute__((vector_size(FSDINO_VECTOR_BYTES), aligned(sizeof(A)), may_alias));
    return (Vector)((Bits)value & *reinterpret_cast<const LooseBits*>(piece.mask + c));
  }
};

// Everything but products: what each element goes through.
template <typename T>
struct Elements : Lanes<T> {
  using L = Lanes<T>;
  using typename L::A;
  using typename L::Vector;
  using L::kLanes;

  // In two levels, for the sake of the low digits.
  template <int64_t Vectors>
  static void sum_columns(const T* source, int64_t stride, int64_t inner, int64_t lanes, A* sums) {
    constexpr int64_t kPartial = 32;
    Vector total[Vectors] = {};
    for (int64_t first = 0; first < inner; first += kPartial) {
      const int64_t last = first + kPartial < inner ? first + kPartial : inner;
      Vector partial[Vectors] = {};
      for (int64_t k = first; k < last; ++k) {
        const T* row = source + k * stride;
#pragma GCC unroll 8
        for (int64_t v = 0; v < Vectors; ++v) {
          L::ahead(row + v * kLanes, stride, inner - k);
          const Vector value = L::take(row + v * kLanes, lanes);
          partial[v] += value * value;
        }
      }
      for (int64_t v = 0; v < Vectors; ++v) total[v] += partial[v];
    }
    for (int64_t v = 0; v < Vectors; ++v) L::put_wide(sums + v * kLanes, total[v], lanes);
  }

  static void sum_squares(const T* source, int64_t stride, int64_t inner, int64_t columns, A* sums) {
    constexpr int64_t kVectors = 4;  // a line of memory is not read twice
    int64_t c = 0;
    for (; c + kVectors * kLanes <= columns; c += kVectors * kLanes) {
      sum_columns<kVectors>(source + c, stride, inner, kLanes, sums + c);
    }
    for (; c < columns; c += kLanes) {
      sum_columns<1>(source + c, stride, inner, std::min(columns - c, kLanes), sums + c);
    }
  }

  static void round(A* values, int64_t count, T* out) {
    L::walk(count, [&](int64_t i, int64_t lanes) {
      L::put(out + i, L::take_wide(values + i, lanes), lanes);
      if constexpr (!std::is_same_v<T, A>) {
        L::put_wide(values + i, L::take(out + i, lanes), lanes);
      }
    });
  }

  static void moments(const A* values, int64_t row_count, int64_t columns, int64_t stride,
                      double* mean, double* low, double* squares) {
    double total = 0;
    for (int64_t r = 0; r < row_count; ++r) {
      const A* row = values + r * stride;
      Vector sums = {};
      int64_t c = 0;
      for (; c + kLanes <= columns; c += kLanes) sums += L::load(row + c);
      A rest = L::sum(sums);
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
        const Vector from = L::load(row + c) - L::all(middle);
        sums += from * from;
        first += from;
      }
      A rest = L::sum(sums), rest_first = L::sum(first);
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

  static void affine_relu(const T* values, const Affine<A>& affine, int64_t count, T* out) {
    L::walk(count, [&](int64_t i, int64_t lanes) {
      L::put(out + i, L::affine_relu(L::take(values + i, lanes), affine), lanes);
    });
  }

  static void add_affine_relu(const T* values, const Affine<A>& affine, int64_t count, A* sums) {
    L::walk(count, [&](int64_t i, int64_t lanes) {
      const Vector value = L::affine_relu(L::take(values + i, lanes), affine);
      L::put_wide(sums + i, L::take_wide(sums + i, lanes) + value, lanes);
    });
  }

  static double sum_distances(const T* values, A from, int64_t count) {
    Vector sums = {};
    L::walk(count, [&](int64_t i, int64_t lanes) {
      const Vector distance = L::take(values + i, lanes) - L::all(from);
      sums += lanes == kLanes ? distance : L::only(distance, lanes);
    });
    return L::sum(sums);
  }

  static Vector normalised(Vector raw, const NormChannel<A>& channel) {
    return (raw - L::all(channel.mean) - L::all(channel.low)) * L::all(channel.rstd);
  }

  // The gradient before the ReLU, from the normalised value and the gradient after it.
  static Vector through_relu(Vector value, Vector grad, const NormChannel<A>& channel) {
    const Vector affine = value * L::all(channel.gain) + L::all(channel.offset);
    return affine <= 0 ? Vector{} : grad * L::all(channel.grad_scale);
  }

  static void norm_sums(const T* raw, const T* grad, int64_t count, const NormChannel<A>& channel,
                        double* plain, double* weighted) {
    Vector first = {}, second = {};
    L::walk(count, [&](int64_t i, int64_t lanes) {
      const Vector value = normalised(L::take(raw + i, lanes), channel);
      const Vector passed = through_relu(value, L::take(grad + i, lanes), channel);
      const Vector product = passed * value;
      first += lanes == kLanes ? passed : L::only(passed, lanes);
      second += lanes == kLanes ? product : L::only(product, lanes);
    });
    *plain += static_cast<double>(L::sum(first));
    *weighted += static_cast<double>(L::sum(second));
  }

  static void norm_backward(const T* raw, const T* grad, int64_t count,
                            const NormChannel<A>& channel, A mean_plain, A mean_weighted, T* out) {
    L::walk(count, [&](int64_t i, int64_t lanes) {
      const Vector value = normalised(L::take(raw + i, lanes), channel);
      const Vector scaled =
          through_relu(value, L::take(grad + i, lanes), channel) * L::all(channel.gain);
      const Vector result = (scaled - L::all(mean_plain) - value * L::all(mean_weighted)) *
                            L::all(channel.rstd);
      L::put(out + i, result, lanes);
    });
  }

  static void scale(A* values, A row, const A* columns, int64_t count) {
    L::walk(count, [&](int64_t i, int64_t lanes) {
      const Vector factor = L::take_wide(columns + i, lanes) * L::all(row);
      L::put_wide(values + i, L::take_wide(values + i, lanes) * factor, lanes);
    });
  }

  static void relu_scale(const A* values, A scale, int64_t count, T* out) {
    L::walk(count, [&](int64_t i, int64_t lanes) {
      L::put(out + i, L::relu(L::take_wide(values + i, lanes)) * L::all(scale), lanes);
    });
  }
};

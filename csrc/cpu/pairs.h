// Included by simd.cpp: products of bfloat16 by the processor's own instructions, in float32. A word is
// a pair of neighbours along the sum, the first in its low half.
//
// FSDINO_AMX chooses tiles of 16 rows by 16 columns and up to 16 steps; else the pairs of a row, each in
// all lanes, are multiplied by vectors of pairs (AVX512_BF16).

struct Pairs : Elements<at::BFloat16> {
  using T = at::BFloat16;
  using L = Lanes<T>;
#ifdef FSDINO_AMX
  static constexpr int64_t kVectors = 2, kMostSteps = 16;
#else
  static constexpr int64_t kVectors = 3, kMostSteps = kUnlimited;
#endif
  static constexpr int64_t kTile = kLanes * kVectors;

  // As in `Simd`.
  static int64_t steps_of(int64_t values) {
    const int64_t words = ceil_div(values, 2), parts = ceil_div(words, kMostSteps);
    return parts * ceil_div(words, parts);
  }

  // Two neighbours in one vector of words.
  static inline Vector paired(Halves first, Halves second) {
    return (Vector)(__builtin_convertvector(first, Words) |
                    __builtin_convertvector(second, Words) << 16);
  }
  static inline Halves bits(const T* from) { return *reinterpret_cast<const LooseHalves*>(from); }
  // Lanes [low, high) of those at `from`; the others are 0 and not read.
  static inline Halves bits(const T* from, int64_t low, int64_t high) {
    low = std::clamp<int64_t>(low, 0, kLanes);
    high = std::clamp<int64_t>(high, low, kLanes);
    const auto keep = static_cast<__mmask16>((1u << high) - (1u << low));
    return (Halves)_mm256_maskz_loadu_epi16(keep, from);
  }
  static inline Halves piece_bits(const T* from, const Piece<A>& piece, int64_t c) {
    return c >= piece.low && c + kLanes <= piece.high
               ? bits(from + c)
               : bits(from + c, piece.low - c, piece.high - c);
  }
  static inline Vector masked(Vector words, const Piece<A>& piece, int64_t c) {
    if (!piece.mask) return words;
    const auto keep = _mm512_loadu_si512(piece.mask + c);
    return (Vector)_mm512_and_si512((__m512i)words, keep);
  }

  static void pack(const T* source, int64_t stride, int64_t channels, const Piece<A>& piece,
                   int64_t columns, int64_t tile_stride, A* panel) {
    const int64_t steps = steps_of(channels);
    const T* from = source + piece.begin;
    for (int64_t k = 0; k < steps; ++k, from += 2 * stride, panel += kTile) {
      const bool first = 2 * k < channels, second = 2 * k + 1 < channels;
      A* to = panel;
      for (int64_t c = 0; c < columns; c += kTile, to += tile_stride) {
        for (int64_t v = 0; v < kTile; v += kLanes) {
          ahead(from + c + v, stride, channels - 2 * k);
          ahead(from + stride + c + v, stride, channels - 2 * k - 1);
          const Halves none = {};
          const Halves low = first ? piece_bits(from, piece, c + v) : none;
          const Halves high = second ? piece_bits(from + stride, piece, c + v) : none;
          store(to + v, masked(paired(low, high), piece, c + v));
        }
      }
    }
  }

  static inline Halves scaled_bits(const T* from, const A* scale, int64_t c, int64_t lanes) {
    const Halves value = bits(from + c, 0, lanes);
    if (!scale) return value;
    const Vector wide = (Vector)(__builtin_convertvector(value, Words) << 16);
    const Vector product = wide * L::take_wide(scale + c, lanes);
    return __builtin_convertvector(rounded(product), Halves);
  }

  static void pack_scaled(const T* source, int64_t stride, int64_t channels, const A* scale,
                          int64_t columns, int64_t tile_stride, int64_t step_stride, A* panel) {
    const int64_t steps = steps_of(channels);
    for (int64_t k = 0; k < steps; ++k, source += 2 * stride, panel += step_stride) {
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int64_t lanes = std::min(columns - c, kLanes);
        const Halves none = {};
        ahead(source + c, stride, channels - 2 * k);
        ahead(source + stride + c, stride, channels - 2 * k - 1);
        const Halves low = 2 * k < channels ? scaled_bits(source, scale, c, lanes) : none;
        const Halves high =
            2 * k + 1 < channels ? scaled_bits(source + stride, scale, c, lanes) : none;
        store(panel + c / kTile * tile_stride + c % kTile, paired(low, high));
      }
    }
  }

  static void copy(const T* source, int64_t stride, int64_t channels, const Piece<A>& piece,
                   int64_t columns, int64_t words, A* rows) {
    const T* from = source + piece.begin;
    const auto nothing = _mm256_setzero_si256();
    for (int64_t k = 0; k < channels; ++k, from += stride, rows += words) {
      T* to = reinterpret_cast<T*>(rows);
      for (int64_t c = 0; c < 2 * words; c += kLanes) {
        auto value = (__m256i)bits(from + c, piece.low - c, std::min(piece.high, columns) - c);
        if (c >= columns) value = nothing;
        if (piece.mask && c < columns) {
          const auto keep = _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(piece.mask + c),
                                                     _mm512_setzero_si512());
          value = _mm256_maskz_mov_epi16(keep, value);
        }
        const int64_t left = std::min(2 * words - c, kLanes);
        _mm256_mask_storeu_epi16(to + c, static_cast<__mmask16>((1u << left) - 1), value);
      }
    }
  }

  static void transpose(const T* source, int64_t stride, int64_t channels, int64_t count,
                        A* panel) {
    const int64_t steps = steps_of(count);
    const auto* values = reinterpret_cast<const uint16_t*>(source);
    auto* words = reinterpret_cast<uint16_t*>(panel);
    constexpr int64_t kSpan = 16;  // steps of each channel, so that a line is read once
    for (int64_t first = 0; first < channels; first += kTile, words += 2 * steps * kTile) {
      const int64_t side = std::min(channels - first, kTile);
      for (int64_t n0 = 0; n0 < steps; n0 += kSpan) {
        const int64_t n1 = std::min(n0 + kSpan, steps);
        for (int64_t c = 0; c < kTile; ++c) {
          const uint16_t* from = values + (first + c) * stride;
          for (int64_t n = n0; n < n1; ++n) {
            for (int64_t half = 0; half < 2; ++half) {
              const bool there = c < side && 2 * n + half < count;
              words[2 * (n * kTile + c) + half] = there ? from[2 * n + half] : 0;
            }
          }
        }
      }
    }
  }
};

#ifdef FSDINO_AMX
// The shape that this thread's tiles have: steps of the two operands; 0 where none is set.
inline thread_local int64_t tile_steps = 0;

struct Matrix : Pairs {
  static constexpr int64_t kRows = 16;
  static_assert(kTile == 2 * kRows);

  // Registers 0 to 3 add up 2 x 2 tiles, 4 and 5 hold rows, 6 and 7 columns.
  static void configure(int64_t steps) {
    if (tile_steps == steps) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; ++i) {
      shape.bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? 4 * steps : 64);
      shape.rows[i] = static_cast<uint8_t>(i < 6 ? kRows : steps);
    }
    // GCC takes the instruction to read 8 bytes, and would leave out what sets the others.
    __asm__ volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
    tile_steps = steps;
  }
  static void release() {
    if (tile_steps) _tile_release();
    tile_steps = 0;
  }

  // Adds `parts` parts of `steps` steps each to the 2 x 2 tiles. Rows of a tile are `row` words apart,
  // tiles of the next part `part` words and the second 16 rows `second`.
  template <bool Rows2, bool Columns2>
  static inline void accumulate(const A* left, int64_t row, int64_t part, int64_t second,
                                int64_t parts, int64_t steps, const A* panel) {
    for (int64_t p = 0; p < parts; ++p, left += part, panel += steps * kTile) {
      _tile_loadd(4, left, row * 4);
      _tile_loadd(6, panel, kTile * 4);
      if (Columns2) _tile_loadd(7, panel + kRows, kTile * 4);
      _tile_dpbf16ps(0, 4, 6);
      if (Columns2) _tile_dpbf16ps(1, 4, 7);
      if (Rows2) {
        _tile_loadd(5, left + second, row * 4);
        _tile_dpbf16ps(2, 5, 6);
        if (Columns2) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }

  template <bool Rows2, bool Columns2>
  static void store_tiles(A* out, int64_t stride) {
    _tile_stored(0, out, stride * 4);
    if (Columns2) _tile_stored(1, out + kRows, stride * 4);
    if (Rows2) _tile_stored(2, out + kRows * stride, stride * 4);
    if (Rows2 && Columns2) _tile_stored(3, out + kRows * stride + kRows, stride * 4);
  }

  template <bool Rows2, bool Columns2>
  static void product(const A* const* left, int64_t taps, int64_t all_steps, const A* panel, A* out,
                      int64_t stride) {
    const int64_t parts = ceil_div(all_steps, kMostSteps), steps = all_steps / parts;
    configure(steps);
    __asm__ volatile("" : : : "memory");  // loads of tiles are not known to read memory
    _tile_zero(0);
    if (Columns2) _tile_zero(1);
    if (Rows2) _tile_zero(2);
    if (Rows2 && Columns2) _tile_zero(3);
    for (int64_t t = 0; t < taps; ++t, panel += all_steps * kTile) {
      accumulate<Rows2, Columns2>(left[t], steps, kRows * steps, kRows * all_steps, parts, steps,
                                  panel);
    }
    store_tiles<Rows2, Columns2>(out, stride);
  }

  static void multiply(const A* const* left, int64_t taps, int64_t steps, const A* panel,
                       const A* offset, int64_t rows, int64_t columns, A* out, int64_t stride) {
    if (rows > kRows) {
      if (columns > kRows) {
        product<true, true>(left, taps, steps, panel, out, stride);
      } else {
        product<true, false>(left, taps, steps, panel, out, stride);
      }
    } else if (columns > kRows) {
      product<false, true>(left, taps, steps, panel, out, stride);
    } else {
      product<false, false>(left, taps, steps, panel, out, stride);
    }
    if (!offset) return;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; c += kLanes) {
        A* values = out + r * stride + c;
        store(values, load(values) + all(offset[r]));
      }
    }
  }

  static void multiply_rows(const A* left, int64_t left_stride, int64_t all_steps, const A* panel,
                            int64_t rows, int64_t columns, A* out, int64_t stride) {
    const int64_t parts = ceil_div(all_steps, kMostSteps), steps = all_steps / parts;
    configure(steps);
    __asm__ volatile("" : : : "memory");
    const A* below = left + kRows * left_stride;
    _tile_loadd(0, out, stride * 4);
    _tile_loadd(1, out + kRows, stride * 4);
    if (rows > kRows) {
      _tile_loadd(2, out + kRows * stride, stride * 4);
      _tile_loadd(3, out + kRows * stride + kRows, stride * 4);
      accumulate<true, true>(left, left_stride, steps, below - left, parts, steps, panel);
      store_tiles<true, true>(out, stride);
    } else {
      accumulate<false, true>(left, left_stride, steps, 0, parts, steps, panel);
      store_tiles<false, true>(out, stride);
    }
  }

  // Each 16 rows in parts of [16, steps of a part]; rows behind the last are 0.
  static void arrange(const A* words, int64_t stride, int64_t all_steps, int64_t rows, A* out) {
    const int64_t parts = ceil_div(all_steps, kMostSteps), steps = all_steps / parts;
    for (int64_t first = 0; first < rows; first += kRows) {
      for (int64_t p = 0; p < parts; ++p) {
        const A* from = words + p * steps * stride + first;
        for (int64_t r = 0; r < kRows; ++r) {
          for (int64_t k = 0; k < steps; ++k) *out++ = first + r < rows ? from[k * stride + r] : A(0);
        }
      }
    }
  }
};

inline const Simd<at::BFloat16>& pairs_table(const char* name) {
  static const Simd<at::BFloat16> functions = functions_of<at::BFloat16, Matrix>(
      name, 2, 2 * Matrix::kRows, Matrix::kRows, Pairs::kMostSteps, Matrix::release);
  return functions;
}
#else
struct Dot : Pairs {
  template <int64_t Rows, int64_t Vectors>
  static inline void accumulate(Vector (&sums)[Rows][Vectors], const A* left, int64_t step,
                                int64_t row, int64_t steps, const A* panel) {
    for (int64_t k = 0; k < steps; ++k) {
      __m512bh x[Vectors];
#pragma GCC unroll 8
      for (int64_t v = 0; v < Vectors; ++v) x[v] = (__m512bh)load(panel + v * kLanes);
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r) {
        const auto w = (__m512bh)_mm512_set1_ps(left[r * row]);
#pragma GCC unroll 8
        for (int64_t v = 0; v < Vectors; ++v) {
          sums[r][v] = (Vector)_mm512_dpbf16_ps((__m512)sums[r][v], w, x[v]);
        }
      }
      left += step;
      panel += kTile;
    }
  }
};

inline const Simd<at::BFloat16>& pairs_table(const char* name) {
  static const Simd<at::BFloat16> functions =
      functions_of<at::BFloat16, Tile<Dot>>(name, 2, 8, 1, Pairs::kMostSteps, nullptr);
  return functions;
}
#endif

// Included by simd.cpp after elements.h, once per instruction set: FSDINO_TILE_VECTORS is the widest
// tile in vectors, FSDINO_TILE_ROWS the most rows that the registers hold beside it.

// Words of one value.
template <typename T>
struct Values : Elements<T> {
  using L = Lanes<T>;
  using typename L::A;
  using typename L::Vector;
  using L::kLanes;
  static constexpr int64_t kVectors = FSDINO_TILE_VECTORS, kTile = kLanes * kVectors;

  // Adds the products of some steps. The words of the left operand for step k and row r:
  // left[k * step + r * row].
  template <int64_t Rows, int64_t Vectors>
  static inline void accumulate(Vector (&sums)[Rows][Vectors], const A* left, int64_t step,
                                int64_t row, int64_t steps, const A* panel) {
    for (int64_t k = 0; k < steps; ++k) {
      Vector x[Vectors];
#pragma GCC unroll 8
      for (int64_t v = 0; v < Vectors; ++v) x[v] = L::load(panel + v * kLanes);
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r) {
        const Vector w = L::all(left[r * row]);
#pragma GCC unroll 8
        for (int64_t v = 0; v < Vectors; ++v) sums[r][v] += w * x[v];
      }
      left += step;
      panel += kTile;
    }
  }

  static void pack(const T* source, int64_t stride, int64_t channels, const Piece<A>& piece,
                   int64_t columns, int64_t tile_stride, A* panel) {
    const T* from = source + piece.begin;
    for (int64_t k = 0; k < channels; ++k, from += stride, panel += kTile) {
      A* to = panel;
      for (int64_t c = 0; c < columns; c += kTile, to += tile_stride) {
        for (int64_t v = 0; v < kTile; v += kLanes) {
          L::ahead(from + c + v, stride, channels - k);
          L::store(to + v, L::piece_at(from, piece, c + v));
        }
      }
    }
  }

  static void pack_scaled(const T* source, int64_t stride, int64_t channels, const A* scale,
                          int64_t columns, int64_t tile_stride, int64_t step_stride, A* panel) {
    for (int64_t k = 0; k < channels; ++k, source += stride, panel += step_stride) {
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int64_t lanes = std::min(columns - c, kLanes);
        L::ahead(source + c, stride, channels - k);
        Vector value = L::take(source + c, lanes);
        if (scale) value *= L::take_wide(scale + c, lanes);
        L::store(panel + c / kTile * tile_stride + c % kTile, value);
      }
    }
  }

  static void copy(const T* source, int64_t stride, int64_t channels, const Piece<A>& piece,
                   int64_t columns, int64_t words, A* rows) {
    const T* from = source + piece.begin;
    for (int64_t k = 0; k < channels; ++k, from += stride, rows += words) {
      const int64_t whole = columns / kLanes * kLanes;
      for (int64_t c = 0; c < whole; c += kLanes) {
        L::store(rows + c, L::piece_at(from, piece, c));
      }
      for (int64_t c = whole; c < words; ++c) {
        const bool there = c < columns && c >= piece.low && c < piece.high;
        rows[c] = there && (!piece.mask || piece.mask[c]) ? static_cast<A>(from[c]) : A(0);
      }
    }
  }

  static void transpose(const T* source, int64_t stride, int64_t channels, int64_t count, A* panel) {
    for (int64_t first = 0; first < channels; first += kTile, panel += count * kTile) {
      const int64_t side = std::min(channels - first, kTile);
      constexpr int64_t kSpan = 16;  // of each channel, so that a line is read once
      for (int64_t n0 = 0; n0 < count; n0 += kSpan) {
        const int64_t n1 = std::min(n0 + kSpan, count);
        for (int64_t c = 0; c < kTile; ++c) {
          const T* from = source + (first + c) * stride;
          for (int64_t n = n0; n < n1; ++n) {
            panel[n * kTile + c] = c < side ? static_cast<A>(from[n]) : A(0);
          }
        }
      }
    }
  }
};

// Products on tiles of registers, which stay there over the whole sum.
template <typename Words>
struct Tile : Words {
  using typename Words::A;
  using typename Words::L;
  using typename Words::Vector;
  using Words::kLanes;
  using Words::kTile;
  using Words::kVectors;

  template <int64_t Rows, int64_t Vectors>
  static void tile(const A* const* left, int64_t skip, int64_t stride, int64_t taps, int64_t steps,
                   const A* panel, const A* offset, int64_t columns, A* out, int64_t out_stride) {
    Vector sums[Rows][Vectors];
#pragma GCC unroll 8
    for (int64_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < Vectors; ++v) sums[r][v] = Vector{};
    }
    for (int64_t t = 0; t < taps; ++t) {
      Words::template accumulate<Rows, Vectors>(sums, left[t] + skip, stride, 1, steps, panel);
      panel += steps * kTile;
    }
    const int64_t whole = columns / kLanes;
    for (int64_t r = 0; r < Rows; ++r) {
      A* row = out + r * out_stride;
      // Last, because a large offset would cost every partial sum its low digits.
      for (int64_t v = 0; v < Vectors; ++v) sums[r][v] += offset ? L::all(offset[r]) : Vector{};
      for (int64_t v = 0; v < whole; ++v) L::store(row + v * kLanes, sums[r][v]);
      for (int64_t c = whole * kLanes; c < columns; ++c) row[c] = sums[r][whole][c - whole * kLanes];
    }
  }

  // Blocks of more rows than the registers hold are multiplied in parts.
  template <int64_t Rows, int64_t Vectors>
  static void rows(const A* const* left, int64_t taps, int64_t steps, const A* panel,
                   const A* offset, int64_t columns, A* out, int64_t out_stride) {
    constexpr int64_t kPart = Rows < FSDINO_TILE_ROWS ? Rows : FSDINO_TILE_ROWS;
    for (int64_t r = 0; r < Rows; r += kPart) {
      tile<kPart, Vectors>(left, r, Rows, taps, steps, panel, offset ? offset + r : nullptr, columns,
                           out + r * out_stride, out_stride);
    }
  }

  template <int64_t Vectors>
  static void vectors(const A* const* left, int64_t taps, int64_t steps, const A* panel,
                      const A* offset, int64_t row_count, int64_t columns, A* out,
                      int64_t out_stride) {
    switch (row_count) {
      case 8: return rows<8, Vectors>(left, taps, steps, panel, offset, columns, out, out_stride);
      case 4: return rows<4, Vectors>(left, taps, steps, panel, offset, columns, out, out_stride);
      case 2: return rows<2, Vectors>(left, taps, steps, panel, offset, columns, out, out_stride);
      default: return rows<1, Vectors>(left, taps, steps, panel, offset, columns, out, out_stride);
    }
  }

  static void multiply(const A* const* left, int64_t taps, int64_t steps, const A* panel,
                       const A* offset, int64_t row_count, int64_t columns, A* out,
                       int64_t out_stride) {
    static_assert(kVectors <= 3);
    const int64_t needed = ceil_div(columns, kLanes);
    if (needed == 1) {
      vectors<1>(left, taps, steps, panel, offset, row_count, columns, out, out_stride);
    } else if (needed == 2 || kVectors == 2) {
      vectors<2>(left, taps, steps, panel, offset, row_count, columns, out, out_stride);
    } else {
      vectors<kVectors>(left, taps, steps, panel, offset, row_count, columns, out, out_stride);
    }
  }

  template <int64_t Rows, int64_t Vectors>
  static void add_rows(const A* left, int64_t left_stride, int64_t steps, const A* panel, A* out,
                       int64_t out_stride) {
    constexpr int64_t kPart = Rows < FSDINO_TILE_ROWS ? Rows : FSDINO_TILE_ROWS;
    for (int64_t first = 0; first < Rows; first += kPart) {
      Vector sums[kPart][Vectors];
#pragma GCC unroll 8
      for (int64_t r = 0; r < kPart; ++r) {
#pragma GCC unroll 8
        for (int64_t v = 0; v < Vectors; ++v) sums[r][v] = Vector{};
      }
      Words::template accumulate<kPart, Vectors>(sums, left + first * left_stride, 1, left_stride,
                                                 steps, panel);
      for (int64_t r = 0; r < kPart; ++r) {
        A* row = out + (first + r) * out_stride;
        for (int64_t v = 0; v < Vectors; ++v) {
          L::store(row + v * kLanes, L::load(row + v * kLanes) + sums[r][v]);
        }
      }
    }
  }

  template <int64_t Vectors>
  static void add_vectors(const A* left, int64_t left_stride, int64_t steps, const A* panel,
                          int64_t row_count, A* out, int64_t out_stride) {
    switch (row_count) {
      case 8: return add_rows<8, Vectors>(left, left_stride, steps, panel, out, out_stride);
      case 4: return add_rows<4, Vectors>(left, left_stride, steps, panel, out, out_stride);
      case 2: return add_rows<2, Vectors>(left, left_stride, steps, panel, out, out_stride);
      default: return add_rows<1, Vectors>(left, left_stride, steps, panel, out, out_stride);
    }
  }

  static void multiply_rows(const A* left, int64_t left_stride, int64_t steps, const A* panel,
                            int64_t row_count, int64_t columns, A* out, int64_t out_stride) {
    if (columns <= kLanes) {
      add_vectors<1>(left, left_stride, steps, panel, row_count, out, out_stride);
    } else if (columns <= 2 * kLanes || kVectors == 2) {
      add_vectors<2>(left, left_stride, steps, panel, row_count, out, out_stride);
    } else {
      add_vectors<kVectors>(left, left_stride, steps, panel, row_count, out, out_stride);
    }
  }

  static void arrange(const A* words, int64_t stride, int64_t steps, int64_t row_count, A* out) {
    for (int64_t k = 0; k < steps; ++k, words += stride) {
      for (int64_t r = 0; r < row_count; ++r) *out++ = words[r];
    }
  }
};

// The functions of one kind of words; `most_steps` and the like as in `Simd`.
template <typename T, typename F>
constexpr Simd<T> functions_of(const char* name, int64_t depth, int64_t block, int64_t row_multiple,
                               int64_t most_steps, void (*release)()) {
  return {name,           depth,          F::kTile,           block,
          row_multiple,   most_steps,     F::multiply,        F::multiply_rows,
          release,        F::arrange,     F::pack,            F::pack_scaled,
          F::copy,        F::transpose,   F::sum_squares,     F::round,
          F::moments,     F::affine_relu, F::add_affine_relu, F::sum_distances,
          F::norm_sums,   F::norm_backward, F::scale,         F::relu_scale};
}

template <typename T>
const Simd<T>& table(const char* name) {
  static const Simd<T> functions =
      functions_of<T, Tile<Values<T>>>(name, 1, 8, 1, kUnlimited, nullptr);
  return functions;
}

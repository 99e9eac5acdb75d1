// Windows of support rows, for what never holds all of them.

#pragma once

#include "convolution.h"
#include "correlation.h"

namespace fsdino::cpu {

// The support rows that a band of a convolution's output rows needs, of one sample: [C, rows, Ws, N].
// Every row is computed once, where one lay that is not needed again.
template <typename T>
class Ring {
 public:
  // bytes: that bands may fill; a band of one row may need more.
  Ring(const Geometry& geometry, int64_t channels, int64_t bytes)
      : geometry_(geometry),
        channels_(channels),
        band_(band_of(geometry, channels, bytes)),
        rows_(rows_of(geometry, band_)),
        memory_(channels * rows_ * geometry.support_width * geometry.query()) {}

  // Convolves all bands. fill(begin, end, planes) computes support rows begin .. end - 1 of all
  // channels, use(planes, row, last) output rows row .. last - 1.
  template <typename Fill, typename Use>
  void walk(const Fill& fill, const Use& use) const {
    const int64_t reach = geometry_.support_kernel / 2, rows = geometry_.kept_height();
    const int64_t row_size = geometry_.support_width * geometry_.query();
    const Planes<T> planes{memory_.data(), rows_ * row_size, row_size, geometry_.query(), rows_};
    int64_t done = 0;
    for (int64_t row = 0; row < rows; row += band_) {
      const int64_t last = std::min(row + band_, rows);
      const int64_t begin = std::max(done, row * geometry_.stride - reach);
      const int64_t end =
          std::min((last - 1) * geometry_.stride + reach + 1, geometry_.support_height);
      fill(begin, end, planes);
      done = end;
      use(Planes<const T>{planes.data, planes.channel, planes.row, planes.column, planes.rows}, row,
          last);
    }
  }

  // Output rows of a band.
  int64_t band() const { return band_; }

 private:
  static int64_t rows_of(const Geometry& g, int64_t band) {
    return std::min((band - 1) * std::min(g.stride, g.support_height) + g.support_kernel,
                    g.support_height);
  }
  static int64_t band_of(const Geometry& g, int64_t channels, int64_t bytes) {
    const int64_t row = channels * g.support_width * g.query() * static_cast<int64_t>(sizeof(T));
    int64_t band = 1;
    while (band < g.kept_height() && rows_of(g, band + 1) * row <= bytes) ++band;
    return band;
  }

  Geometry geometry_;
  int64_t channels_, band_, rows_;
  Scratch<T> memory_;
};

// Fills a ring with the correlation of sample `b`.
template <typename T>
class CorrelationRows {
 public:
  // Every band packs the query's features again, which costs more than what a smaller ring saves.
  static constexpr int64_t kBytes = 96 << 20;

  CorrelationRows(const Geometry& geometry, const Features<T>& query, const Features<T>& support,
                  const MaybeTensor& support_weight, int64_t b)
      : width_(geometry.support_width),
        b_(b),
        query_(query),
        support_(support),
        weights_(weights_of<T>(support_weight, b, support.tokens())) {}

  void operator()(int64_t begin, int64_t end, const Planes<T>& planes) const {
    const int64_t cost = query_.channels() * (end - begin) * width_ * query_.tokens();
    for_each_map(1, query_.layers(), cost, [&](int64_t, int64_t layer) {
      std::vector<Row<T>> rows;
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < width_; ++j) rows.push_back({i * width_ + j, planes.at(layer, i, j)});
      }
      correlate<T>(query_, support_, b_, layer, rows, weights_);
    });
  }

 private:
  int64_t width_, b_;
  const Features<T>&query_, &support_;
  std::vector<Compute<T>> weights_;
};

}  // namespace fsdino::cpu

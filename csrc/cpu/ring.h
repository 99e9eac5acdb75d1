// The correlation of a window of support rows, for what never holds all of it.

#pragma once

#include "convolution.h"
#include "correlation.h"

namespace fsdino::cpu {

// The correlation of a window of support rows of one sample, [L, rows, Ws, N].
template <typename T>
class Ring {
 public:
  Ring(const Geometry& geometry, const Features<T>& query, const Features<T>& support)
      : geometry_(geometry),
        query_(query),
        support_(support),
        band_(band_of(geometry, query.layers())),
        rows_(rows_of(geometry, band_)),
        memory_(query.layers() * rows_ * geometry.support_width * geometry.query()) {}

  // Output rows to take at a time.
  int64_t band() const { return band_; }

  void start(int64_t b, const MaybeTensor& support_weight) {
    b_ = b;
    done_ = 0;
    weights_ = weights_of<T>(support_weight, b, support_.tokens());
  }

  // Makes the rows that output rows row .. last - 1 read available.
  Planes<const T> advance(int64_t row, int64_t last) {
    const int64_t reach = geometry_.support_kernel / 2;
    const int64_t begin = std::max({done_, row * geometry_.stride - reach, int64_t(0)});
    const int64_t end =
        std::min((last - 1) * geometry_.stride + reach + 1, geometry_.support_height);
    const Planes<T> planes = this->planes();
    for_each_map(1, query_.layers(), [&](int64_t, int64_t layer) {
      std::vector<Row<T>> rows;
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < geometry_.support_width; ++j) {
          rows.push_back({i * geometry_.support_width + j, planes.at(layer, i, j)});
        }
      }
      correlate<T>(query_, support_, b_, layer, rows, weights_);
    });
    done_ = end;
    return {planes.data, planes.channel, planes.row, planes.column, planes.rows};
  }

 private:
  // Every band packs the query's features anew: few bands, as long as the ring is small.
  static constexpr int64_t kBytes = 32 << 20;

  static int64_t rows_of(const Geometry& g, int64_t band) {
    return std::min((band - 1) * std::min(g.stride, g.support_height) + g.support_kernel,
                    g.support_height);
  }
  static int64_t band_of(const Geometry& g, int64_t layers) {
    const int64_t row = layers * g.support_width * g.query() * static_cast<int64_t>(sizeof(T));
    int64_t band = 1;
    while (band < g.kept_height() && rows_of(g, band + 1) * row <= kBytes) ++band;
    return band;
  }

  Planes<T> planes() const {
    const int64_t row = geometry_.support_width * geometry_.query();
    return {memory_.data(), rows_ * row, row, geometry_.query(), rows_};
  }

  const Geometry& geometry_;
  const Features<T>&query_, &support_;
  int64_t band_, rows_, b_ = 0, done_ = 0;
  std::vector<Compute<T>> weights_;
  Scratch<T> memory_;
};

}  // namespace fsdino::cpu

// Group normalisation, ReLU and the mean over the support: light passes over a raw volume [rows, C]
// of each sample, whose moments come from the convolution.

#include "tile.h"

namespace fsdino::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kStatisticsThreads = 1024;

// The sum of all threads' values, given to all.
template <int THREADS>
FSDINO_DEVICE float sum_of_block(float value) {
  float* const sums = reinterpret_cast<float*>(shared_memory());
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += from_lane(value, mask);
  synchronise();
  if (lane_index() == 0) sums[warp_index()] = value;
  synchronise();
  float total = 0.0f;
  for (int warp = 0; warp < THREADS / kWarp; ++warp) total += sums[warp];
  return total;
}

// A block for each group of a sample. Moments are merged as by Chan, Golub and LeVeque (1979), means
// as distances from the first of them.
FSDINO_KERNEL(kStatisticsThreads)
statistics_kernel(const float* moments, float* means, float* lows, float* rstds, int64_t rows,
                  int channels, int groups, float eps) {
  const int members = channels / groups, group = block_index() % groups;
  const int64_t batch = block_index() / groups, blocks = ceil_div(rows, int64_t(kWalkRows));
  const float* const own = moments + batch * blocks * 3 * channels + group * members;
  const float size = float(rows) * float(members);
  // Adds up `of(count, moments)` over blocks and channels.
  const auto sum = [&](const auto& of) {
    float total = 0.0f;
#pragma unroll 4
    for (int64_t i = thread_index(); i < blocks * members; i += kStatisticsThreads) {
      const int64_t block = i / members, left = rows - block * kWalkRows;
      total += of(float(left < kWalkRows ? left : kWalkRows), own + block * 3 * channels + i % members);
    }
    return sum_of_block<kStatisticsThreads>(total);
  };
  const float first = own[0];
  const float offset = sum([&](float count, const float* at) {
    return count * (at[0] - first + at[channels]);
  }) / size;
  const float squares = sum([&](float count, const float* at) {
    const float distance = at[0] - first - offset + at[channels];
    return at[2 * channels] + count * distance * distance;
  });
  if (thread_index() != 0) return;
  const float mean = first + offset, of_offset = mean - first;
  means[block_index()] = mean;
  lows[block_index()] = first - (mean - of_offset) + (offset - of_offset);
  rstds[block_index()] = 1.0f / root(squares / size + eps);
}

// BYTES of channels side by side, as they are loaded and stored.
template <typename T, int BYTES>
struct alignas(BYTES) Piece {
  static constexpr int kElements = BYTES / int(sizeof(T));
  T values[kElements];

  FSDINO_DEVICE static Piece at(const T* place) { return *reinterpret_cast<const Piece*>(place); }
  FSDINO_DEVICE void store(T* place) const { *reinterpret_cast<Piece*>(place) = *this; }
};

// A thread's piece of the channels, and its rows: threads side by side have pieces side by side.
template <int ELEMENTS>
struct Lane {
  int across, down;  // threads for a row's pieces, and rows at a time
  int channel, row;
  bool idle;

  // The pieces from `start` on.
  FSDINO_DEVICE Lane(int channels, int start) {
    across = smaller(channels / ELEMENTS, kThreads);
    down = kThreads / across;
    channel = (start + thread_index() % across) * ELEMENTS;
    row = thread_index() / across;
    idle = row >= down || channel >= channels;
  }
  // Adds up the values of all rows' threads, for the first row's.
  FSDINO_DEVICE void sum_rows(float (&values)[ELEMENTS]) const {
    float* const sums = reinterpret_cast<float*>(shared_memory());
    const auto place = [&](int of_row) {
      return sums + (of_row * across + thread_index() % across) * ELEMENTS;
    };
    synchronise();
    if (row < down) {
      for (int i = 0; i < ELEMENTS; ++i) place(row)[i] = values[i];
    }
    for (int left = down; left > 1; left = ceil_div(left, 2)) {
      synchronise();
      const int other = row + ceil_div(left, 2);
      if (other >= left) continue;
      for (int i = 0; i < ELEMENTS; ++i) place(row)[i] = values[i] += place(other)[i];
    }
  }
};
// Calls `run(lane)` until every piece of the channels has had its turn.
template <int ELEMENTS, typename F>
FSDINO_DEVICE void for_each_lane(int channels, const F& run) {
  for (int start = 0; start < channels / ELEMENTS; start += kThreads) {
    run(Lane<ELEMENTS>(channels, start));
  }
}

// What a piece of the channels of one sample is normalised with.
template <typename T, int ELEMENTS>
struct Channels {
  float mean[ELEMENTS], low[ELEMENTS], rstd[ELEMENTS], weight[ELEMENTS], bias[ELEMENTS];

  FSDINO_DEVICE Channels(const NormArguments<T>& norm, int64_t batch, int first) {
    const int members = norm.channels / norm.groups;
#pragma unroll
    for (int i = 0; i < ELEMENTS; ++i) {
      const int64_t group = batch * norm.groups + (first + i) / members;
      mean[i] = norm.mean[group];
      low[i] = norm.low[group];
      rstd[i] = norm.rstd[group];
      weight[i] = static_cast<float>(norm.weight[first + i]);
      bias[i] = static_cast<float>(norm.bias[first + i]);
    }
  }
  FSDINO_DEVICE float normalised(int i, T raw) const {
    return (static_cast<float>(raw) - mean[i] - low[i]) * rstd[i];
  }
  FSDINO_DEVICE float affine(int i, float value) const { return value * weight[i] + bias[i]; }
};

// A block's share: kNormRows rows of a sample.
struct Share {
  int64_t batch, first, last, block;

  FSDINO_DEVICE explicit Share(int64_t rows) : block(block_index()) {
    const int64_t blocks = ceil_div(rows, int64_t(kNormRows));
    batch = block / blocks;
    first = block % blocks * kNormRows;
    last = first + kNormRows < rows ? first + kNormRows : rows;
  }
};

template <typename T, int BYTES>
FSDINO_KERNEL(kThreads) normalise_kernel(const NormArguments<T> norm, T* out) {
  using P = Piece<T, BYTES>;
  const Share share(norm.rows);
  for_each_lane<P::kElements>(norm.channels, [&](const auto& lane) {
    if (lane.idle) return;
    const Channels<T, P::kElements> channels(norm, share.batch, lane.channel);
    for (int64_t row = share.first + lane.row; row < share.last; row += lane.down) {
      const int64_t at = (share.batch * norm.rows + row) * norm.channels + lane.channel;
      P piece = P::at(norm.raw + at);
#pragma unroll
      for (int i = 0; i < P::kElements; ++i) {
        const float value = channels.affine(i, channels.normalised(i, piece.values[i]));
        piece.values[i] = T(rectified(value));
      }
      piece.store(out + at);
    }
  });
}

// A block for each query token.
template <typename T, int BYTES>
FSDINO_KERNEL(kThreads) normalise_mean_kernel(const NormArguments<T> norm, T* out) {
  using P = Piece<T, BYTES>;
  const int64_t tokens = norm.rows / norm.kept, token = block_index(), batch = token / tokens;
  for_each_lane<P::kElements>(norm.channels, [&](const auto& lane) {
    float sums[P::kElements] = {};
    if (!lane.idle) {
      const Channels<T, P::kElements> channels(norm, batch, lane.channel);
      for (int64_t row = lane.row; row < norm.kept; row += lane.down) {
        const P raw = P::at(norm.raw + (token * norm.kept + row) * norm.channels + lane.channel);
#pragma unroll
        for (int i = 0; i < P::kElements; ++i) {
          sums[i] += rectified(channels.affine(i, channels.normalised(i, raw.values[i])));
        }
      }
    }
    lane.sum_rows(sums);
    if (lane.idle || lane.row > 0) return;
    for (int i = 0; i < P::kElements; ++i) {
      out[(batch * norm.channels + lane.channel + i) * tokens + token % tokens] =
          T(sums[i] / float(norm.kept));
    }
  });
}

// A row's normalised values, and the gradients behind the ReLU.
template <typename T, int BYTES>
struct Rectified {
  static constexpr int kElements = Piece<T, BYTES>::kElements;
  float grad[kElements], normalised[kElements];

  FSDINO_DEVICE Rectified(const NormArguments<T>& norm, const Channels<T, kElements>& channels,
                          const T* grads, bool reduced, int64_t row, int channel) {
    using P = Piece<T, BYTES>;
    const P raw = P::at(norm.raw + row * norm.channels + channel);
    const P given = P::at(grads + (reduced ? row / norm.kept : row) * norm.channels + channel);
    const float share = reduced ? 1.0f / float(norm.kept) : 1.0f;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      normalised[i] = channels.normalised(i, raw.values[i]);
      const bool stopped = channels.affine(i, normalised[i]) <= 0.0f;  // NaN passes
      grad[i] = stopped ? 0.0f : static_cast<float>(given.values[i]) * share;
    }
  }
};

template <typename T, int BYTES>
FSDINO_KERNEL(kThreads) distance_sums_kernel(const NormArguments<T> norm, float* sums) {
  using P = Piece<T, BYTES>;
  const Share share(norm.rows);
  const float* const means = norm.mean + share.batch * norm.groups;
  for_each_lane<P::kElements>(norm.channels, [&](const auto& lane) {
    float mean[P::kElements], distances[P::kElements] = {};
    if (!lane.idle) {
      for (int i = 0; i < P::kElements; ++i) {
        mean[i] = means[(lane.channel + i) / (norm.channels / norm.groups)];
      }
      for (int64_t row = share.first + lane.row; row < share.last; row += lane.down) {
        const int64_t at = (share.batch * norm.rows + row) * norm.channels + lane.channel;
        const P raw = P::at(norm.raw + at);
#pragma unroll
        for (int i = 0; i < P::kElements; ++i) {
          distances[i] += static_cast<float>(raw.values[i]) - mean[i];
        }
      }
    }
    lane.sum_rows(distances);
    if (lane.idle || lane.row > 0) return;
    float* const own = sums + share.block * norm.channels + lane.channel;
    for (int i = 0; i < P::kElements; ++i) own[i] = distances[i];
  });
}

template <typename T, int BYTES>
FSDINO_KERNEL(kThreads) gradient_sums_kernel(const NormArguments<T> norm, const T* grad,
                                             bool reduced, float* sums) {
  constexpr int kElements = Piece<T, BYTES>::kElements;
  const Share share(norm.rows);
  for_each_lane<kElements>(norm.channels, [&](const auto& lane) {
    float along[kElements] = {}, sum[kElements] = {};
    if (!lane.idle) {
      const Channels<T, kElements> channels(norm, share.batch, lane.channel);
      for (int64_t row = share.first + lane.row; row < share.last; row += lane.down) {
        const Rectified<T, BYTES> at(norm, channels, grad, reduced, share.batch * norm.rows + row,
                                     lane.channel);
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          along[i] += at.grad[i] * at.normalised[i];
          sum[i] += at.grad[i];
        }
      }
    }
    lane.sum_rows(along);
    lane.sum_rows(sum);
    if (lane.idle || lane.row > 0) return;
    float* const own = sums + share.block * 2 * norm.channels + lane.channel;
    for (int i = 0; i < kElements; ++i) {
      own[i] = along[i];
      own[norm.channels + i] = sum[i];
    }
  });
}

template <typename T, int BYTES>
FSDINO_KERNEL(kThreads) gradient_kernel(const NormArguments<T> norm, const T* grad, bool reduced,
                                        const float* means, T* out) {
  using P = Piece<T, BYTES>;
  const Share share(norm.rows);
  const float* const means_along = means + share.batch * 2 * norm.groups;
  for_each_lane<P::kElements>(norm.channels, [&](const auto& lane) {
    if (lane.idle) return;
    const Channels<T, P::kElements> channels(norm, share.batch, lane.channel);
    for (int64_t row = share.first + lane.row; row < share.last; row += lane.down) {
      const int64_t from = share.batch * norm.rows + row;
      const Rectified<T, BYTES> at(norm, channels, grad, reduced, from, lane.channel);
      P piece;
#pragma unroll
      for (int i = 0; i < P::kElements; ++i) {
        const int group = (lane.channel + i) / (norm.channels / norm.groups);
        const float along = means_along[group], mean = means_along[norm.groups + group];
        const float centred = at.grad[i] * channels.weight[i] - mean - at.normalised[i] * along;
        piece.values[i] = T(centred * channels.rstd[i]);
      }
      piece.store(out + from * norm.channels + lane.channel);
    }
  });
}

constexpr int64_t kSharedBytes = kThreads * 16 / 2 * sizeof(float);  // of `sum_rows`

// Calls `run(blocks of shares, bytes of a piece)`.
template <typename T, typename F>
void with_pieces(const NormArguments<T>& norm, const F& run) {
  const int64_t blocks = norm.batches * ceil_div(norm.rows, int64_t(kNormRows));
  with_piece_bytes<T>(norm.channels * sizeof(T), [&](auto bytes) { run(blocks, bytes); });
}

}  // namespace

void statistics(const float* moments, float* mean, float* low, float* rstd, int64_t rows,
                int batches, int channels, int groups, float eps, Stream stream) {
  launch(statistics_kernel, int64_t(batches) * groups, kStatisticsThreads,
         kStatisticsThreads / kWarp * int64_t(sizeof(float)), stream, moments, mean, low, rstd,
         rows, channels, groups, eps);
}

template <typename T>
void normalise(const NormArguments<T>& norm, T* out, Stream stream) {
  with_pieces(norm, [&](int64_t blocks, auto bytes) {
    launch(normalise_kernel<T, bytes()>, blocks, kThreads, 0, stream, norm, out);
  });
}

template <typename T>
void normalise_mean(const NormArguments<T>& norm, T* out, Stream stream) {
  with_pieces(norm, [&](int64_t, auto bytes) {
    launch(normalise_mean_kernel<T, bytes()>, norm.batches * (norm.rows / norm.kept), kThreads,
           kSharedBytes, stream, norm, out);
  });
}

template <typename T>
void sum_distances(const NormArguments<T>& norm, float* sums, Stream stream) {
  with_pieces(norm, [&](int64_t blocks, auto bytes) {
    launch(distance_sums_kernel<T, bytes()>, blocks, kThreads, kSharedBytes, stream, norm, sums);
  });
}

template <typename T>
void normalise_back_sums(const NormArguments<T>& norm, const T* grad, bool reduced, float* sums,
                         Stream stream) {
  with_pieces(norm, [&](int64_t blocks, auto bytes) {
    launch(gradient_sums_kernel<T, bytes()>, blocks, kThreads, kSharedBytes, stream, norm, grad,
           reduced, sums);
  });
}

template <typename T>
void normalise_back(const NormArguments<T>& norm, const T* grad, bool reduced, const float* means,
                    T* out, Stream stream) {
  with_pieces(norm, [&](int64_t blocks, auto bytes) {
    launch(gradient_kernel<T, bytes()>, blocks, kThreads, 0, stream, norm, grad, reduced, means,
           out);
  });
}

#define FSDINO_INSTANTIATE(T)                                                                   \
  template void normalise<T>(const NormArguments<T>&, T*, Stream);                              \
  template void normalise_mean<T>(const NormArguments<T>&, T*, Stream);                         \
  template void sum_distances<T>(const NormArguments<T>&, float*, Stream);                      \
  template void normalise_back_sums<T>(const NormArguments<T>&, const T*, bool, float*, Stream); \
  template void normalise_back<T>(const NormArguments<T>&, const T*, bool, const float*, T*,    \
                                  Stream);
FSDINO_FOR_EACH_TYPE(FSDINO_INSTANTIATE)

}  // namespace fsdino::cuda

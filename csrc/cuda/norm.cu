// Group normalisation, ReLU and the mean over the support: light passes over a raw volume [rows, C]
// of each sample. A warp's lanes have different channels, its warps different rows.

#include "device.h"

namespace fsdino::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// A block's share: kNormRows rows of a sample.
struct Share {
  int64_t batch, first, last;
  int64_t block;

  FSDINO_DEVICE explicit Share(int64_t rows) : block(block_index()) {
    const int64_t blocks = ceil_div(rows, int64_t(kNormRows));
    batch = block / blocks;
    first = block % blocks * kNormRows;
    last = first + kNormRows < rows ? first + kNormRows : rows;
  }
};

// The sums over a block's warps of each lane's value, given to all.
FSDINO_DEVICE float sum_of_warps(float value) {
  float* const sums = reinterpret_cast<float*>(shared_memory());
  synchronise();
  sums[warp_index() * kWarp + lane_index()] = value;
  synchronise();
  float total = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp * kWarp + lane_index()];
  return total;
}

template <typename T>
FSDINO_KERNEL(kThreads) moments_kernel(const T* raw, float* partial, int64_t rows, int channels) {
  const Share share(rows);
  const T* const sample = raw + share.batch * rows * channels;
  const float count = float(share.last - share.first);
  for (int start = 0; start < channels; start += kWarp) {
    const int c = start + lane_index();
    const bool inside = c < channels;
    float sum = 0.0f, squares = 0.0f;
    for (int64_t row = share.first + warp_index(); inside && row < share.last; row += kWarps) {
      sum += static_cast<float>(sample[row * channels + c]);
    }
    const float mean = sum_of_warps(sum) / count;
    for (int64_t row = share.first + warp_index(); inside && row < share.last; row += kWarps) {
      const float centred = static_cast<float>(sample[row * channels + c]) - mean;
      squares += centred * centred;
    }
    squares = sum_of_warps(squares);
    if (inside && warp_index() == 0) {
      partial[share.block * 2 * channels + c] = mean;
      partial[(share.block * 2 + 1) * channels + c] = squares;
    }
  }
}

// What one channel of one sample is normalised with.
template <typename T>
struct Channel {
  float mean, rstd, weight, bias;

  FSDINO_DEVICE Channel(const NormArguments<T>& norm, int64_t batch, int c) {
    const int64_t group = batch * norm.groups + c / (norm.channels / norm.groups);
    mean = norm.mean[group];
    rstd = norm.rstd[group];
    weight = static_cast<float>(norm.weight[c]);
    bias = static_cast<float>(norm.bias[c]);
  }
  FSDINO_DEVICE float normalised(T raw) const { return (static_cast<float>(raw) - mean) * rstd; }
  FSDINO_DEVICE float affine(float value) const { return value * weight + bias; }
};

template <typename T>
FSDINO_KERNEL(kThreads) normalise_kernel(const NormArguments<T> norm, T* out) {
  const Share share(norm.rows);
  for (int c = lane_index(); c < norm.channels; c += kWarp) {
    const Channel<T> channel(norm, share.batch, c);
    for (int64_t row = share.first + warp_index(); row < share.last; row += kWarps) {
      const int64_t at = (share.batch * norm.rows + row) * norm.channels + c;
      out[at] = T(rectified(channel.affine(channel.normalised(norm.raw[at]))));
    }
  }
}

// A block for each query token.
template <typename T>
FSDINO_KERNEL(kThreads) normalise_mean_kernel(const NormArguments<T> norm, T* out) {
  const int64_t tokens = norm.rows / norm.kept, token = block_index(), batch = token / tokens;
  for (int start = 0; start < norm.channels; start += kWarp) {
    const int c = start + lane_index();
    float sum = 0.0f;
    if (c < norm.channels) {
      const Channel<T> channel(norm, batch, c);
      for (int64_t row = warp_index(); row < norm.kept; row += kWarps) {
        const T raw = norm.raw[(token * norm.kept + row) * norm.channels + c];
        sum += rectified(channel.affine(channel.normalised(raw)));
      }
    }
    const float mean = sum_of_warps(sum) / float(norm.kept);
    if (c < norm.channels && warp_index() == 0) {
      out[(batch * norm.channels + c) * tokens + token % tokens] = T(mean);
    }
  }
}

// The gradient behind the ReLU, and the normalised value.
template <typename T>
struct Rectified {
  float grad, normalised;

  FSDINO_DEVICE Rectified(const NormArguments<T>& norm, const Channel<T>& channel, const T* grads,
                          bool reduced, int64_t batch, int64_t row, int c) {
    const int64_t at = (batch * norm.rows + row) * norm.channels + c;
    normalised = channel.normalised(norm.raw[at]);
    const int64_t tokens = norm.rows / norm.kept;
    grad = reduced ? static_cast<float>(
                         grads[(batch * norm.channels + c) * tokens + row / norm.kept]) /
                         float(norm.kept)
                   : static_cast<float>(grads[at]);
    if (channel.affine(normalised) <= 0.0f) grad = 0.0f;
  }
};

template <typename T>
FSDINO_KERNEL(kThreads) gradient_sums_kernel(const NormArguments<T> norm, const T* grad,
                                             bool reduced, float* sums) {
  const Share share(norm.rows);
  for (int start = 0; start < norm.channels; start += kWarp) {
    const int c = start + lane_index();
    float along = 0.0f, sum = 0.0f;
    if (c < norm.channels) {
      const Channel<T> channel(norm, share.batch, c);
      for (int64_t row = share.first + warp_index(); row < share.last; row += kWarps) {
        const Rectified<T> at(norm, channel, grad, reduced, share.batch, row, c);
        along += at.grad * at.normalised;
        sum += at.grad;
      }
    }
    along = sum_of_warps(along);
    sum = sum_of_warps(sum);
    if (c < norm.channels && warp_index() == 0) {
      sums[share.block * 2 * norm.channels + c] = along;
      sums[(share.block * 2 + 1) * norm.channels + c] = sum;
    }
  }
}

template <typename T>
FSDINO_KERNEL(kThreads) gradient_kernel(const NormArguments<T> norm, const T* grad, bool reduced,
                                        const float* means, T* out) {
  const Share share(norm.rows);
  for (int c = lane_index(); c < norm.channels; c += kWarp) {
    const Channel<T> channel(norm, share.batch, c);
    const int group = c / (norm.channels / norm.groups);
    const float along = means[share.batch * 2 * norm.groups + group];
    const float mean = means[(share.batch * 2 + 1) * norm.groups + group];
    for (int64_t row = share.first + warp_index(); row < share.last; row += kWarps) {
      const Rectified<T> at(norm, channel, grad, reduced, share.batch, row, c);
      const float centred = at.grad * channel.weight - mean - at.normalised * along;
      out[(share.batch * norm.rows + row) * norm.channels + c] = T(centred * channel.rstd);
    }
  }
}

constexpr int64_t kSharedBytes = kThreads * sizeof(float);

int64_t share_blocks(int64_t rows, int batches) {
  return batches * ceil_div(rows, int64_t(kNormRows));
}

}  // namespace

template <typename T>
void moments(const T* raw, float* partial, int64_t rows, int batches, int channels, Stream stream) {
  launch(moments_kernel<T>, share_blocks(rows, batches), kThreads, kSharedBytes, stream, raw,
         partial, rows, channels);
}

template <typename T>
void normalise(const NormArguments<T>& norm, T* out, Stream stream) {
  launch(normalise_kernel<T>, share_blocks(norm.rows, norm.batches), kThreads, 0, stream, norm, out);
}

template <typename T>
void normalise_mean(const NormArguments<T>& norm, T* out, Stream stream) {
  launch(normalise_mean_kernel<T>, norm.batches * (norm.rows / norm.kept), kThreads, kSharedBytes,
         stream, norm, out);
}

template <typename T>
void normalise_back_sums(const NormArguments<T>& norm, const T* grad, bool reduced, float* sums,
                         Stream stream) {
  launch(gradient_sums_kernel<T>, share_blocks(norm.rows, norm.batches), kThreads, kSharedBytes,
         stream, norm, grad, reduced, sums);
}

template <typename T>
void normalise_back(const NormArguments<T>& norm, const T* grad, bool reduced, const float* means,
                    T* out, Stream stream) {
  launch(gradient_kernel<T>, share_blocks(norm.rows, norm.batches), kThreads, 0, stream, norm, grad,
         reduced, means, out);
}

#define FSDINO_INSTANTIATE(T)                                                                   \
  template void moments<T>(const T*, float*, int64_t, int, int, Stream);                        \
  template void normalise<T>(const NormArguments<T>&, T*, Stream);                              \
  template void normalise_mean<T>(const NormArguments<T>&, T*, Stream);                         \
  template void normalise_back_sums<T>(const NormArguments<T>&, const T*, bool, float*, Stream); \
  template void normalise_back<T>(const NormArguments<T>&, const T*, bool, const float*, T*,    \
                                  Stream);
FSDINO_FOR_EACH_TYPE(FSDINO_INSTANTIATE)

}  // namespace fsdino::cuda

// What the host asks of the kernels: one function each, with its arguments. Tensors are given by
// their pointers; channels are innermost in features and volumes alike.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "index.h"

#ifndef FSDINO_EMULATED
#include <cuda_runtime_api.h>
#endif

namespace fsdino::cuda {

#ifdef FSDINO_EMULATED
using Stream = int;
#else
using Stream = cudaStream_t;
#endif

// Whether the current device's code is that of sm_90a, in which halves take `wgmma` and bulk copies.
bool runs_hopper_code();

// Features [B, L, N, C] whose tokens [N, C] are dense; the batch may be shared (stride 0).
template <typename T>
struct Tokens {
  const T* values;
  const float* inverse;  // 1 / (length + eps), [B, L, N]
  int64_t batch, layer;  // strides of the values
  int64_t inverse_batch;
  int count;
};

// A query, a support, the support's weights [B, M] or null.
template <typename T>
struct Cosines {
  Tokens<T> query, support;
  const T* weight;
  int batches, layers, channels;
  bool tf32;
};

template <typename T>
void lengths(const T* values, float* inverse, int64_t batches, int64_t batch_stride, int layers,
             int64_t layer_stride, int64_t count, int channels, float eps, Stream stream);

// [B, N, M, L].
template <typename T>
void correlate(const Cosines<T>& cosines, T* out, Stream stream);

// From the gradient to the correlation, [B, N, M, L] with the batch strided, that to the cosines,
// [B, L, N, M], and to the weights, of each `kCorrelationRows` query tokens, [B, L, blocks, M];
// either may be null.
constexpr int kCorrelationRows = 128;
template <typename T>
void correlate_back(const Cosines<T>& cosines, const T* grad, int64_t grad_batch, T* cosine_grad,
                    float* weight_grad, Stream stream);

// Tokens over their lengths, [B, L, N, C]; 0 where the weight is.
template <typename T>
void units(const Tokens<T>& tokens, const T* weight, T* out, int batches, int layers, int channels,
           Stream stream);

// From the gradient to unit tokens, [B, L, N, C], that to the tokens, of the same shape.
template <typename T>
void units_back(const Tokens<T>& tokens, const T* weight, const T* grad, T* out, int batches,
                int layers, int channels, float eps, Stream stream);

// `out` = `source` walked over with the taps' matrices [taps, CO, CI], plus bias [CO] or null.
// Volumes are dense but for the batch, whose strides are in positions. Where `moments` is not null,
// it gets mean, what this lost when it was rounded, and sum of squared deviations of each channel of
// each kWalkRows positions walked: [B, blocks, 3, CO].
constexpr int kWalkRows = 128;
template <typename T>
struct WalkArguments {
  const T* source;
  const T* weights;
  const T* bias;
  T* out;
  float* moments;
  const bool* finite;  // whether all weights are, on the device, for the transpose; else null
  int64_t source_batch, out_batch;
  int batches, inner, outer;
  bool tf32;
};
template <typename T>
void walk(const Walk& walk, const WalkArguments<T>& arguments, Stream stream);

// Gradients to all the taps' matrices, of each share of the positions: [shares, taps, CI, CO].
template <typename T>
struct WeightGradientArguments {
  const T* source;
  const T* grad;
  float* partial;
  int64_t source_batch, grad_batch;
  int batches, inner, outer, shares;
  bool tf32;
};
// Steps over the positions, of which a share is a whole number.
int64_t weight_gradient_steps(const Walk& walk, int batches, int element_bytes);
// Blocks of threads that take one share.
int64_t weight_gradient_blocks(const Walk& walk, int inner, int outer);
template <typename T>
void weight_gradients(const Walk& walk, const WeightGradientArguments<T>& arguments, Stream stream);

// Group normalisation of [B, rows, C], in passes.
template <typename T>
struct NormArguments {
  const T* raw;
  const float* mean;  // [B, G]
  const float* low;   // what it lost when it was rounded
  const float* rstd;
  const T* weight;  // [C]
  const T* bias;
  int64_t rows, kept;  // positions in a sample, and at each query position
  int batches, channels, groups;
};
// From moments as of the walk, mean, in two parts, and reciprocal standard deviation of each group,
// [B, G].
void statistics(const float* moments, float* mean, float* low, float* rstd, int64_t rows,
                int batches, int channels, int groups, float eps, Stream stream);
template <typename T>
void normalise(const NormArguments<T>& norm, T* out, Stream stream);
// [B, C, tokens]: the mean over the kept support positions.
template <typename T>
void normalise_mean(const NormArguments<T>& norm, T* out, Stream stream);
// Of each `kNormRows` positions the sum of the distances from the group's mean, [B, blocks, C].
constexpr int kNormRows = 512;
template <typename T>
void sum_distances(const NormArguments<T>& norm, float* sums, Stream stream);
// `grad` is [B, rows, C], or [B, tokens, C] where `reduced`. Of each `kNormRows` positions the sums
// of gradient times normalised value and of the gradient, [B, blocks, 2, C].
template <typename T>
void normalise_back_sums(const NormArguments<T>& norm, const T* grad, bool reduced, float* sums,
                         Stream stream);
// means: of the scaled gradient times the value and of the scaled gradient, [B, 2, G].
template <typename T>
void normalise_back(const NormArguments<T>& norm, const T* grad, bool reduced, const float* means,
                    T* out, Stream stream);

#define FSDINO_FOR_EACH_TYPE(INSTANTIATE) \
  INSTANTIATE(float) INSTANTIATE(c10::Half) INSTANTIATE(c10::BFloat16)

}  // namespace fsdino::cuda

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

#define FSDINO_FOR_EACH_TYPE(INSTANTIATE) \
  INSTANTIATE(float) INSTANTIATE(c10::Half) INSTANTIATE(c10::BFloat16)

}  // namespace fsdino::cuda

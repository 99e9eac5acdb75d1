// From tensors to the kernels' arguments: memory order, device and stream.
//
// Volumes [B, C, Hq, Wq, Hs, Ws] are dense with the channels innermost, [B][Hq][Wq][Hs][Ws][C], but
// for the batch, which has any stride, 0 where one volume serves all of it.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#ifndef FSDINO_EMULATED
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include "../ops.h"
#include "kernels.h"

namespace fsdino::cuda {

// Runs a lambda with `scalar_t`, one of the three types that the kernels take.
#define FSDINO_CUDA_DISPATCH(tensor, name, ...)                                                  \
  AT_DISPATCH_SWITCH((tensor).scalar_type(), name,                                               \
                     AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__)                                   \
                     AT_DISPATCH_CASE(at::kHalf, __VA_ARGS__)                                    \
                     AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

// Makes a tensor's GPU the current one, and knows its current stream.
class OnDevice {
 public:
#ifdef FSDINO_EMULATED
  explicit OnDevice(const Tensor&) {}
  operator Stream() const { return 0; }
#else
  explicit OnDevice(const Tensor& tensor)
      : guard_(tensor.device()),
        stream_(c10::cuda::getCurrentCUDAStream(tensor.device().index())) {}
  operator Stream() const { return stream_.stream(); }

 private:
  const c10::cuda::CUDAGuard guard_;
  const c10::cuda::CUDAStream stream_;
#endif
};

// Whether PyTorch's own switch allows TF32 for products of floats.
bool tf32_allowed();

// An uninitialised volume [B, C, Hq, Wq, Hs, Ws], channels innermost.
Tensor empty_volume(const Tensor& like, at::IntArrayRef shape);
// The tensor itself where it lies as kernels want it, else a copy; what the batch shares once.
Tensor to_volume(const Tensor& x);
inline Tensor plain(const Tensor& tensor) { return tensor.resolve_neg().contiguous(); }
inline Tensor empty_of(const Tensor& like) { return at::empty({0}, like.options()); }
template <typename T>
const T* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// Features [B, L, C, H, W] as tokens [B, L, N, C], and the reciprocals of their lengths.
struct Features {
  Tensor values, inverse;

  Features(const Tensor& features, double eps);

  template <typename T>
  Tokens<T> tokens() const {
    return {values.const_data_ptr<T>(), inverse.const_data_ptr<float>(), values.stride(0),
            values.stride(1), inverse.stride(0), int(values.size(2))};
  }
};

Tensor plain_weight(const MaybeTensor& weight);
// Gradient to tokens [B, L, N, C] as that to features [B, L, C, H, W].
Tensor as_features(const Tensor& grad, const Tensor& features);

}  // namespace fsdino::cuda

// From tensors to the kernels' arguments: memory order, device and stream.
//
// Volumes [B, C, Hq, Wq, Hs, Ws] are dense with the channels innermost, [B][Hq][Wq][Hs][Ws][C], but
// for the batch, whose stride is any number of positions, 0 where one volume serves all of it.

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
// Dense also over the batch.
Tensor to_dense_volume(const Tensor& x);
// Of [B, C, H, W], dense tokens with their channels innermost.
Tensor to_dense_tokens(const Tensor& x);
// Positions from one sample of a volume to the next.
inline int64_t batch_positions(const Tensor& volume) { return volume.stride(0) / volume.size(1); }
inline Volume sizes_of(const Tensor& volume) {
  return {int(volume.size(2)), int(volume.size(3)), int(volume.size(4)), int(volume.size(5))};
}
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

// A query, a support and the support's weights, undefined where there are none.
struct Pair {
  Features query, support;
  Tensor weight;
  double eps;

  template <typename T>
  Cosines<T> cosines() const {
    return {query.tokens<T>(), support.tokens<T>(), pointer<T>(weight), int(query.values.size(0)),
            int(query.values.size(1)), int(query.values.size(3)), tf32_allowed()};
  }
  // [B, L, Hq, Wq, Hs, Ws] of a query and support of these sizes.
  void correlate_into(Tensor& out, Stream stream) const;
  // Gradients to query tokens [B, L, N, C], support tokens and weights [B, M], float32, from that to
  // the correlation; undefined where not needed.
  std::tuple<Tensor, Tensor, Tensor> back(const Tensor& grad, const std::array<bool, 3>& needs,
                                          Stream stream) const;
};
Tensor plain_weight(const MaybeTensor& weight);
// Gradient to tokens [B, L, N, C] as that to features [B, L, C, H, W].
Tensor as_features(const Tensor& grad, const Tensor& features);

// One matrix for each tap: [kq * kq + ks * ks, Co, Ci], or with `back` [..., Ci, Co].
Tensor tap_matrices(const Tensor& weight_query, const Tensor& weight_support, bool back);
void convolve(const Tensor& source, const Tensor& matrices, const MaybeTensor& bias, Tensor out,
              const Convolution& convolution, Stream stream, float* moments = nullptr);
void convolve_back(const Tensor& grad, const Tensor& matrices, Tensor out,
                   const Convolution& convolution, Stream stream);
// Gradients to both weights, in float32.
std::tuple<Tensor, Tensor> weight_gradients_of(const Tensor& source, const Tensor& grad,
                                               const Tensor& weight_query,
                                               const Tensor& weight_support,
                                               const Convolution& convolution, Stream stream);
// [taps, Ci, Co] -> [Co, Ci, kq, kq] and [Co, Ci, ks, ks].
std::tuple<Tensor, Tensor> as_kernels(const Tensor& matrices, const Tensor& weight_query,
                                      const Tensor& weight_support);
inline Tensor bias_gradient(const Tensor& grad) {
  return grad.sum({0, 2, 3, 4, 5}, false, at::kFloat);
}
inline Convolution convolution_of(const Tensor& weight_query, const Tensor& weight_support,
                                  int64_t stride, int64_t first_query_row = 0) {
  return {int(weight_query.size(3)), int(weight_support.size(3)), int(stride),
          int(first_query_row)};
}
inline Tensor empty_output(const Tensor& x, int64_t channels, int64_t stride) {
  return empty_volume(x, {x.size(0), channels, x.size(2), x.size(3),
                          ceil_div(x.size(4), stride), ceil_div(x.size(5), stride)});
}

}  // namespace fsdino::cuda

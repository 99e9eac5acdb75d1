// The four ops on NVIDIA GPUs, forward and backward; signatures as in fsdino/ops/reference.py.
//
// Arguments have been checked in Python. Volumes [B, C, Hq, Wq, Hs, Ws] come in any strides and are
// returned with the channels innermost in memory: see tensors.h. Gradients that `needs` does not ask
// for are empty tensors.

#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace fsdino::cuda {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Needs = c10::List<bool>;

Tensor correlation4d(const Tensor& query, const Tensor& support, const MaybeTensor& support_weight,
                     double eps);

std::tuple<Tensor, Tensor, Tensor> correlation4d_backward(const Tensor& grad, const Tensor& query,
                                                          const Tensor& support,
                                                          const MaybeTensor& support_weight,
                                                          double eps, Needs needs);

Tensor center_pivot_conv4d(const Tensor& x, const Tensor& weight_query,
                           const Tensor& weight_support, const MaybeTensor& bias,
                           int64_t support_stride);

std::tuple<Tensor, Tensor, Tensor, Tensor> center_pivot_conv4d_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    int64_t support_stride, Needs needs);

std::tuple<Tensor, Tensor, Tensor, Tensor> center_pivot_block4d(
    const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    const MaybeTensor& bias, const Tensor& norm_weight, const Tensor& norm_bias,
    int64_t num_groups, double norm_eps, int64_t support_stride, bool reduce_support, bool save);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> center_pivot_block4d_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& raw, const Tensor& mean,
    const Tensor& rstd, int64_t support_stride, bool reduce_support, Needs needs);

Tensor correlation_center_pivot4d(const Tensor& query, const Tensor& support,
                                  const MaybeTensor& support_weight, const Tensor& weight_query,
                                  const Tensor& weight_support, const MaybeTensor& bias,
                                  int64_t support_stride, double eps);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> correlation_center_pivot4d_backward(
    const Tensor& grad, const Tensor& query, const Tensor& support,
    const MaybeTensor& support_weight, const Tensor& weight_query, const Tensor& weight_support,
    int64_t support_stride, double eps, Needs needs);

}  // namespace fsdino::cuda

// Group normalisation and ReLU of planes.

#pragma once

#include <vector>

#include "convolution.h"

namespace fsdino::cpu {

// The affine step of each sample and channel, [B, C], from the moments of each sample and group and
// the parameters of the normalisation, [C].
template <typename T>
std::vector<Affine<Compute<T>>> affines_of(const std::vector<Moments>& moments, int64_t groups,
                                           const Tensor& norm_weight, const Tensor& norm_bias,
                                           double eps);

// y = relu(affine of raw) for planes [B, C, H, W, Hq, Wq], with the affine step of each sample and
// channel; or its mean over H and W, [B, C, Hq, Wq].
template <typename T>
Tensor normalise(const Tensor& raw, const std::vector<Affine<Compute<T>>>& affines, bool reduce,
                 bool in_place);

}  // namespace fsdino::cpu

// center_pivot_conv4d and center_pivot_block4d from tensors.

#include "tensors.h"

#include <limits>

namespace fsdino::cuda {

namespace {

constexpr int64_t kShares = 2048;  // blocks that the positions of a weights' gradient are split for

template <typename T>
NormArguments<T> norm_arguments(const Tensor& raw, const Tensor& mean, const Tensor& low,
                                const Tensor& rstd, const Tensor& weight, const Tensor& bias) {
  const Volume volume = sizes_of(raw);
  return {raw.const_data_ptr<T>(), mean.const_data_ptr<float>(), pointer<float>(low),
          rstd.const_data_ptr<float>(), weight.const_data_ptr<T>(), bias.const_data_ptr<T>(),
          volume.positions(), volume.support(), int(raw.size(0)), int(raw.size(1)),
          int(mean.size(1))};
}

}  // namespace

Tensor tap_matrices(const Tensor& weight_query, const Tensor& weight_support, bool back) {
  const auto matrix = [&](const Tensor& weight) {
    return weight.flatten(2).permute(back ? at::IntArrayRef{2, 1, 0} : at::IntArrayRef{2, 0, 1});
  };
  return plain(at::cat({matrix(weight_query), matrix(weight_support)}));
}

void convolve(const Tensor& source, const Tensor& matrices, const MaybeTensor& bias, Tensor out,
              const Convolution& convolution, Stream stream, float* moments) {
  if (out.numel() == 0) return;
  const Tensor dense_bias = bias ? plain(*bias) : Tensor();
  FSDINO_CUDA_DISPATCH(source, "center_pivot_conv4d", [&] {
    walk<scalar_t>(walk_forward(sizes_of(source), sizes_of(out), convolution),
                   {source.const_data_ptr<scalar_t>(), matrices.const_data_ptr<scalar_t>(),
                    pointer<scalar_t>(dense_bias), out.mutable_data_ptr<scalar_t>(), moments, nullptr,
                    batch_positions(source), batch_positions(out), int(source.size(0)),
                    int(source.size(1)), int(out.size(1)), tf32_allowed()},
                   stream);
  });
}

void convolve_back(const Tensor& grad, const Tensor& matrices, Tensor out,
                   const Convolution& convolution, Stream stream) {
  if (out.numel() == 0) return;
  const Volume volume = sizes_of(out);
  const Tensor finite = at::isfinite(matrices).all();
  FSDINO_CUDA_DISPATCH(grad, "center_pivot_conv4d_backward", [&] {
    for (int row = 0; row < smaller(convolution.stride, volume.support_rows); ++row) {
      for (int column = 0; column < smaller(convolution.stride, volume.support_columns); ++column) {
        walk<scalar_t>(walk_back(sizes_of(grad), volume, convolution, row, column),
                       {grad.const_data_ptr<scalar_t>(), matrices.const_data_ptr<scalar_t>(),
                        nullptr, out.mutable_data_ptr<scalar_t>(), nullptr,
                        finite.const_data_ptr<bool>(),
                        batch_positions(grad), batch_positions(out), int(grad.size(0)),
                        int(grad.size(1)), int(out.size(1)), tf32_allowed()},
                       stream);
      }
    }
  });
}

std::tuple<Tensor, Tensor> as_kernels(const Tensor& matrices, const Tensor& weight_query,
                                      const Tensor& weight_support) {
  const Tensor kernels = matrices.permute({2, 1, 0});  // [Co, Ci, taps]
  const int64_t over_query = weight_query.size(2) * weight_query.size(3);
  const auto copied = [&](int64_t first, const Tensor& weight) {  // two results share no memory
    const int64_t taps = weight.size(2) * weight.size(3);
    return kernels.narrow(2, first, taps).clone(at::MemoryFormat::Contiguous).view(weight.sizes());
  };
  return {copied(0, weight_query), copied(over_query, weight_support)};
}

std::tuple<Tensor, Tensor> weight_gradients_of(const Tensor& source, const Tensor& grad,
                                               const Tensor& weight_query,
                                               const Tensor& weight_support,
                                               const Convolution& convolution, Stream stream) {
  const Walk walk = walk_forward(sizes_of(source), sizes_of(grad), convolution);
  const int64_t inner = source.size(1), outer = grad.size(1);
  const int64_t steps = weight_gradient_steps(walk, int(source.size(0)), int(grad.element_size()));
  const int64_t blocks = weight_gradient_blocks(walk, int(inner), int(outer));
  const int64_t most = std::min(steps, std::max<int64_t>(1, kShares / blocks));
  const int64_t shares = most == 0 ? 0 : ceil_div(steps, ceil_div(steps, most));
  Tensor partial =
      at::empty({shares, walk.taps(), inner, outer}, grad.options().dtype(at::kFloat));
  if (shares > 0) {
    FSDINO_CUDA_DISPATCH(grad, "center_pivot_conv4d_backward", [&] {
      weight_gradients<scalar_t>(
          walk,
          {source.const_data_ptr<scalar_t>(), grad.const_data_ptr<scalar_t>(),
           partial.mutable_data_ptr<float>(), batch_positions(source), batch_positions(grad),
           int(source.size(0)), int(inner), int(outer), int(shares), tf32_allowed()},
          stream);
    });
  }
  return as_kernels(partial.sum(0), weight_query, weight_support);
}

Tensor center_pivot_conv4d(const Tensor& x, const Tensor& weight_query,
                           const Tensor& weight_support, const MaybeTensor& bias,
                           int64_t support_stride) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(x);
  Tensor y = empty_output(x, weight_query.size(0), support_stride);
  convolve(to_volume(x), tap_matrices(weight_query, weight_support, false), bias, y,
           convolution_of(weight_query, weight_support, support_stride), device);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> center_pivot_conv4d_backward(
    const Tensor& given, const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    int64_t support_stride, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(x);
  const Tensor grad = to_volume(given);
  const Convolution convolution = convolution_of(weight_query, weight_support, support_stride);
  Tensor to_x = empty_of(grad), to_query = empty_of(grad), to_support = empty_of(grad);
  Tensor to_bias = empty_of(grad);
  if (needs[0]) {
    to_x = empty_volume(x, x.sizes());
    convolve_back(grad, tap_matrices(weight_query, weight_support, true), to_x, convolution, device);
  }
  if (needs[1] || needs[2]) {
    const auto [of_query, of_support] = weight_gradients_of(to_volume(x), grad, weight_query,
                                                            weight_support, convolution, device);
    if (needs[1]) to_query = of_query.to(grad.scalar_type());
    if (needs[2]) to_support = of_support.to(grad.scalar_type());
  }
  if (needs[3]) to_bias = bias_gradient(grad).to(grad.scalar_type());
  return {to_x, to_query, to_support, to_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> center_pivot_block4d(
    const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    const MaybeTensor& bias, const Tensor& norm_weight, const Tensor& norm_bias,
    int64_t num_groups, double norm_eps, int64_t support_stride, bool reduce_support, bool save) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(x);
  const Tensor raw = empty_output(x, weight_query.size(0), support_stride);
  const int64_t batches = raw.size(0), channels = raw.size(1), rows = sizes_of(raw).positions();
  const auto floats = raw.options().dtype(at::kFloat);
  const Tensor moments = at::empty({batches, ceil_div(rows, int64_t(kWalkRows)), 3, channels}, floats);
  convolve(to_volume(x), tap_matrices(weight_query, weight_support, false), bias, raw,
           convolution_of(weight_query, weight_support, support_stride), device,
           moments.mutable_data_ptr<float>());
  const Tensor mean = at::empty({batches, num_groups}, floats);
  const Tensor low = at::empty_like(mean), rstd = at::empty_like(mean);
  statistics(moments.const_data_ptr<float>(), mean.mutable_data_ptr<float>(),
             low.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(), rows, int(batches),
             int(channels), int(num_groups), float(norm_eps), device);
  Tensor y = raw;
  if (reduce_support) {
    y = at::empty(raw.sizes().slice(0, 4), raw.options());
  } else if (save) {
    y = empty_volume(raw, raw.sizes());
  }
  const Tensor weight = plain(norm_weight), shift = plain(norm_bias);
  if (raw.numel() > 0) {
    FSDINO_CUDA_DISPATCH(raw, "center_pivot_block4d", [&] {
      const auto norm = norm_arguments<scalar_t>(raw, mean, low, rstd, weight, shift);
      scalar_t* const out = y.mutable_data_ptr<scalar_t>();
      reduce_support ? normalise_mean(norm, out, device) : normalise(norm, out, device);
    });
  }
  if (save) return {y, raw, mean, rstd};
  return {y, empty_of(raw), empty_of(mean), empty_of(rstd)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> center_pivot_block4d_backward(
    const Tensor& given, const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& given_raw,
    const Tensor& given_mean, const Tensor& given_rstd, int64_t support_stride,
    bool reduce_support, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(x);
  const Tensor grad = reduce_support ? to_dense_tokens(given) : to_dense_volume(given);
  const Tensor raw = to_dense_volume(given_raw), mean = plain(given_mean), rstd = plain(given_rstd);
  const Tensor weight = plain(norm_weight), shift = plain(norm_bias);
  const int64_t batches = raw.size(0), channels = raw.size(1), groups = mean.size(1);
  const int64_t rows = sizes_of(raw).positions();
  const int64_t blocks = ceil_div(rows, int64_t(kNormRows)), members = channels / groups;
  const double size = double(rows) * double(members);
  // What cancels in sums should leave 0: they are tiny, and in float64.
  const auto sum_blocks = [&](const Tensor& parts) {  // [B, blocks, ..., C] -> [B, ..., G, C / G]
    return parts.sum({1}, false, at::kDouble).unflatten(-1, {groups, members});
  };
  Tensor grad_raw, normalised, along, gradient, scaled, means;
  FSDINO_CUDA_DISPATCH(raw, "center_pivot_block4d_backward", [&] {
    // What the means lost when they were rounded, from the sums of the distances from them.
    const Tensor parts = at::empty({batches, blocks, channels}, mean.options());
    sum_distances(norm_arguments<scalar_t>(raw, mean, Tensor(), rstd, weight, shift),
                  parts.mutable_data_ptr<float>(), device);
    const Tensor distances = sum_blocks(parts), exact = distances.sum(2) / size;
    const Tensor low = exact.to(at::kFloat);
    normalised = (distances - exact.unsqueeze(2) * double(rows)) * rstd.unsqueeze(2);

    const auto norm = norm_arguments<scalar_t>(raw, mean, low, rstd, weight, shift);
    const scalar_t* const from = grad.const_data_ptr<scalar_t>();
    const Tensor partial = at::empty({batches, blocks, 2, channels}, mean.options());
    normalise_back_sums(norm, from, reduce_support, partial.mutable_data_ptr<float>(), device);
    const Tensor sums = sum_blocks(partial);
    along = sums.select(1, 0);
    gradient = sums.select(1, 1);
    // An infinite scale times gradients that the ReLU stopped is NaN.
    const Tensor scale = weight.to(at::kDouble)
                             .masked_fill(weight.isinf(), std::numeric_limits<double>::quiet_NaN())
                             .view({groups, members});
    scaled = scale * gradient;
    means = at::stack({(scale * along).sum(2), scaled.sum(2)}, 1) / size;  // [B, 2, G]
    if (!(needs[0] || needs[1] || needs[2])) return;
    grad_raw = empty_volume(raw, raw.sizes());
    normalise_back(norm, from, reduce_support, means.to(at::kFloat).const_data_ptr<float>(),
                   grad_raw.mutable_data_ptr<scalar_t>(), device);
  });
  const auto of_channels = [&](bool need, const Tensor& sums) {
    return need ? sums.sum(0).flatten().to(norm_weight.scalar_type()) : empty_of(grad);
  };
  // To the bias from the sums, since the gradient to the volume is rounded, each element by itself.
  const Tensor mean_along = means.select(1, 0).unsqueeze(2), mean_scaled = means.select(1, 1).unsqueeze(2);
  const Tensor to_bias = of_channels(
      needs[3],
      (scaled - mean_scaled * double(rows) - normalised * mean_along) * rstd.unsqueeze(2));
  Tensor to_x = empty_of(grad), to_query = empty_of(grad), to_support = empty_of(grad);
  if (grad_raw.defined()) {
    std::tie(to_x, to_query, to_support, std::ignore) = center_pivot_conv4d_backward(
        grad_raw, x, weight_query, weight_support, support_stride,
        Needs({needs[0], needs[1], needs[2], false}));
  }
  return {to_x, to_query, to_support, to_bias, of_channels(needs[4], along),
          of_channels(needs[5], gradient)};
}

}  // namespace fsdino::cuda

// center_pivot_conv4d and center_pivot_block4d, forward and backward.

#include "convolution.h"
#include "normalise.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

namespace fsdino::cpu {
namespace {

template <typename T>
Tensor convolve(const Geometry& g, const Tensor& x, const Tensor& weight_query,
                const Tensor& weight_support, const MaybeTensor& bias, int64_t groups = 0,
                std::vector<Moments>* moments = nullptr) {
  Tensor y = empty({x.size(0), weight_query.size(0), g.kept_height(), g.kept_width(),
                    g.query_height, g.query_width}, x.scalar_type());
  const Convolution<T> convolution(g, weight_query, weight_support, bias, false);
  convolution.run(sources_of<T>(x), targets_of<T>(y), 0, g.kept_height(), groups, moments);
  return y;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> conv_backward(const Geometry& g, const Tensor& grad,
                                                         const Tensor& x,
                                                         const Tensor& weight_query,
                                                         const Tensor& weight_support,
                                                         const std::array<bool, 4>& needs) {
  Tensor grad_x = at::empty({0}, grad.options()), grad_query = grad_x.clone();
  Tensor grad_support = grad_x.clone(), grad_bias = grad_x.clone();
  if (needs[0]) {
    const Tensor planes = empty({x.size(0), x.size(1), g.support_height, g.support_width,
                                 g.query_height, g.query_width}, x.scalar_type());
    const Convolution<T> convolution(g, weight_query, weight_support, std::nullopt, true);
    convolution.run(sources_of<T>(grad), targets_of<T>(planes), 0, g.support_height);
    grad_x = from_planes(planes);
  }
  if (needs[1] || needs[2]) {
    if (needs[1]) grad_query = at::empty(weight_query.sizes(), weight_query.options());
    if (needs[2]) grad_support = at::empty(weight_support.sizes(), weight_support.options());
    const Tensor planes = to_planes(x);
    WeightGradient<T> sums(g, weight_query.size(0), weight_query.size(1),
                           grad.size(0) * grad.size(2) * grad.size(3));
    sums.add(sources_of<T>(grad), sources_of<T>(planes), 0, g.kept_height());
    sums.finish(grad_query, grad_support);
  }
  if (needs[3]) grad_bias = sum_channels(grad).to(weight_query.scalar_type());
  return {grad_x, grad_query, grad_support, grad_bias};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> block(const Geometry& g, const Tensor& x,
                                                 const Tensor& weight_query,
                                                 const Tensor& weight_support,
                                                 const MaybeTensor& bias, const Tensor& norm_weight,
                                                 const Tensor& norm_bias, int64_t groups,
                                                 double eps, bool reduce, bool save) {
  using A = Compute<T>;
  const int64_t batch = x.size(0), channels = weight_query.size(0);
  std::vector<Moments> moments(batch * groups);
  const Tensor raw = convolve<T>(g, to_planes(x), weight_query, weight_support, bias, groups,
                                 &moments);
  const auto options = x.options().dtype(kScalar<A>);
  const std::vector<Affine<A>> affines =
      affines_of<T>(moments, groups, norm_weight, norm_bias, eps);
  const Tensor y = normalise<T>(raw, affines, reduce, !save);
  const Tensor result = reduce ? y : from_planes(y);
  if (save) {
    Tensor mean = at::empty({batch, groups}, options), rstd = at::empty({batch, groups}, options);
    for (int64_t i = 0; i < batch * groups; ++i) {
      mean.mutable_data_ptr<A>()[i] = affines[i * (channels / groups)].mean;
      rstd.mutable_data_ptr<A>()[i] = static_cast<A>(1 / moments[i].deviation(eps));
    }
    return {result, from_planes(raw), mean, rstd};
  }
  const Tensor nothing = at::empty({0}, x.options()), none = at::empty({0}, options);
  return {result, nothing, none, none.clone()};
}

// A gain as it multiplies a sum of gradients: infinity times those that the ReLU stopped is NaN.
template <typename A>
double summed_gain(A gain) {
  return std::isinf(gain) ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(gain);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> block_backward(
    const Geometry& g, const Tensor& grad, const Tensor& x, const Tensor& weight_query,
    const Tensor& weight_support, const Tensor& norm_weight, const Tensor& norm_bias,
    const Tensor& raw, const Tensor& mean, const Tensor& rstd, bool reduce,
    const std::array<bool, 6>& needs) {
  using A = Compute<T>;
  const Tensor outputs = to_planes(raw);
  const Tensor grads = reduce ? grad.contiguous() : to_planes(grad);
  const int64_t batch = outputs.size(0), channels = outputs.size(1), groups = mean.size(1);
  const int64_t kept = outputs.size(2) * outputs.size(3), query = g.query();
  const T* values = outputs.const_data_ptr<T>();
  const T* incoming = grads.const_data_ptr<T>();
  const std::vector<A> gain = vector_of<T>(norm_weight), offset = vector_of<T>(norm_bias);
  const Tensor dense_mean = mean.contiguous(), dense_rstd = rstd.contiguous();
  const A *const group_mean = dense_mean.const_data_ptr<A>(), *const group_rstd =
      dense_rstd.const_data_ptr<A>();
  const auto group_of = [&](int64_t channel) {  // of batch * channels
    return channel / channels * groups + channel % channels / (channels / groups);
  };
  const auto incoming_plane = [&](int64_t plane) {
    return incoming + (reduce ? plane / kept : plane) * query;
  };

  const Simd<T>& functions = simd<T>();
  const double plane_size = static_cast<double>(kept * query);
  const double count = static_cast<double>(channels / groups) * plane_size;
  // What the groups' means lost when they were rounded is the mean of the distances from them.
  std::vector<double> distances(batch * channels), low(batch * groups);
  at::parallel_for(0, batch * channels, grain(kept * query), [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      for (int64_t plane = channel * kept; plane < (channel + 1) * kept; ++plane) {
        distances[channel] +=
            functions.sum_distances(values + plane * query, group_mean[group_of(channel)], query);
      }
    }
  });
  for (int64_t i = 0; i < batch * channels; ++i) low[group_of(i)] += distances[i] / count;
  const auto at_channel = [&](int64_t channel) {
    const int64_t c = channel % channels, group = group_of(channel);
    return NormChannel<A>{group_mean[group],   static_cast<A>(low[group]),
                          group_rstd[group],   gain[c],
                          offset[c],           reduce ? A(1) / static_cast<A>(kept) : A(1)};
  };

  std::vector<double> plain(batch * channels), weighted(batch * channels);
  at::parallel_for(0, batch * channels, grain(kept * query), [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const NormChannel<A> norm = at_channel(channel);
      for (int64_t plane = channel * kept; plane < (channel + 1) * kept; ++plane) {
        functions.norm_sums(values + plane * query, incoming_plane(plane), query, norm,
                            &plain[channel], &weighted[channel]);
      }
    }
  });

  // Of each sample and group, of the gradient times gain, and of that times the normalised value.
  std::vector<double> mean_plain(batch * groups), mean_weighted(batch * groups);
  for (int64_t i = 0; i < batch * channels; ++i) {
    mean_plain[group_of(i)] += summed_gain(gain[i % channels]) * plain[i] / count;
    mean_weighted[group_of(i)] += summed_gain(gain[i % channels]) * weighted[i] / count;
  }
  // A channel's sum over the samples of `of(i)`, i counting samples times channels.
  const auto sum_samples = [&](bool need, const auto& of) {
    if (!need) return at::empty({0}, grad.options());
    const Tensor total = at::zeros({channels}, at::kDouble);
    for (int64_t i = 0; i < batch * channels; ++i) {
      total.mutable_data_ptr<double>()[i % channels] += of(i);
    }
    return total.to(norm_weight.scalar_type());
  };
  const Tensor grad_gain = sum_samples(needs[4], [&](int64_t i) { return weighted[i]; });
  const Tensor grad_offset = sum_samples(needs[5], [&](int64_t i) { return plain[i]; });
  // From the sums, since the gradient to the volume is rounded, each element by itself.
  const Tensor grad_bias = sum_samples(needs[3], [&](int64_t i) {
    const int64_t group = group_of(i);
    const double rstd_of = static_cast<double>(group_rstd[group]);
    const double normalised = (distances[i] - plane_size * low[group]) * rstd_of;
    return (summed_gain(gain[i % channels]) * plain[i] - plane_size * mean_plain[group] -
            mean_weighted[group] * normalised) * rstd_of;
  });
  const Tensor nothing = at::empty({0}, grad.options());
  if (!(needs[0] || needs[1] || needs[2])) {
    return {nothing, nothing.clone(), nothing.clone(), grad_bias, grad_gain, grad_offset};
  }

  Tensor grad_raw = empty(outputs.sizes(), outputs.scalar_type());
  T* out = grad_raw.mutable_data_ptr<T>();
  at::parallel_for(0, batch * channels * kept, grain(query), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t channel = plane / kept;
      const int64_t group = group_of(channel);
      functions.norm_backward(values + plane * query, incoming_plane(plane), query,
                              at_channel(channel), static_cast<A>(mean_plain[group]),
                              static_cast<A>(mean_weighted[group]), out + plane * query);
    }
  });
  const auto [grad_x, grad_query, grad_support, _] = conv_backward<T>(
      g, grad_raw, x, weight_query, weight_support, {needs[0], needs[1], needs[2], false});
  return {grad_x, grad_query, grad_support, grad_bias, grad_gain, grad_offset};
}

Geometry volume_geometry(const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
                         int64_t support_stride) {
  return geometry_of(x.sizes().slice(2, 2), x.sizes().slice(4, 2), weight_query, weight_support,
                     support_stride);
}

}  // namespace

Tensor center_pivot_conv4d(const Tensor& x, const Tensor& weight_query,
                           const Tensor& weight_support, const MaybeTensor& bias,
                           int64_t support_stride) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Geometry g = volume_geometry(x, weight_query, weight_support, support_stride);
  return FSDINO_DISPATCH(x, "center_pivot_conv4d", [&] {
    return from_planes(
        convolve<scalar_t>(g, to_planes(x), weight_query, weight_support, bias, 0, nullptr));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> center_pivot_conv4d_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    int64_t support_stride, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Geometry g = volume_geometry(x, weight_query, weight_support, support_stride);
  return FSDINO_DISPATCH(x, "center_pivot_conv4d_backward", [&] {
    return conv_backward<scalar_t>(g, to_planes(grad), x, weight_query, weight_support,
                                   {needs[0], needs[1], needs[2], needs[3]});
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> center_pivot_block4d(
    const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    const MaybeTensor& bias, const Tensor& norm_weight, const Tensor& norm_bias,
    int64_t num_groups, double norm_eps, int64_t support_stride, bool reduce_support, bool save) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Geometry g = volume_geometry(x, weight_query, weight_support, support_stride);
  return FSDINO_DISPATCH(x, "center_pivot_block4d", [&] {
    return block<scalar_t>(g, x, weight_query, weight_support, bias, norm_weight, norm_bias,
                           num_groups, norm_eps, reduce_support, save);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> center_pivot_block4d_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight_query, const Tensor& weight_support,
    const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& raw, const Tensor& mean,
    const Tensor& rstd, int64_t support_stride, bool reduce_support, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Geometry g = volume_geometry(x, weight_query, weight_support, support_stride);
  return FSDINO_DISPATCH(x, "center_pivot_block4d_backward", [&] {
    return block_backward<scalar_t>(
        g, grad, x, weight_query, weight_support, norm_weight, norm_bias, raw, mean, rstd,
        reduce_support, {needs[0], needs[1], needs[2], needs[3], needs[4], needs[5]});
  });
}

}  // namespace fsdino::cpu

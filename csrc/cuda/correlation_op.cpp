// correlation4d from tensors; the products with a gradient going back are PyTorch's.

#include "tensors.h"

namespace fsdino::cuda {

namespace {

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
  // Gradients to query tokens [B, L, N, C], support tokens and weights [B, M], float32, from that to
  // the correlation; undefined where not needed.
  std::tuple<Tensor, Tensor, Tensor> back(const Tensor& grad, const std::array<bool, 3>& needs,
                                          Stream stream) const;
};

// Gradient to the tokens of one side: cosine_grad [B, L, N, M] times the other side's unit tokens.
Tensor to_tokens(const Tensor& cosine_grad, const Features& side, const Tensor& weight,
                 const Features& other, const Tensor& other_weight, double eps, Stream stream) {
  const int batches = int(side.values.size(0)), layers = int(side.values.size(1));
  const int channels = int(side.values.size(3));
  const auto options = side.values.options();
  Tensor unit = at::empty(other.values.sizes(), options), out = at::empty(side.values.sizes(), options);
  return FSDINO_CUDA_DISPATCH(out, "correlation4d_backward", [&] {
    units<scalar_t>(other.tokens<scalar_t>(), pointer<scalar_t>(other_weight),
                    unit.mutable_data_ptr<scalar_t>(), batches, layers, channels, stream);
    const Tensor grad = at::matmul(cosine_grad, unit).contiguous();
    units_back<scalar_t>(side.tokens<scalar_t>(), pointer<scalar_t>(weight),
                         grad.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(), batches,
                         layers, channels, float(eps), stream);
    return out;
  });
}

std::tuple<Tensor, Tensor, Tensor> Pair::back(const Tensor& grad, const std::array<bool, 3>& needs,
                                              Stream stream) const {
  const auto options = query.values.options();
  const int64_t batches = query.values.size(0), layers = query.values.size(1);
  const int64_t queries = query.values.size(2), supports = support.values.size(2);
  const bool to_weight = needs[2] && weight.defined();
  Tensor cosine_grad, partial;
  if (needs[0] || needs[1]) cosine_grad = at::empty({batches, layers, queries, supports}, options);
  if (to_weight) {
    const int64_t blocks = ceil_div(queries, int64_t(kCorrelationRows));
    partial = at::empty({batches, layers, blocks, supports}, options.dtype(at::kFloat));
  }
  if (cosine_grad.defined() || partial.defined()) {
    FSDINO_CUDA_DISPATCH(grad, "correlation4d_backward", [&] {
      correlate_back<scalar_t>(
          cosines<scalar_t>(), grad.const_data_ptr<scalar_t>(), grad.stride(0),
          cosine_grad.defined() ? cosine_grad.mutable_data_ptr<scalar_t>() : nullptr,
          partial.defined() ? partial.mutable_data_ptr<float>() : nullptr, stream);
    });
  }
  Tensor to_query, to_support, to_weights;
  if (needs[0]) {
    to_query = to_tokens(cosine_grad, query, Tensor(), support, weight, eps, stream);
  }
  if (needs[1]) {
    to_support = to_tokens(cosine_grad.transpose(2, 3), support, weight, query, Tensor(), eps, stream);
  }
  if (to_weight) to_weights = partial.sum({1, 2});
  return {to_query, to_support, to_weights};
}

}  // namespace

Tensor correlation4d(const Tensor& query, const Tensor& support, const MaybeTensor& support_weight,
                     double eps) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(query);
  Tensor out = empty_volume(query, {query.size(0), query.size(1), query.size(3), query.size(4),
                                    support.size(3), support.size(4)});
  const Pair pair{{query, eps}, {support, eps}, plain_weight(support_weight), eps};
  FSDINO_CUDA_DISPATCH(out, "correlation4d", [&] {
    correlate<scalar_t>(pair.cosines<scalar_t>(), out.mutable_data_ptr<scalar_t>(), device);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> correlation4d_backward(const Tensor& grad, const Tensor& query,
                                                          const Tensor& support,
                                                          const MaybeTensor& support_weight,
                                                          double eps, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(query);
  const Pair pair{{query, eps}, {support, eps}, plain_weight(support_weight), eps};
  const auto [to_query, to_support, to_weight] =
      pair.back(to_volume(grad), {needs[0], needs[1], needs[2]}, device);
  return {to_query.defined() ? as_features(to_query, query) : empty_of(grad),
          to_support.defined() ? as_features(to_support, support) : empty_of(grad),
          to_weight.defined() ? to_weight.to(support_weight->scalar_type())
                                    .view(support_weight->sizes())
                              : empty_of(grad)};
}

}  // namespace fsdino::cuda

// correlation_center_pivot4d from tensors. The forward pass and the gradient to the weights are the
// fused kernels'. Gradients to features and to the support's weights take the query rows in chunks,
// whose correlation's gradient is computed, used and forgotten.

#include "tensors.h"

namespace fsdino::cuda {

namespace {

constexpr int64_t kChunkBytes = 80 << 20;  // of the correlation's gradient that is held at a time

// Both weights for each launch: [launches, L, kFusedColumns, words of taps], 0 beyond what exists.
Tensor packed_weights(const Tensor& weight_query, const Tensor& weight_support) {
  const int64_t outer = weight_query.size(0), bytes = weight_query.element_size();
  const Tensor taps = at::cat({weight_query.flatten(2), weight_support.flatten(2)}, 2);
  const int64_t width = tap_words(int(taps.size(2)), int(bytes)) * int64_t(sizeof(Word)) / bytes;
  const int64_t launches = ceil_div(outer, int64_t(kFusedColumns)), layers = weight_query.size(1);
  const Tensor packed = at::zeros({layers, launches * kFusedColumns, width}, weight_query.options());
  packed.narrow(1, 0, outer).narrow(2, 0, taps.size(2)).copy_(taps.transpose(0, 1));
  return packed.view({layers, launches, kFusedColumns, width}).transpose(0, 1).contiguous();
}

struct Sizes {
  Volume volume;
  int64_t batches, layers, outer;

  Sizes(const Tensor& query, const Tensor& support, const Tensor& weight)
      : volume{int(query.size(3)), int(query.size(4)), int(support.size(3)), int(support.size(4))},
        batches(query.size(0)), layers(query.size(1)), outer(weight.size(0)) {}
};

FusedPlan plan_of(const Sizes& sizes, const Convolution& c, const Pair& pair, bool backward) {
  const Tensor& tokens = pair.query.values;
  const int bytes = int(tokens.element_size());
  const bool hopper = in_boxes(bytes, int(tokens.size(3))) && runs_hopper_code();
  return fused_plan(sizes.volume, int(sizes.batches), c.kernel_query, c.kernel_support, c.stride,
                    bytes, backward, hopper, shared_limit());
}

// Gradients to both weights, in float32.
std::tuple<Tensor, Tensor> to_weights(const Pair& pair, const Sizes& sizes, const Tensor& grad,
                                      const Tensor& weight_query, const Tensor& weight_support,
                                      const Convolution& convolution, Stream stream) {
  const Tensor dense = to_dense_volume(grad);
  const FusedPlan plan = plan_of(sizes, convolution, pair, true);
  const int64_t blocks = sizes.batches * plan.blocks_of_sample();
  Tensor partial = at::empty({blocks, sizes.layers, plan.tile.taps(), sizes.outer},
                             grad.options().dtype(at::kFloat));
  FSDINO_CUDA_DISPATCH(grad, "correlation_center_pivot4d_backward", [&] {
    FusedArguments<scalar_t> arguments{};
    arguments.cosines = pair.cosines<scalar_t>();
    arguments.volume = sizes.volume;
    arguments.tile = plan.tile;
    arguments.grad = dense.const_data_ptr<scalar_t>();
    arguments.partial = partial.mutable_data_ptr<float>();
    arguments.outer = int(sizes.outer);
    arguments.tiles_in_block = plan.tiles_in_block;
    for (; arguments.first_outer < sizes.outer; arguments.first_outer += kFusedColumns) {
      fused_weight_gradients(arguments, plan, stream);
    }
  });
  const Tensor matrices = partial.sum(0).transpose(0, 1);  // [taps, L, Co]
  return as_kernels(matrices, weight_query, weight_support);
}

// Query rows first..last - 1, and those whose gradients reach them.
struct Chunk {
  int64_t first, last, low, high;
};

std::vector<Chunk> chunks(const Sizes& sizes, int64_t halo, int64_t element_bytes) {
  const int64_t rows = sizes.volume.query_rows;
  const int64_t row_bytes = std::max<int64_t>(1, sizes.batches) * sizes.layers *
                            sizes.volume.query_columns * sizes.volume.support() * element_bytes;
  const int64_t step = std::clamp<int64_t>(kChunkBytes / row_bytes, 1, rows);
  std::vector<Chunk> all;
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t last = std::min(first + step, rows);
    all.push_back({first, last, std::max<int64_t>(0, first - halo), std::min(rows, last + halo)});
  }
  return all;
}

// Gradients to query and support tokens and to the support's weights, undefined where not needed.
std::tuple<Tensor, Tensor, Tensor> to_features(const Pair& pair, const Sizes& sizes,
                                               const Tensor& given, const Tensor& matrices,
                                               const Convolution& convolution,
                                               const std::array<bool, 3>& needs, Stream stream) {
  const Tensor grad = to_volume(given);
  const int64_t columns = sizes.volume.query_columns;
  std::vector<Tensor> of_query;
  Tensor of_support, of_weight;
  const auto add = [](Tensor& total, const Tensor& part) {
    if (!part.defined()) return;
    total = total.defined() ? total.add_(part) : part.to(at::kFloat);
  };
  for (const Chunk& chunk : chunks(sizes, convolution.kernel_query / 2, grad.element_size())) {
    const int64_t rows = chunk.last - chunk.first;
    Tensor corr_grad = empty_volume(grad, {sizes.batches, sizes.layers, rows, columns,
                                           sizes.volume.support_rows,
                                           sizes.volume.support_columns});
    Convolution shifted = convolution;
    shifted.first_query_row = int(chunk.first - chunk.low);
    convolve_back(to_volume(grad.narrow(2, chunk.low, chunk.high - chunk.low)), matrices, corr_grad,
                  shifted, stream);
    const Pair part{pair.query.rows(chunk.first * columns, chunk.last * columns), pair.support,
                    pair.weight, pair.eps};
    const auto [query, support, weight] = part.back(corr_grad, needs, stream);
    if (query.defined()) of_query.push_back(query);
    add(of_support, support);
    add(of_weight, weight);
  }
  return {of_query.empty() ? Tensor() : at::cat(of_query, 2), of_support, of_weight};
}

}  // namespace

Tensor correlation_center_pivot4d(const Tensor& query, const Tensor& support,
                                  const MaybeTensor& support_weight, const Tensor& weight_query,
                                  const Tensor& weight_support, const MaybeTensor& bias,
                                  int64_t support_stride, double eps) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(query);
  const Sizes sizes(query, support, weight_query);
  const Pair pair{{query, eps}, {support, eps}, plain_weight(support_weight), eps};
  const Convolution convolution = convolution_of(weight_query, weight_support, support_stride);
  Tensor y = empty_volume(
      query, {sizes.batches, sizes.outer, query.size(3), query.size(4),
              ceil_div(support.size(3), support_stride), ceil_div(support.size(4), support_stride)});
  const Tensor dense_bias = bias ? plain(*bias) : Tensor();
  const Tensor packed = packed_weights(weight_query, weight_support);
  const FusedPlan plan = plan_of(sizes, convolution, pair, false);
  FSDINO_CUDA_DISPATCH(query, "correlation_center_pivot4d", [&] {
    FusedArguments<scalar_t> arguments{};
    arguments.cosines = pair.cosines<scalar_t>();
    arguments.volume = sizes.volume;
    arguments.tile = plan.tile;
    arguments.bias = pointer<scalar_t>(dense_bias);
    arguments.out = y.mutable_data_ptr<scalar_t>();
    arguments.outer = int(sizes.outer);
    arguments.tiles_in_block = plan.tiles_in_block;
    for (; arguments.first_outer < sizes.outer; arguments.first_outer += kFusedColumns) {
      arguments.weights = packed.select(0, arguments.first_outer / kFusedColumns)
                              .const_data_ptr<scalar_t>();
      fused(arguments, plan, device);
    }
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> correlation_center_pivot4d_backward(
    const Tensor& grad, const Tensor& query, const Tensor& support,
    const MaybeTensor& support_weight, const Tensor& weight_query, const Tensor& weight_support,
    int64_t support_stride, double eps, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(query);
  const Sizes sizes(query, support, weight_query);
  const Pair pair{{query, eps}, {support, eps}, plain_weight(support_weight), eps};
  const Convolution convolution = convolution_of(weight_query, weight_support, support_stride);
  const auto type = grad.scalar_type();
  Tensor to_query = empty_of(grad), to_support = empty_of(grad), to_weight = empty_of(grad);
  Tensor to_weight_query = empty_of(grad), to_weight_support = empty_of(grad);
  Tensor to_bias = empty_of(grad);
  const std::array<bool, 3> wanted{needs[0], needs[1], support_weight && needs[2]};
  if (wanted[0] || wanted[1] || wanted[2]) {
    const auto [of_query, of_support, of_weight] =
        to_features(pair, sizes, grad, tap_matrices(weight_query, weight_support, true),
                    convolution, wanted, device);
    if (wanted[0]) to_query = as_features(of_query, query);
    if (wanted[1]) to_support = as_features(of_support.to(type), support);
    if (wanted[2]) to_weight = of_weight.to(type).view(support_weight->sizes());
  }
  if (needs[3] || needs[4]) {
    const auto [of_query, of_support] =
        to_weights(pair, sizes, grad, weight_query, weight_support, convolution, device);
    if (needs[3]) to_weight_query = of_query.to(type);
    if (needs[4]) to_weight_support = of_support.to(type);
  }
  if (needs[5]) to_bias = bias_gradient(to_volume(grad)).to(type);
  return {to_query, to_support, to_weight, to_weight_query, to_weight_support, to_bias};
}

}  // namespace fsdino::cuda

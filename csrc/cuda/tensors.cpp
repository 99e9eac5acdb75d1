#include "tensors.h"

#include <ATen/Context.h>

namespace fsdino::cuda {

namespace {

const std::vector<int64_t> kInnermost{0, 2, 3, 4, 5, 1}, kOutward{0, 5, 1, 2, 3, 4};

// Whether rows of these bytes, from here on, can be copied in the pieces that they fall into.
bool starts_aligned(const Tensor& tensor, int64_t channels) {
  const int64_t bytes = channels * tensor.element_size();
  int64_t piece = tensor.element_size();
  while (piece < 16 && bytes % (2 * piece) == 0) piece *= 2;
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % piece == 0;
}

}  // namespace

bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

Tensor empty_volume(const Tensor& like, at::IntArrayRef shape) {
  std::vector<int64_t> memory;
  for (const int64_t dim : kInnermost) memory.push_back(shape[dim]);
  return at::empty(memory, like.options()).permute(kOutward);
}

Tensor to_volume(const Tensor& given) {
  const Tensor x = given.resolve_neg();
  if (x.numel() == 0) return x;
  if (x.stride(0) == 0 && x.size(0) > 1) {
    return to_volume(x.narrow(0, 0, 1)).expand(x.sizes());
  }
  const Tensor memory = x.permute(kInnermost);
  if (memory.select(0, 0).is_contiguous()) return x;
  return memory.clone(at::MemoryFormat::Contiguous).permute(kOutward);
}

Features::Features(const Tensor& features, double eps) {
  const Tensor given = features.resolve_neg();
  const bool shared = given.size(0) > 1 && given.stride(0) == 0;
  const Tensor own = shared ? given.narrow(0, 0, 1) : given;
  values = own.flatten(3).transpose(2, 3);
  const int64_t batches = values.size(0), layers = values.size(1), count = values.size(2);
  const int64_t channels = values.size(3);
  const bool dense = values.stride(3) == 1 && values.stride(2) == channels;
  const bool whole = values.stride(0) % channels == 0 && values.stride(1) % channels == 0;
  if (!dense || !whole || !starts_aligned(values, channels)) {
    values = values.clone(at::MemoryFormat::Contiguous);
  }
  inverse = at::empty({batches, layers, count}, values.options().dtype(at::kFloat));
  const OnDevice device(values);
  FSDINO_CUDA_DISPATCH(values, "lengths", [&] {
    lengths<scalar_t>(values.const_data_ptr<scalar_t>(), inverse.mutable_data_ptr<float>(), batches,
                      values.stride(0), int(layers), values.stride(1), count, int(channels),
                      float(eps), device);
  });
  if (shared) {
    values = values.expand({given.size(0), -1, -1, -1});
    inverse = inverse.expand({given.size(0), -1, -1});
  }
}

Tensor plain_weight(const MaybeTensor& weight) {
  return weight ? plain(weight->flatten(1)) : Tensor();
}

Tensor as_features(const Tensor& grad, const Tensor& features) {
  return grad.transpose(2, 3).contiguous().view(features.sizes());
}

}  // namespace fsdino::cuda

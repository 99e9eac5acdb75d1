// The ops, declared once for the CPU and once for NVIDIA GPUs.

#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#define FSDINO_DECLARE(name, arguments, ...) __VA_ARGS__ name arguments;

namespace fsdino {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using MaybeTensors = c10::List<MaybeTensor>;
using Needs = c10::List<bool>;

namespace cpu {
#define FSDINO_OP FSDINO_DECLARE
#define FSDINO_CPU_OP FSDINO_DECLARE
#include "ops.inc"
}  // namespace cpu

namespace cuda {
#define FSDINO_OP FSDINO_DECLARE
#define FSDINO_CPU_OP(...)
#include "ops.inc"
}  // namespace cuda

}  // namespace fsdino

#undef FSDINO_DECLARE

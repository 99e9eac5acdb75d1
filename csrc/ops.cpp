// Registration of the kernels, in a library that needs PyTorch and no Python.
//
// The ops of the namespace `fsdino` are declared in Python and call these from fsdino/ops/native.py;
// exported graphs call them directly.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>

#include "cpu/simd.h"
#include "mark.h"
#include "ops.h"

namespace {

// A process may load two copies, such as fsdino's own and that of an exported folder. The second one
// leaves the first one's kernels in place: to register them twice would end the process.
bool is_first = false;

}  // namespace

// Schemas are derived from the C++ types; arguments are positional.
TORCH_LIBRARY_FRAGMENT(fsdino_cpp, m) {
  is_first = !c10::Dispatcher::singleton().findSchema({"fsdino_cpp::instruction_set", ""});
  if (!is_first) return;
#define FSDINO_OP(name, ...) m.def(#name, torch::dispatch(c10::kCPU, &fsdino::cpu::name));
#define FSDINO_CPU_OP FSDINO_OP
#include "ops.inc"
  m.def("instruction_set", [] { return std::string(fsdino::cpu::simd<at::BFloat16>().name); });
}

#ifdef FSDINO_CUDA
TORCH_LIBRARY_IMPL(fsdino_cpp, CUDA, m) {
  if (!is_first) return;
#define FSDINO_OP(name, ...) m.impl(#name, &fsdino::cuda::name);
#define FSDINO_CPU_OP(...)
#include "ops.inc"
}
#endif

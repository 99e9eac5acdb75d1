// Registration of the kernels, in a library that needs PyTorch and no Python.
//
// The ops of the namespace `fsdino` are declared in Python and call these from fsdino/ops/native.py;
// exported graphs call them directly.

#include <torch/library.h>

#include <string>

#include "cpu/simd.h"
#include "mark.h"
#include "ops.h"

// Schemas are derived from the C++ types; arguments are positional.
TORCH_LIBRARY(fsdino_cpp, m) {
#define FSDINO_OP(name, ...) m.def(#name, torch::dispatch(c10::kCPU, &fsdino::cpu::name));
#define FSDINO_CPU_OP FSDINO_OP
#include "ops.inc"
  m.def("instruction_set", [] { return std::string(fsdino::cpu::simd<at::BFloat16>().name); });
}

#ifdef FSDINO_CUDA
TORCH_LIBRARY_IMPL(fsdino_cpp, CUDA, m) {
#define FSDINO_OP(name, ...) m.impl(#name, &fsdino::cuda::name);
#define FSDINO_CPU_OP(...)
#include "ops.inc"
}
#endif

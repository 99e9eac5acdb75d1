// Registration of the kernels, and what a build reports about itself.
//
// The ops of the namespace `fsdino` are declared in Python and call these from fsdino/ops/native.py.

#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <string>

#ifdef FSDINO_CUDA
#include <cuda_runtime_api.h>
#endif

#include "cpu/simd.h"
#include "ops.h"

#define FSDINO_TEXT(...) FSDINO_TEXT_OF(__VA_ARGS__)
#define FSDINO_TEXT_OF(...) #__VA_ARGS__

// Schemas are derived from the C++ types; arguments are positional.
TORCH_LIBRARY(fsdino_cpp, m) {
#define FSDINO_OP(name, ...) m.def(#name, torch::dispatch(c10::kCPU, &fsdino::cpu::name));
#define FSDINO_CPU_OP FSDINO_OP
#include "ops.inc"
}

#ifdef FSDINO_CUDA
TORCH_LIBRARY_IMPL(fsdino_cpp, CUDA, m) {
#define FSDINO_OP(name, ...) m.impl(#name, &fsdino::cuda::name);
#define FSDINO_CPU_OP(...)
#include "ops.inc"
}
#endif

namespace {

// Python searches the file for this before loading it: an extension that was built for another
// PyTorch, or from other sources, is never loaded.
[[gnu::used]] const char kMark[] = "fsdino-extension torch=" FSDINO_TEXT(
    FSDINO_TORCH) " sources=" FSDINO_TEXT(FSDINO_SOURCES) " end";

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = compiler();
  info["torch"] = FSDINO_TEXT(FSDINO_TORCH);
#ifdef _GLIBCXX_USE_CXX11_ABI
  info["cxx11_abi"] = bool(_GLIBCXX_USE_CXX11_ABI);
#else
  info["cxx11_abi"] = pybind11::none();
#endif
  info["cpu_capability"] = at::get_cpu_capability();
  info["instruction_set"] = fsdino::cpu::simd<at::BFloat16>().name;
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = pybind11::none();
#endif
  info["sources"] = FSDINO_TEXT(FSDINO_SOURCES);
  // The architectures as in TORCH_CUDA_ARCH_LIST, and the toolkit's version as in 13000.
  pybind11::list architectures;
#ifdef FSDINO_CUDA
  for (const auto& one : pybind11::str(FSDINO_TEXT(FSDINO_CUDA)).attr("split")(",")) {
    architectures.append(one);
  }
  info["cuda"] = CUDART_VERSION;
#else
  info["cuda"] = pybind11::none();
#endif
  info["cuda_archs"] = architectures;
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_info", &build_info, "Compiler, PyTorch, CPU and what else a build depends on.");
}

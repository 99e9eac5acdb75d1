// Registration of the kernels, and what a build reports about itself.
//
// The ops of the namespace `fsdino` are declared in Python and call these from fsdino/ops/native.py.
// Signatures are those of fsdino/ops/reference.py.

#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <string>

#include "cpu/ops.h"

#ifdef FSDINO_CUDA
#include <cuda_runtime_api.h>

#include "cuda/ops.h"
#endif

#define FSDINO_TEXT(...) FSDINO_TEXT_OF(__VA_ARGS__)
#define FSDINO_TEXT_OF(...) #__VA_ARGS__

TORCH_LIBRARY(fsdino_cpp, m) {
  m.def(
      "correlation4d(Tensor query, Tensor support, Tensor? support_weight, float eps) -> Tensor");
  m.def(
      "correlation4d_backward(Tensor grad, Tensor query, Tensor support, Tensor? support_weight,"
      " float eps, bool[] needs) -> (Tensor, Tensor, Tensor)");
  m.def(
      "center_pivot_conv4d(Tensor x, Tensor weight_query, Tensor weight_support, Tensor? bias,"
      " int support_stride) -> Tensor");
  m.def(
      "center_pivot_conv4d_backward(Tensor grad, Tensor x, Tensor weight_query,"
      " Tensor weight_support, int support_stride, bool[] needs)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "center_pivot_block4d(Tensor x, Tensor weight_query, Tensor weight_support, Tensor? bias,"
      " Tensor norm_weight, Tensor norm_bias, int num_groups, float norm_eps, int support_stride,"
      " bool reduce_support, bool save) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "center_pivot_block4d_backward(Tensor grad, Tensor x, Tensor weight_query,"
      " Tensor weight_support, Tensor norm_weight, Tensor norm_bias, Tensor raw, Tensor mean,"
      " Tensor rstd, int support_stride, bool reduce_support, bool[] needs)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "correlation_center_pivot4d(Tensor query, Tensor support, Tensor? support_weight,"
      " Tensor weight_query, Tensor weight_support, Tensor? bias, int support_stride, float eps)"
      " -> Tensor");
  m.def(
      "correlation_center_pivot4d_backward(Tensor grad, Tensor query, Tensor support,"
      " Tensor? support_weight, Tensor weight_query, Tensor weight_support, int support_stride,"
      " float eps, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fsdino_cpp, CPU, m) {
  using namespace fsdino::cpu;
  m.impl("correlation4d", &correlation4d);
  m.impl("correlation4d_backward", &correlation4d_backward);
  m.impl("center_pivot_conv4d", &center_pivot_conv4d);
  m.impl("center_pivot_conv4d_backward", &center_pivot_conv4d_backward);
  m.impl("center_pivot_block4d", &center_pivot_block4d);
  m.impl("center_pivot_block4d_backward", &center_pivot_block4d_backward);
  m.impl("correlation_center_pivot4d", &correlation_center_pivot4d);
  m.impl("correlation_center_pivot4d_backward", &correlation_center_pivot4d_backward);
}

#ifdef FSDINO_CUDA
TORCH_LIBRARY_IMPL(fsdino_cpp, CUDA, m) {
  using namespace fsdino::cuda;
  m.impl("correlation4d", &correlation4d);
  m.impl("correlation4d_backward", &correlation4d_backward);
  m.impl("center_pivot_conv4d", &center_pivot_conv4d);
  m.impl("center_pivot_conv4d_backward", &center_pivot_conv4d_backward);
  m.impl("center_pivot_block4d", &center_pivot_block4d);
  m.impl("center_pivot_block4d_backward", &center_pivot_block4d_backward);
  m.impl("correlation_center_pivot4d", &correlation_center_pivot4d);
  m.impl("correlation_center_pivot4d_backward", &correlation_center_pivot4d_backward);
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

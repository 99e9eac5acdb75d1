// The Python module: what a build reports about itself. The kernels are in a library of their own,
// which is loaded before.

#include <ATen/Version.h>
#include <pybind11/pybind11.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <string>

#ifdef FSDINO_CUDA
#include <cuda_runtime_api.h>
#endif

#include "mark.h"

namespace {

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
  const auto kernels = pybind11::module_::import("torch").attr("ops").attr("fsdino_cpp");
  pybind11::dict info;
  info["compiler"] = compiler();
  info["torch"] = FSDINO_TEXT(FSDINO_TORCH);
#ifdef _GLIBCXX_USE_CXX11_ABI
  info["cxx11_abi"] = bool(_GLIBCXX_USE_CXX11_ABI);
#else
  info["cxx11_abi"] = pybind11::none();
#endif
  info["cpu_capability"] = at::get_cpu_capability();
  info["instruction_set"] = kernels.attr("instruction_set")();
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

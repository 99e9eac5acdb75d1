// The backend `cuda` on a CPU: its ops as they are, its kernels in the emulator. Compiled behind the
// files of csrc/cuda that take tensors.

#include <torch/extension.h>

#include "device.h"

TORCH_LIBRARY(fsdino_emulated, m) {
#define FSDINO_OP(name, ...) m.def(#name, &fsdino::cuda::name);
#define FSDINO_CPU_OP(...)
#include "../ops.inc"
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("set_hopper", [](bool hopper) { fsdino::cuda::emulator::machine.hopper = hopper; },
        "Whether the GPU runs the code of sm_90a.");
  m.def("set_shared_limit",
        [](int64_t bytes) { fsdino::cuda::emulator::machine.shared_limit = bytes; },
        "Bytes of shared memory that a block may have.");
}

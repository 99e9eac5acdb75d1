// Runs a package of AOTInductor that holds fsdino's C++ kernels on any tensors, in a process without
// Python.
//
//   TORCH=$(python -c 'import torch; print(torch.__path__[0])')
//   OPS=$(python -c 'from fsdino.ops import native; print(native.library())')
//   g++ -std=c++20 -O2 run_package.cpp -o run_package -I$TORCH/include
//       -I$TORCH/include/torch/csrc/api/include -L$TORCH/lib -ltorch -ltorch_cpu -lc10 -ldl -Wl,-rpath,$TORCH/lib
//   ./run_package model.pt2 $OPS inputs.pt outputs.pt
//
// inputs.pt: torch.save of a list of tensors, in the order of the model's arguments. outputs.pt: a
// tuple of what the model returns, for torch.load. Python is only needed to find the paths above.

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/serialize.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>
#include <vector>

int main(int argc, char** argv) try {
  if (argc != 5) {
    std::cerr << "usage: " << argv[0] << " MODEL.pt2 LIBFSDINO_OPS.so INPUTS.pt OUTPUTS.pt\n";
    return 2;
  }
  // Registers the kernels with PyTorch; the package looks them up when it is loaded.
  if (dlopen(argv[2], RTLD_NOW) == nullptr) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader model(argv[1]);

  std::ifstream input(argv[3], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(input), {}};
  const auto given = torch::pickle_load(bytes);
  std::vector<at::Tensor> inputs;
  for (const auto& value : given.toListRef()) {
    inputs.push_back(value.toTensor());
  }

  const auto outputs = model.run(inputs);

  std::vector<at::IValue> found(outputs.begin(), outputs.end());
  const auto result = torch::pickle_save(c10::ivalue::Tuple::create(std::move(found)));
  std::ofstream(argv[4], std::ios::binary).write(result.data(), std::streamsize(result.size()));
  for (const auto& output : outputs) {
    std::cout << output.sizes() << "\n";
  }
} catch (const c10::Error& error) {
  std::cerr << error.what_without_backtrace() << "\n";
  return 1;
}

// Finds the object of an annotated photograph in another one, with packages of AOTInductor.
//
//   TORCH=$(python -c 'import torch; print(torch.__path__[0])')
//   g++ -std=c++20 -O2 examples/aoti.cpp -o find-aoti -I$TORCH/include
//       -I$TORCH/include/torch/csrc/api/include -L$TORCH/lib -ltorch -ltorch_cpu -lc10 -ldl
//       -Wl,-rpath,$TORCH/lib
//   ./find-aoti . support.ppm support-mask.pgm query.ppm mask.pgm
//
// Python is only needed to find the folder of PyTorch.

#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <filesystem>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "netpbm.h"

namespace {

// The package of a graph, whose tensors have their names in its metadata.
class Graph {
 public:
  explicit Graph(const std::string& path) : loader_(path), metadata_(loader_.get_metadata()) {}

  const std::string& metadata(const std::string& key) const { return metadata_.at(key); }

  // Runs it on tensors by name, and returns its outputs by name.
  std::map<std::string, at::Tensor> run(const std::map<std::string, at::Tensor>& tensors) {
    std::vector<at::Tensor> inputs;
    std::istringstream taken(metadata("fsdino.inputs")), made(metadata("fsdino.outputs"));
    for (std::string name; taken >> name;) {
      inputs.push_back(tensors.at(name));
    }
    const auto outputs = loader_.run(inputs);
    std::map<std::string, at::Tensor> found;
    for (const auto& output : outputs) {
      std::string name;
      made >> name;
      found.emplace(name, output);
    }
    return found;
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
  std::unordered_map<std::string, std::string> metadata_;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 6) {
    std::cerr << "usage: " << argv[0] << " FOLDER SUPPORT.ppm MASK.pgm QUERY.ppm RESULT.pgm\n";
    return 2;
  }
  const std::string folder = argv[1];
  // Registers fsdino's kernels with PyTorch; the packages look them up when they are loaded.
  const std::string kernels = folder + "/libfsdino_ops.so";
  if (std::filesystem::exists(kernels) && dlopen(kernels.c_str(), RTLD_NOW) == nullptr) {
    throw std::runtime_error(dlerror());
  }
  Image image, mask;
  read_support(argv[2], argv[3], image, mask);
  Image query = read_netpbm(argv[4], 3);

  Graph support_graph(folder + "/support.pt2"), query_graph(folder + "/query.pt2");
  const auto support = support_graph.run({
      {"image", at::from_blob(image.pixels.data(), {1, image.height, image.width, 3}, at::kByte)},
      {"mask", at::from_blob(mask.pixels.data(), {1, mask.height, mask.width}, at::kByte)},
      {"sizes", at::tensor({image.height, image.width}, at::kLong).view({1, 2})},
      // Photograph 0, from its left edge to its right one; for models that have this input.
      {"places", at::tensor({0.0, 0.0, 1.0}, at::kFloat).view({1, 3})},
  });

  std::map<std::string, at::Tensor> inputs;
  for (const auto& [name, tensor] : support) {
    inputs.emplace(name, tensor.unsqueeze(0));  // one class
  }
  inputs["image"] = at::from_blob(query.pixels.data(), {query.height, query.width, 3}, at::kByte);
  const auto found = query_graph.run(inputs);

  const at::Tensor probability = found.at("probability").contiguous();  // [1, height, width]
  const float score = found.at("score").item<float>();
  write_mask(argv[5], probability.const_data_ptr<float>(), probability.size(1),
             probability.size(2), std::stof(query_graph.metadata("fsdino.threshold")), score);
  std::cout << "score " << score << (score < 0.1F ? ", not found" : "") << "\n";
} catch (const c10::Error& error) {
  std::cerr << error.what_without_backtrace() << "\n";
  return 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}

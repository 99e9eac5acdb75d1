// Finds the object of an annotated photograph in another one, with onnxruntime.
//
//   g++ -std=c++17 -O2 examples/onnxruntime.cpp -o find-onnxruntime -I$ONNXRUNTIME_ROOT/include
//       -L$ONNXRUNTIME_ROOT/lib -lonnxruntime -Wl,-rpath,$ONNXRUNTIME_ROOT/lib
//   ./find-onnxruntime . support.ppm support-mask.pgm query.ppm mask.pgm
//
// ONNXRUNTIME_ROOT is the folder of a release of onnxruntime; its Python wheel has no headers.

#include <onnxruntime_cxx_api.h>

#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "netpbm.h"

namespace {

const auto kMemory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

// A tensor over values that stay where they are.
template <typename T>
Ort::Value over(T* values, const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (const std::int64_t length : shape) {
    count *= std::size_t(length);
  }
  return Ort::Value::CreateTensor<T>(kMemory, values, count, shape.data(), shape.size());
}

std::vector<std::int64_t> shape_of(const Ort::Value& tensor) {
  return tensor.GetTensorTypeAndShapeInfo().GetShape();
}

// Runs a graph on tensors by name, and returns its outputs by name.
std::map<std::string, Ort::Value> run(Ort::Session& session,
                                      std::map<std::string, Ort::Value>& inputs) {
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> taken, made;
  for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
    taken.emplace_back(session.GetInputNameAllocated(i, allocator).get());
  }
  for (std::size_t i = 0; i < session.GetOutputCount(); ++i) {
    made.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
  }
  std::vector<const char*> input_names, output_names;
  std::vector<Ort::Value> values;
  for (const auto& name : taken) {
    input_names.push_back(name.c_str());
    values.push_back(std::move(inputs.at(name)));
  }
  for (const auto& name : made) {
    output_names.push_back(name.c_str());
  }
  auto found = session.Run(Ort::RunOptions{nullptr}, input_names.data(), values.data(),
                           values.size(), output_names.data(), output_names.size());
  std::map<std::string, Ort::Value> outputs;
  for (std::size_t i = 0; i < made.size(); ++i) {
    outputs.emplace(made[i], std::move(found[i]));
  }
  return outputs;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 6) {
    std::cerr << "usage: " << argv[0] << " FOLDER SUPPORT.ppm MASK.pgm QUERY.ppm RESULT.pgm\n";
    return 2;
  }
  const std::string folder = argv[1];
  Image image, mask;
  read_support(argv[2], argv[3], image, mask);
  Image query = read_netpbm(argv[4], 3);

  Ort::Env environment;
  const Ort::SessionOptions options;
  Ort::Session support_session(environment, (folder + "/support.onnx").c_str(), options);
  Ort::Session query_session(environment, (folder + "/query.onnx").c_str(), options);
  Ort::AllocatorWithDefaultOptions allocator;
  const float threshold = std::stof(query_session.GetModelMetadata()
                                        .LookupCustomMetadataMapAllocated("fsdino.threshold", allocator)
                                        .get());

  std::int64_t size[2] = {image.height, image.width};
  float whole[3] = {0, 0, 1};  // photograph 0, from its left edge to its right one
  std::map<std::string, Ort::Value> inputs;
  inputs.emplace("image", over(image.pixels.data(), {1, image.height, image.width, 3}));
  inputs.emplace("mask", over(mask.pixels.data(), {1, mask.height, mask.width}));
  inputs.emplace("sizes", over(size, {1, 2}));
  inputs.emplace("places", over(whole, {1, 3}));
  auto support = run(support_session, inputs);

  std::map<std::string, Ort::Value> asked;
  asked.emplace("image", over(query.pixels.data(), {query.height, query.width, 3}));
  for (auto& [name, tensor] : support) {
    auto shape = shape_of(tensor);
    shape.insert(shape.begin(), 1);  // one class
    asked.emplace(name, over(tensor.GetTensorMutableData<float>(), shape));
  }
  auto found = run(query_session, asked);

  const auto shape = shape_of(found.at("probability"));  // [1, height, width]
  const float score = found.at("score").GetTensorData<float>()[0];
  write_mask(argv[5], found.at("probability").GetTensorData<float>(), shape[1], shape[2], threshold,
             score);
  std::cout << "score " << score << (score < 0.1F ? ", not found" : "") << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}

// Finds the object of an annotated photograph in another one, with OpenVINO.
//
//   OPENVINO=$(python -c 'import openvino; print(openvino.__path__[0])')
//   g++ -std=c++17 -O2 examples/openvino.cpp -o find-openvino -I$OPENVINO/include
//       $OPENVINO/libs/libopenvino.so.* -Wl,-rpath,$OPENVINO/libs
//   ./find-openvino . support.ppm support-mask.pgm query.ppm mask.pgm
//
// Python is only needed to find the folder of OpenVINO's wheel.

#include <exception>
#include <iostream>
#include <map>
#include <openvino/openvino.hpp>
#include <string>

#include "netpbm.h"

// A tensor with a dim of length 1 before the others, over the same memory.
ov::Tensor with_dim(const ov::Tensor& tensor) {
  ov::Shape shape = tensor.get_shape();
  shape.insert(shape.begin(), 1);
  return {tensor.get_element_type(), shape, tensor.data()};
}

int main(int argc, char** argv) try {
  if (argc != 6) {
    std::cerr << "usage: " << argv[0] << " FOLDER SUPPORT.ppm MASK.pgm QUERY.ppm RESULT.pgm\n";
    return 2;
  }
  const std::string folder = argv[1];
  Image image, mask;
  read_support(argv[2], argv[3], image, mask);
  Image query = read_netpbm(argv[4], 3);

  ov::Core core;
  // Without these, processors with bfloat16 may compute in it, and results differ.
  const ov::AnyMap exact{ov::hint::inference_precision(ov::element::f32),
                         ov::hint::execution_mode(ov::hint::ExecutionMode::ACCURACY)};
  auto support_model = core.compile_model(folder + "/support.onnx", "CPU", exact);
  const auto query_graph = core.read_model(folder + "/query.onnx");
  auto query_model = core.compile_model(query_graph, "CPU", exact);
  const float threshold =
      std::stof(query_graph->get_rt_info<std::string>("framework", "fsdino.threshold"));

  const std::size_t height = image.height, width = image.width;
  std::int64_t size[2] = {image.height, image.width};
  float whole[3] = {0, 0, 1};  // photograph 0, from its left edge to its right one
  std::map<std::string, ov::Tensor> inputs{
      {"image", {ov::element::u8, {1, height, width, 3}, image.pixels.data()}},
      {"mask", {ov::element::u8, {1, height, width}, mask.pixels.data()}},
      {"sizes", {ov::element::i64, {1, 2}, size}},
      {"places", {ov::element::f32, {1, 3}, whole}},
  };
  auto support = support_model.create_infer_request();
  for (const auto& input : support_model.inputs()) {
    support.set_tensor(input, inputs.at(input.get_any_name()));
  }
  support.infer();

  const std::size_t rows = query.height, columns = query.width;
  auto request = query_model.create_infer_request();
  request.set_tensor("image", {ov::element::u8, {rows, columns, 3}, query.pixels.data()});
  for (const auto& input : query_model.inputs()) {
    const std::string name = input.get_any_name();
    if (name != "image") {  // a tensor of the support, for one class
      request.set_tensor(input, with_dim(support.get_tensor(name)));
    }
  }
  request.infer();

  const ov::Tensor probability = request.get_tensor("probability");  // [1, height, width]
  const float score = request.get_tensor("score").data<float>()[0];
  const auto shape = probability.get_shape();
  write_mask(argv[5], probability.data<float>(), shape[1], shape[2], threshold, score);
  std::cout << "score " << score << (score < 0.1F ? ", not found" : "") << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}

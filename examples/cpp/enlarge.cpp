// A picture enlarged by a super-resolution network in ONNX, with masks or without, in OpenVINO.
//
//     enlarge NETWORK.onnx PICTURE.ppm LARGER.ppm
//
// NETWORK.onnx is written by retrain/export.py or `sparsemask export`: of images (1, 3, H, W) of 0 to 255.

#include <openvino/openvino.hpp>

#include <exception>
#include <iostream>
#include <vector>

#include "pictures.hpp"

int main(int count, char** words) {
  if (count != 4) {
    std::cerr << "usage: enlarge NETWORK.onnx PICTURE.ppm LARGER.ppm\n";
    return 2;
  }
  try {
    const Picture picture = read_picture(words[2]);
    ov::Core core;  // in float32: bfloat16, where the processor has it, is no longer the same
    auto network = core.compile_model(words[1], "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = network.create_infer_request();
    const auto sides = even_shape(picture);
    std::vector<float> values = as_values(picture);
    request.set_input_tensor(ov::Tensor(ov::element::f32, ov::Shape(sides.begin(), sides.end()), values.data()));
    const double spent = second_run([&] { request.infer(); });
    const ov::Tensor enlarged = request.get_output_tensor();
    const ov::Shape shape = enlarged.get_shape();
    write_enlarged(words[3], picture, as_picture({shape.begin(), shape.end()}, enlarged.data<const float>()), spent);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 2;
  }
}

// A picture enlarged by a super-resolution network in ONNX, with masks or without, in OpenVINO.
//
//     enlarge NETWORK.onnx PICTURE.ppm LARGER.ppm
//
// NETWORK.onnx is written by retrain/export.py or `sparsemask export`: of images (1, 3, H, W) of 0 to 255.

#include <openvino/openvino.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <vector>

#include "pictures.hpp"

namespace {

// The picture as the network takes it; of an odd side the last row or column is left out, which masks on every other
// pixel have no room for.
ov::Tensor as_input(const Picture& picture) {
  const int64_t height = picture.height / 2 * 2, width = picture.width / 2 * 2;
  ov::Tensor image(ov::element::f32, {1, 3, static_cast<size_t>(height), static_cast<size_t>(width)});
  float* value = image.data<float>();
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t row = 0; row < height; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        *value++ = picture.pixels[(row * picture.width + column) * 3 + channel];
      }
    }
  }
  return image;
}

Picture as_picture(const ov::Tensor& image) {
  const ov::Shape shape = image.get_shape();
  if (shape.size() != 4 || shape[0] != 1 || shape[1] != 3) {
    throw std::runtime_error("the network gives no picture: it is none of super-resolution");
  }
  const int64_t height = shape[2], width = shape[3];
  Picture picture{height, width, std::vector<uint8_t>(height * width * 3)};
  const float* value = image.data<const float>();
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t place = 0; place < height * width; ++place) {
      picture.pixels[place * 3 + channel] = static_cast<uint8_t>(std::clamp(std::nearbyint(*value++), 0.0f, 255.0f));
    }
  }
  return picture;
}

}  // namespace

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
    request.set_input_tensor(as_input(picture));
    request.infer();  // the first call is slower
    const auto begun = std::chrono::steady_clock::now();
    request.infer();
    const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - begun;
    const Picture larger = as_picture(request.get_output_tensor());
    write_picture(words[3], larger);
    std::cout << std::fixed << std::setprecision(1);
    std::cout << picture.width << "x" << picture.height << " -> " << larger.width << "x" << larger.height << ", "
              << spent.count() << " ms" << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 2;
  }
}

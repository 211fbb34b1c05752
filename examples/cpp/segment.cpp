// A class for every pixel of a picture, by a compiled network, without Python.
//
//     segment COMPILED.pt2 PICTURE.ppm LABELS.pgm
//
// COMPILED.pt2 is written by compile.py. The picture is a binary PPM ("P6", 8 bits), which every converter of pictures
// writes; the labels are a PGM of its size, a class number each pixel.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "pictures.hpp"

namespace {

// What the compiled network says of itself: numbers of a JSON list such as "[0.485, 0.456, 0.406]".
std::vector<float> numbers(const std::unordered_map<std::string, std::string>& about, const std::string& key) {
  const auto found = about.find(key);
  if (found == about.end()) {
    throw std::runtime_error("the network does not say its " + key + ": compile it by compile.py");
  }
  std::string text = found->second;
  std::replace_if(text.begin(), text.end(), [](char c) { return c == '[' || c == ']' || c == ','; }, ' ');
  std::istringstream words(text);
  std::vector<float> values;
  for (float value; words >> value;) {
    values.push_back(value);
  }
  return values;
}

// Labels uint8 (H, W): the picture normalised, padded to the least size that the network was trained for, centred;
// scores enlarged to the picture, as the toolkit's own predictions are made.
at::Tensor segment(torch::inductor::AOTIModelPackageLoader& network, const at::Tensor& pixels) {
  const auto about = network.get_metadata();
  const auto mean = numbers(about, "mean"), deviation = numbers(about, "std");
  const int64_t least = static_cast<int64_t>(numbers(about, "input_size").at(0));
  const int64_t height = pixels.size(0), width = pixels.size(1);
  const int64_t tall = std::max(height, least), wide = std::max(width, least);
  const int64_t top = (tall - height) / 2, left = (wide - width) / 2;
  at::Tensor image = pixels.permute({2, 0, 1}).to(at::kFloat).div(255);
  image = (image - at::tensor(mean).view({3, 1, 1})) / at::tensor(deviation).view({3, 1, 1});
  image = at::constant_pad_nd(image, {left, wide - width - left, top, tall - height - top}).unsqueeze(0).contiguous();
  at::Tensor scores = network.run({image}).at(0);
  scores = at::upsample_bilinear2d(scores, {tall, wide}, /*align_corners=*/true);
  scores = scores.narrow(2, top, height).narrow(3, left, width);
  return scores.argmax(1).squeeze(0).to(at::kByte).contiguous();
}

}  // namespace

int main(int count, char** words) {
  if (count != 4) {
    std::cerr << "usage: segment COMPILED.pt2 PICTURE.ppm LABELS.pgm\n";
    return 2;
  }
  try {
    const c10::InferenceMode no_gradients;
    torch::inductor::AOTIModelPackageLoader network(words[1]);
    Picture picture = read_picture(words[2]);
    const at::Tensor pixels = at::from_blob(picture.pixels.data(), {picture.height, picture.width, 3}, at::kByte);
    at::Tensor labels;
    const double spent = second_run([&] { labels = segment(network, pixels); });
    const uint8_t* values = labels.data_ptr<uint8_t>();
    picture.pixels.assign(values, values + labels.numel());
    write_picture(words[3], picture);
    std::map<int, int64_t> counts;
    for (const uint8_t label : picture.pixels) {
      ++counts[label];
    }
    std::cout << std::fixed << std::setprecision(1);
    std::cout << picture.width << "x" << picture.height << ", " << spent << " ms";
    for (const auto& [label, times] : counts) {
      std::cout << "; class " << label << ": " << 100.0 * times / labels.numel() << " %";
    }
    std::cout << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 2;
  }
}

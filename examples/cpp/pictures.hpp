// Pictures as binary PPM ("P6", 8 bits), which every converter of pictures writes and reads.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
  int64_t height, width;
  std::vector<uint8_t> pixels;  // (height, width, 3), or of labels (height, width)
};

// The next number of a header, behind white space and comments.
inline int64_t header_number(std::istream& file) {
  while (file >> std::ws && file.peek() == '#') {
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  int64_t number = 0;
  if (!(file >> number) || number < 1 || number > 1 << 14) {
    throw std::runtime_error("the picture's header has no size that is taken");
  }
  return number;
}

inline Picture read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind(2, ' ');
  if (!file.read(kind.data(), 2) || kind != "P6") {
    throw std::runtime_error(path + ": no binary PPM (P6)");
  }
  const int64_t width = header_number(file), height = header_number(file);
  if (header_number(file) != 255) {
    throw std::runtime_error(path + ": not of 8 bits a value");
  }
  file.get();  // the one white space before the pixels
  Picture picture{height, width, std::vector<uint8_t>(static_cast<size_t>(height * width * 3))};
  if (!file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()))) {
    throw std::runtime_error(path + ": ends before its pixels do");
  }
  return picture;
}

// As PPM, or labels as PGM.
inline void write_picture(const std::string& path, const Picture& picture) {
  const bool colours = picture.pixels.size() == static_cast<size_t>(picture.height * picture.width * 3);
  std::ofstream file(path, std::ios::binary);
  file << (colours ? "P6\n" : "P5\n") << picture.width << " " << picture.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
  if (!file.flush()) {
    throw std::runtime_error(path + ": cannot be written");
  }
}

// Sizes (1, 3, height, width) of a picture as super-resolution takes it; of an odd side the last row or column is left out,
// which masks on every other pixel have no room for.
inline std::vector<int64_t> even_shape(const Picture& picture) {
  return {1, 3, picture.height / 2 * 2, picture.width / 2 * 2};
}

// Its values of 0 to 255, colour after colour.
inline std::vector<float> as_values(const Picture& picture) {
  const auto shape = even_shape(picture);
  std::vector<float> values;
  values.reserve(static_cast<size_t>(3 * shape[2] * shape[3]));
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t row = 0; row < shape[2]; ++row) {
      for (int64_t column = 0; column < shape[3]; ++column) {
        values.push_back(picture.pixels[(row * picture.width + column) * 3 + channel]);
      }
    }
  }
  return values;
}

// The picture of such values, (1, 3, height, width).
inline Picture as_picture(const std::vector<int64_t>& shape, const float* value) {
  if (shape.size() != 4 || shape[0] != 1 || shape[1] != 3) {
    throw std::runtime_error("the network gives no picture: it is none of super-resolution");
  }
  const int64_t height = shape[2], width = shape[3];
  Picture picture{height, width, std::vector<uint8_t>(static_cast<size_t>(height * width * 3))};
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t place = 0; place < height * width; ++place) {
      picture.pixels[place * 3 + channel] = static_cast<uint8_t>(std::clamp(std::nearbyint(*value++), 0.0f, 255.0f));
    }
  }
  return picture;
}

// Milliseconds of the second call of `run`: the first one is slower.
template <class Run>
double second_run(const Run& run) {
  run();
  const auto begun = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begun).count();
}

// Write the picture that a network made of another one, and say their sizes and the time that it took.
inline void write_enlarged(const std::string& path, const Picture& picture, const Picture& larger, double milliseconds) {
  write_picture(path, larger);
  std::cout << std::fixed << std::setprecision(1) << picture.width << "x" << picture.height << " -> " << larger.width
            << "x" << larger.height << ", " << milliseconds << " ms" << std::endl;
}

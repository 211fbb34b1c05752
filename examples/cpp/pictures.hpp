// Pictures as binary PPM ("P6", 8 bits), which every converter of pictures writes and reads.
#pragma once

#include <cstdint>
#include <fstream>
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

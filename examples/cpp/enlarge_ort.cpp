// A picture enlarged by a super-resolution network in ONNX, in ONNX Runtime: masks multiply, or skip.
//
//     enlarge_ort NETWORK.onnx PICTURE.ppm LARGER.ppm [LIBRARY.so]
//
// NETWORK.onnx is written by retrain/export.py or `sparsemask export`: of images (1, 3, H, W) of 0 to 255. With --form skip
// LIBRARY.so is the library that is written beside it, with a path ("./" where it is in this folder).

#include <exception>
#include <iostream>

#include "onnxruntime.hpp"
#include "pictures.hpp"

int main(int count, char** words) {
  if (count < 4 || count > 5) {
    std::cerr << "usage: enlarge_ort NETWORK.onnx PICTURE.ppm LARGER.ppm [LIBRARY.so]\n";
    return 2;
  }
  try {
    const Picture picture = read_picture(words[2]);
    const ort::Network network(words[1], count == 5 ? words[4] : "");
    ort::Tensor image{even_shape(picture), as_values(picture)}, enlarged;
    const double spent = second_run([&] { enlarged = network(image); });
    write_enlarged(words[3], picture, as_picture(enlarged.shape, enlarged.values.data()), spent);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 2;
  }
}

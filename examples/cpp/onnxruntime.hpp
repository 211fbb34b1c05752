// A network in ONNX Runtime, by the runtime's C interface. The wheels on the package index have the library but no header,
// so that what is called here is declared here; who has the runtime's header uses that.
//
// The interface is a table of functions that only ever grows: a function keeps its number, and a runtime serves the tables
// of older versions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ort {

struct Status;
struct Handle;  // whatever the runtime makes: an environment, options, a session, a value, ...
using Table = void* const*;

struct Base {
  Table (*table)(uint32_t version);  // null: the runtime is older
  const char* (*name)();
};

extern "C" const Base* OrtGetApiBase();

// Numbers of functions in the table; all of them are in that of version 16 (ONNX Runtime 1.16).
constexpr uint32_t VERSION = 16;
enum Number {
  MESSAGE = 2,
  CREATE_ENVIRONMENT = 3,
  CREATE_SESSION = 7,
  RUN = 9,
  CREATE_OPTIONS = 10,
  REGISTER_LIBRARY = 29,
  INPUT_NAME = 36,
  OUTPUT_NAME = 37,
  TENSOR_OF_DATA = 49,
  DATA = 51,
  ELEMENT_TYPE = 60,
  COUNT_DIMENSIONS = 61,
  DIMENSIONS = 62,
  SHAPE = 65,
  CPU_MEMORY = 69,
  FREE = 76,
  ALLOCATOR = 78,
  RELEASE_ENVIRONMENT = 92,
  RELEASE_STATUS = 93,
  RELEASE_MEMORY = 94,
  RELEASE_SESSION = 95,
  RELEASE_VALUE = 96,
  RELEASE_SHAPE = 99,
  RELEASE_OPTIONS = 100,
  CONFIGURE = 130,
};

inline Table table() {
  static const Table found = OrtGetApiBase()->table(VERSION);
  if (!found) {
    throw std::runtime_error("ONNX Runtime is older than 1.16");
  }
  return found;
}

// Calls a function that gives a status; what it says is thrown.
template <typename... Arguments>
void call(Number number, Arguments... arguments) {
  Status* const failed = reinterpret_cast<Status* (*)(Arguments...)>(table()[number])(arguments...);
  if (failed) {
    const std::string said = reinterpret_cast<const char* (*)(const Status*)>(table()[MESSAGE])(failed);
    reinterpret_cast<void (*)(Status*)>(table()[RELEASE_STATUS])(failed);
    throw std::runtime_error(said);
  }
}

// What the runtime made, given back when its time is over.
class Owned {
 public:
  explicit Owned(Number release) : release_(release) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Owned(Owned&& other) noexcept : release_(other.release_), held_(std::exchange(other.held_, nullptr)) {}
  ~Owned() {
    if (held_) {
      reinterpret_cast<void (*)(Handle*)>(table()[release_])(held_);
    }
  }
  Handle** out() { return &held_; }
  Handle* get() const { return held_; }

 private:
  Number release_;
  Handle* held_ = nullptr;
};

// Values with the sizes that they have.
struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// A network of one picture, in float32 on the CPU.
class Network {
 public:
  // `library`: the operators of a file that was written with --form skip, or empty.
  Network(const std::string& file, const std::string& library) {
    call(CREATE_ENVIRONMENT, 3, "sparsemask", environment_.out());  // 3: errors alone are printed
    Owned options(RELEASE_OPTIONS);
    call(CREATE_OPTIONS, options.out());
    if (!library.empty()) {
      void* handle = nullptr;  // of the opened library, which the runtime's sessions use until the end
      call(REGISTER_LIBRARY, options.get(), library.c_str(), &handle);
      // Threads of the runtime that wait by spinning take processors from those of the operators.
      call(CONFIGURE, options.get(), "session.intra_op.allow_spinning", "0");
    }
    call(CREATE_SESSION, environment_.get(), file.c_str(), options.get(), session_.out());
    call(CPU_MEMORY, 1, 0, memory_.out());  // 1: an arena's allocator; 0: the default memory
    input_ = name(INPUT_NAME);
    output_ = name(OUTPUT_NAME);
  }

  Tensor operator()(Tensor& picture) const {
    constexpr int FLOAT = 1;
    Owned value(RELEASE_VALUE), result(RELEASE_VALUE), shape(RELEASE_SHAPE);
    call(TENSOR_OF_DATA, memory_.get(), static_cast<void*>(picture.values.data()), picture.values.size() * sizeof(float),
         picture.shape.data(), picture.shape.size(), FLOAT, value.out());
    const std::array<const char*, 1> inputs{input_.c_str()}, outputs{output_.c_str()};
    const std::array<Handle*, 1> values{value.get()};
    call(RUN, session_.get(), static_cast<Handle*>(nullptr), inputs.data(), values.data(), size_t{1}, outputs.data(),
         size_t{1}, result.out());
    call(SHAPE, result.get(), shape.out());
    int type = 0;
    size_t rank = 0;
    call(ELEMENT_TYPE, shape.get(), &type);
    call(COUNT_DIMENSIONS, shape.get(), &rank);
    if (type != FLOAT) {
      throw std::runtime_error("the network's output is not in float32");
    }
    Tensor given{std::vector<int64_t>(rank), {}};
    call(DIMENSIONS, shape.get(), given.shape.data(), rank);
    size_t count = 1;
    for (const int64_t side : given.shape) {
      count *= static_cast<size_t>(side);
    }
    void* data = nullptr;
    call(DATA, result.get(), &data);
    given.values.assign(static_cast<const float*>(data), static_cast<const float*>(data) + count);
    return given;
  }

 private:
  std::string name(Number which) const {
    Handle* allocator = nullptr;  // the runtime's own, not to be given back
    char* text = nullptr;
    call(ALLOCATOR, &allocator);
    call(which, session_.get(), size_t{0}, allocator, &text);
    const std::string copy = text;
    call(FREE, allocator, static_cast<void*>(text));
    return copy;
  }

  Owned environment_{RELEASE_ENVIRONMENT}, session_{RELEASE_SESSION}, memory_{RELEASE_MEMORY};
  std::string input_, output_;
};

}  // namespace ort

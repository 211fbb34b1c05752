// What a custom operator needs of ONNX Runtime's C interface, so that it is built without the runtime's header, which
// the wheels on the package index do not bring.
//
// The interface is a table of functions that only ever grows: a function keeps its number, and a runtime serves tables
// of older versions. All that is called here is in the table since its first version. The structure that describes an
// operator grows likewise, and says its version; the fields up to those of version 16 (ONNX Runtime 1.16) are filled.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t VERSION = 16;

struct Status;
struct Value;
struct Shape;
struct KernelInfo;
struct KernelContext;
struct Options;
struct Domain;

using Table = void* const*;

struct Base {
    Table (*table)(uint32_t version);  // null: the runtime is older
    const char* (*name)();
};

// Numbers of functions in the table.
enum Number {
    CREATE_STATUS = 0,
    CREATE_DOMAIN = 26,
    ADD_OPERATOR = 27,
    ADD_DOMAIN = 28,
    DATA = 51,
    COUNT_DIMENSIONS = 61,
    DIMENSIONS = 62,
    SHAPE = 65,
    INTEGER_ATTRIBUTE = 86,
    COUNT_INPUTS = 88,
    INPUT = 90,
    OUTPUT = 91,
    RELEASE_STATUS = 93,
    RELEASE_SHAPE = 99,
};

template <typename... Arguments>
Status* call(Table table, Number number, Arguments... arguments) {
    return reinterpret_cast<Status* (*)(Arguments...)>(table[number])(arguments...);
}

template <typename Held>
void release(Table table, Number number, Held* held) {
    reinterpret_cast<void (*)(Held*)>(table[number])(held);
}

inline Status* failure(Table table, const char* said) { return call(table, CREATE_STATUS, 1, said); }

enum Type { ANY = 0, FLOAT = 1, INT32 = 6, BOOL = 9 };
enum Characteristic { REQUIRED = 0, VARIADIC = 2 };

// Describes an operator. Functions get the structure itself.
struct Operator {
    uint32_t version;
    void* (*create_old)(const Operator*, Table, const KernelInfo*);
    const char* (*name)(const Operator*);
    const char* (*provider)(const Operator*);  // null: the CPU's
    Type (*input_type)(const Operator*, size_t);
    size_t (*input_count)(const Operator*);
    Type (*output_type)(const Operator*, size_t);
    size_t (*output_count)(const Operator*);
    void (*compute_old)(void*, KernelContext*);
    void (*destroy)(void*);
    Characteristic (*input_characteristic)(const Operator*, size_t);
    Characteristic (*output_characteristic)(const Operator*, size_t);
    int (*input_memory)(const Operator*, size_t);
    int (*fewest_inputs)(const Operator*);
    int (*inputs_alike)(const Operator*);
    int (*fewest_outputs)(const Operator*);
    int (*outputs_alike)(const Operator*);
    Status* (*create)(const Operator*, Table, const KernelInfo*, void**);
    Status* (*compute)(void*, KernelContext*);
};

}  // namespace ort

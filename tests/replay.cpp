// Replays recorded calls of the kernels on the processor at hand: tests/recorded_calls.py says what the files hold.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" {
#define SM_ENTRY(name) void name();
#include "entries.inc"
#undef SM_ENTRY
}

namespace {

using Entry = void (*)();
// Numbers and addresses alone are passed, eight bytes each, which both calling conventions treat alike.
using Call = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

struct Named {
    const char* name;
    Entry entry;
};

const Named entries[] = {
#define SM_ENTRY(name) {#name, name},
#include "entries.inc"
#undef SM_ENTRY
};

FILE* file;

int64_t number() {
    int64_t value;
    if (std::fread(&value, sizeof value, 1, file) != 1) {
        std::fprintf(stderr, "the recording ends early\n");
        std::exit(2);
    }
    return value;
}

std::vector<char> bytes() {
    std::vector<char> found(number());
    if (!found.empty() && std::fread(found.data(), 1, found.size(), file) != found.size()) std::exit(2);
    return found;
}

char* aligned(const std::vector<char>& from) {
    char* memory = static_cast<char*>(std::aligned_alloc(64, (from.size() + 64) / 64 * 64));
    std::memcpy(memory, from.data(), from.size());
    return memory;
}

}  // namespace

int main(int, char** names) {
    file = std::fopen(names[1], "rb");
    FILE* out = std::fopen(names[2], "wb");
    if (!file || !out) return 2;
    for (int64_t calls = number(); calls > 0; calls--) {
        const std::vector<char> text = bytes();
        const std::string name(text.begin(), text.end());
        std::vector<char*> memory;
        std::vector<int64_t> sizes;
        for (int64_t left = number(); left > 0; left--) {
            const std::vector<char> content = bytes();
            memory.push_back(aligned(content));
            sizes.push_back(static_cast<int64_t>(content.size()));
        }
        for (int64_t left = number(); left > 0; left--) {  // addresses that lie in memory
            const int64_t where = number(), at = number(), to = number(), offset = number();
            const char* address = memory[to] + offset;
            std::memcpy(memory[where] + at, &address, sizeof address);
        }
        int64_t given[10] = {};
        for (int64_t i = 0, n = number(); i < n; i++) {
            const int64_t to = number(), value = number();  // to < 0: a number
            given[i] = to < 0 ? value : reinterpret_cast<int64_t>(memory[to] + value);
        }
        Entry entry = nullptr;
        for (const Named& one : entries)
            if (name == one.name) entry = one.entry;
        if (!entry) {
            std::fprintf(stderr, "unknown entry %s\n", name.c_str());
            return 2;
        }
        const int64_t answer = reinterpret_cast<Call>(entry)(given[0], given[1], given[2], given[3], given[4], given[5],
                                                             given[6], given[7], given[8], given[9]);
        std::fwrite(&answer, sizeof answer, 1, out);
        for (size_t i = 0; i < memory.size(); i++) {
            std::fwrite(memory[i], 1, sizes[i], out);
            std::free(memory[i]);
        }
    }
    return std::fclose(out) ? 2 : 0;
}

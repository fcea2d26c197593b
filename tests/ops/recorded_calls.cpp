// Runs recorded calls of the compiled layers on a processor for which there is no Python with torch, under an emulator.
//
// usage: recorded_calls CALLS RESULTS. CALLS has, for each call: the name's length and the name, the number of tensors,
// the bytes and contents of each, the number of sizes, the sizes. All numbers are 64-bit. RESULTS gets the contents of
// all tensors after each call.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define FUNCTIONS(with)                                                                                                \
    with(gated_feed_forward) with(gated_feed_forward_backward) with(dynamic_local_attention)                           \
    with(dynamic_local_attention_backward) with(fused_dynamic_depthwise_conv)                                          \
    with(fused_dynamic_depthwise_conv_backward) with(channel_attention_sums) with(channel_attention_apply)             \
    with(channel_attention_mixing_backward) with(channel_attention_backward) with(convolution)                         \
    with(convolution_backward)

#define DECLARE(name) extern "C" void dlgsanet_##name();
FUNCTIONS(DECLARE)

namespace {

// In the procedure call standard of ARM64 all arguments of these functions are 64-bit words, and superfluous ones are
// ignored.
using Word = std::uint64_t;
using Function = bool (*)(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
                          Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
                          Word, Word, Word, Word, Word, Word, Word, Word);
constexpr std::size_t most_arguments = 40;

Function find(const std::string& name) {
#define COMPARE(known) \
    if (name == #known) return reinterpret_cast<Function>(dlgsanet_##known);
    FUNCTIONS(COMPARE)
    std::fprintf(stderr, "unknown function %s\n", name.c_str());
    std::exit(2);
}

std::FILE *calls, *results;

void read(void* to, std::size_t bytes) {
    if (bytes && std::fread(to, 1, bytes, calls) != bytes) std::exit(3);
}

Word number() {
    Word n;
    read(&n, sizeof n);
    return n;
}

}  // namespace

int main(int count, char** names) {
    if (count != 3 || !(calls = std::fopen(names[1], "rb")) || !(results = std::fopen(names[2], "wb"))) return 4;
    for (Word length; std::fread(&length, sizeof length, 1, calls) == 1;) {
        std::string name(length, ' ');
        read(&name[0], length);
        std::vector<std::vector<char>> tensors(number());
        std::vector<Word> a;
        for (auto& tensor : tensors) {
            tensor.resize(number());
            read(tensor.data(), tensor.size());
            a.push_back(reinterpret_cast<Word>(tensor.data()));
        }
        for (Word sizes = number(); sizes > 0; sizes--) a.push_back(number());
        a.push_back(1);  // thread
        if (a.size() > most_arguments) return 5;
        a.resize(most_arguments);
        const bool done = find(name)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13],
                                     a[14], a[15], a[16], a[17], a[18], a[19], a[20], a[21], a[22], a[23], a[24], a[25],
                                     a[26], a[27], a[28], a[29], a[30], a[31], a[32], a[33], a[34], a[35], a[36], a[37],
                                     a[38], a[39]);
        if (!done) return 6;
        for (auto& tensor : tensors)
            if (std::fwrite(tensor.data(), 1, tensor.size(), results) != tensor.size()) return 7;
    }
    return std::fclose(results) ? 8 : 0;
}

// CRC-32 and leaf digests: any bytes, size and alignment, in pieces, at every instruction set.

#include <vector>

#include "../core/bytes.h"
#include "../core/constants.h"
#include "../core/cpu.h"
#include "../core/crc32.h"
#include "../core/hash.h"
#include "fuzz.h"

namespace fastckpt {
namespace {

uint32_t NaiveCrc32(const uint8_t* data, size_t size) {
  uint32_t crc = ~0U;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
  }
  return ~crc;
}

}  // namespace
}  // namespace fastckpt

// Input: distance from an aligned address (1), where to split (2), repetitions (1), then the piece.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fastckpt;
  Input input(data, size);
  const size_t shift = input.Take(1) % 65;
  const size_t split_at = input.Take(2);
  const size_t repeats = 1 + input.Take(1) % 64;
  // Exactly as large as it has to be: one byte read beyond the end is noticed.
  const size_t total = shift + repeats * input.size();
  std::vector<uint8_t> bytes(total);
  for (size_t i = 0; i < repeats && input.size() != 0; ++i)
    std::memcpy(bytes.data() + shift + i * input.size(), input.data(), input.size());
  const uint8_t* start = bytes.data() + shift;
  const size_t length = total - shift;

  const uint32_t want = NaiveCrc32(start, length);
  const size_t split = length == 0 ? 0 : split_at % (length + 1);
  std::vector<uint64_t> first_leaves;
  for (const SimdLevel level : kSimdLevels) {
    if (!SimdLevelSupported(level)) continue;
    SetSimdLevel(level);
    REQUIRE(Crc32(0, start, length) == want);
    REQUIRE(Crc32(Crc32(0, start, split), start + split, length - split) == want);
    const uint32_t second = Crc32(0, start + split, length - split);
    REQUIRE(Crc32Combine(Crc32(0, start, split), second, length - split) == want);
    std::vector<uint64_t> leaves(LeafCount(length));
    HashLeaves(start, length, leaves.data());
    if (level == SimdLevel::kPortable) first_leaves = leaves;
    REQUIRE(leaves == first_leaves);
  }
  // A short last leaf counts as if zeros followed it.
  if (length % kLeafSize != 0) {
    std::vector<uint8_t> padded(start + length / kLeafSize * kLeafSize, start + length);
    padded.resize(kLeafSize);
    uint64_t digest = 0;
    HashLeaves(padded.data(), padded.size(), &digest);
    REQUIRE(digest == first_leaves.back());
  }
  return 0;
}

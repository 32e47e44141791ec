// XXH3-64 of bytes of any number from 17 on, as the XXH3 specification defines it: two classes of
// short inputs, and the long one, whose whole blocks the kernels add up.

#include "bytes.h"
#include "constants.h"
#include "cpu.h"
#include "hash.h"
#include "hash_kernels.h"

namespace fastckpt {

namespace {

using namespace xxh3;

constexpr size_t kStep = 16;
constexpr size_t kLongestShort = 128;
constexpr size_t kLongestMedium = 240;
// Medium inputs: the steps of the first round; where the secret of the second begins, and that of
// the last step.
constexpr size_t kFirstRound = 8;
constexpr size_t kSecondSecret = 3;
constexpr size_t kLastStepSecret = 119;  // 136 - 17

uint64_t Mix(const uint8_t* data, const uint8_t* secret) {
  return FoldedProduct(Load64(data) ^ Load64(secret), Load64(data + 8) ^ Load64(secret + 8));
}

// Pairs of steps from both ends, which meet or overlap in the middle.
uint64_t HashShort(const uint8_t* data, size_t size) {
  uint64_t hash = size * kPrime64_1;
  for (size_t pair = 0; 2 * kStep * pair < size; ++pair) {
    hash += Mix(data + kStep * pair, kSecret + 2 * kStep * pair);
    hash += Mix(data + size - kStep * (pair + 1), kSecret + 2 * kStep * pair + kStep);
  }
  return Avalanche(hash);
}

uint64_t HashMedium(const uint8_t* data, size_t size) {
  uint64_t hash = size * kPrime64_1;
  for (size_t step = 0; step < kFirstRound; ++step)
    hash += Mix(data + kStep * step, kSecret + kStep * step);
  hash = Avalanche(hash);
  for (size_t step = kFirstRound; step < size / kStep; ++step)
    hash += Mix(data + kStep * step, kSecret + kStep * (step - kFirstRound) + kSecondSecret);
  return Avalanche(hash + Mix(data + size - kStep, kSecret + kLastStepSecret));
}

void HashBlocks(const uint8_t* data, size_t count, uint64_t* lanes) {
#if defined(__x86_64__)
  switch (CurrentSimdLevel()) {
    case SimdLevel::kAvx512:
      return HashBlocksAvx512(data, count, lanes);
    case SimdLevel::kAvx2:
      return HashBlocksAvx2(data, count, lanes);
    default:
      break;
  }
#endif
  HashBlocksPortable(data, count, lanes);
}

void AddStripe(const uint8_t* data, const uint8_t* secret, uint64_t* lanes) {
  for (size_t i = 0; i < kLanes; ++i) {
    const uint64_t value = Load64(data + 8 * i);
    const uint64_t key = value ^ Load64(secret + 8 * i);
    lanes[i] += (key & 0xFFFFFFFF) * (key >> 32);
    lanes[i ^ 1] += value;
  }
}

uint64_t HashLong(const uint8_t* data, size_t size) {
  uint64_t lanes[kLanes];
  std::memcpy(lanes, kInitialAccumulators, sizeof lanes);
  const size_t blocks = (size - 1) / kBlock;
  HashBlocks(data, blocks, lanes);
  const uint8_t* const rest = data + blocks * kBlock;
  const size_t stripes = (size - 1 - blocks * kBlock) / kStripe;
  for (size_t s = 0; s < stripes; ++s) AddStripe(rest + s * kStripe, kSecret + 8 * s, lanes);
  AddStripe(data + size - kStripe, kSecret + kLastStripeSecret, lanes);
  return Merge(lanes, size);
}

}  // namespace

uint64_t HashBytes(const uint8_t* data, size_t size) {
  if (size <= kLongestShort) return HashShort(data, size);
  return size <= kLongestMedium ? HashMedium(data, size) : HashLong(data, size);
}

}  // namespace fastckpt

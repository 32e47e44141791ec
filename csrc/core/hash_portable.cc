// The leaf hash in plain C++. The inner loops run over eight lanes without a dependency between
// them, a shape that compilers turn into vectors by themselves.

#include "hash_kernels.h"

namespace fastckpt {

namespace {

using namespace xxh3;

struct Lanes {
  uint64_t lane[kLanes];
};

// Adds one stripe: products into `products`, plain data (lanes not yet swapped) into `sums`.
inline void AddStripe(const uint8_t* data, const uint8_t* secret, Lanes* products, Lanes* sums) {
  for (size_t i = 0; i < kLanes; ++i) {
    const uint64_t value = Load64(data + 8 * i);
    const uint64_t key = value ^ Load64(secret + 8 * i);
    products->lane[i] += (key & 0xFFFFFFFF) * (key >> 32);
    sums->lane[i] += value;
  }
}

inline void AddSwapped(const Lanes& sums, Lanes* accumulators) {
  for (size_t i = 0; i < kLanes; ++i) accumulators->lane[i] += sums.lane[i ^ 1];
}

inline void Scramble(Lanes* accumulators) {
  for (size_t i = 0; i < kLanes; ++i) {
    uint64_t value = accumulators->lane[i];
    value ^= value >> 47;
    value ^= Load64(kSecret + kScrambleSecret + 8 * i);
    accumulators->lane[i] = value * kPrime32_1;
  }
}

uint64_t HashLeaf(const uint8_t* data) {
  Lanes accumulators;
  std::memcpy(accumulators.lane, kInitialAccumulators, sizeof accumulators.lane);
  for (size_t block = 0; block < kBlocksPerLeaf; ++block, data += kBlock) {
    const bool last = block + 1 == kBlocksPerLeaf;
    Lanes sums = {};
    for (size_t s = 0; s + 1 < kStripesPerBlock; ++s) {
      AddStripe(data + s * kStripe, kSecret + 8 * s, &accumulators, &sums);
    }
    const size_t secret = last ? kLastStripeSecret : 8 * (kStripesPerBlock - 1);
    AddStripe(data + kBlock - kStripe, kSecret + secret, &accumulators, &sums);
    AddSwapped(sums, &accumulators);
    if (!last) Scramble(&accumulators);
  }
  return Merge(accumulators.lane);
}

}  // namespace

void HashWholeLeavesPortable(const uint8_t* data, size_t count, uint64_t* digests) {
  for (size_t leaf = 0; leaf < count; ++leaf) digests[leaf] = HashLeaf(data + leaf * kLeafSize);
}

}  // namespace fastckpt

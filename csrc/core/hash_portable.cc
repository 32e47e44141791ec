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

void AddBlock(const uint8_t* data, const uint8_t* last_secret, Lanes* accumulators) {
  Lanes sums = {};
  for (size_t s = 0; s + 1 < kStripesPerBlock; ++s)
    AddStripe(data + s * kStripe, kSecret + 8 * s, accumulators, &sums);
  AddStripe(data + kBlock - kStripe, last_secret, accumulators, &sums);
  AddSwapped(sums, accumulators);
}

void AddBlocks(const uint8_t* data, size_t count, Lanes* accumulators) {
  for (size_t block = 0; block < count; ++block) {
    AddBlock(data + block * kBlock, kSecret + 8 * (kStripesPerBlock - 1), accumulators);
    Scramble(accumulators);
  }
}

uint64_t HashLeaf(const uint8_t* data) {
  Lanes accumulators;
  std::memcpy(accumulators.lane, kInitialAccumulators, sizeof accumulators.lane);
  AddBlocks(data, kBlocksPerLeaf - 1, &accumulators);
  AddBlock(data + kLeafSize - kBlock, kSecret + kLastStripeSecret, &accumulators);
  return Merge(accumulators.lane, kLeafSize);
}

}  // namespace

void HashWholeLeavesPortable(const uint8_t* data, size_t count, uint64_t* digests) {
  for (size_t leaf = 0; leaf < count; ++leaf) digests[leaf] = HashLeaf(data + leaf * kLeafSize);
}

void HashBlocksPortable(const uint8_t* data, size_t count, uint64_t* lanes) {
  Lanes accumulators;
  std::memcpy(accumulators.lane, lanes, sizeof accumulators.lane);
  AddBlocks(data, count, &accumulators);
  std::memcpy(lanes, accumulators.lane, sizeof accumulators.lane);
}

}  // namespace fastckpt

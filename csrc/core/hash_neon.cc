// The leaf hash on NEON, which every 64-bit ARM has: a stripe is four registers, taken in pairs.
// One pair's keys come apart into all low and all high halves in two instructions, and products are
// added as they are made.

#include "hash_kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

namespace fastckpt {

namespace {

using namespace xxh3;

constexpr size_t kWidth = 16;
constexpr size_t kParts = kStripe / kWidth;

struct Part {
  uint64x2_t products;
  uint64x2_t sums;
};

// By bytes: neither data nor the last stripe's secret is aligned.
inline uint64x2_t Load(const uint8_t* from) { return vreinterpretq_u64_u8(vld1q_u8(from)); }

inline void AddPair(const uint8_t* data, const uint8_t* secret, Part* a, Part* b) {
  const uint64x2_t value_a = Load(data);
  const uint64x2_t value_b = Load(data + kWidth);
  const uint32x4_t key_a = vreinterpretq_u32_u64(veorq_u64(value_a, Load(secret)));
  const uint32x4_t key_b = vreinterpretq_u32_u64(veorq_u64(value_b, Load(secret + kWidth)));
  const uint32x4_t low = vuzp1q_u32(key_a, key_b);
  const uint32x4_t high = vuzp2q_u32(key_a, key_b);
  a->products = vmlal_u32(a->products, vget_low_u32(low), vget_low_u32(high));
  b->products = vmlal_high_u32(b->products, low, high);
  a->sums = vaddq_u64(a->sums, value_a);
  b->sums = vaddq_u64(b->sums, value_b);
  FASTCKPT_IN_ORDER(a->products, a->sums);
  FASTCKPT_IN_ORDER(b->products, b->sums);
}

inline void AddStripe(const uint8_t* data, const uint8_t* secret, Part* block) {
  AddPair(data, secret, block, block + 1);
  AddPair(data + 2 * kWidth, secret + 2 * kWidth, block + 2, block + 3);
}

// Makes the products the accumulators after the block.
inline void AddSwapped(Part* part) {
  part->products = vaddq_u64(part->products, vextq_u64(part->sums, part->sums, 1));
  part->sums = vdupq_n_u64(0);
}

inline void Scramble(Part* part, const uint8_t* secret) {
  const uint32x2_t prime = vdup_n_u32(kPrime32_1);
  uint64x2_t value = veorq_u64(part->products, vshrq_n_u64(part->products, 47));
  value = veorq_u64(value, Load(secret));
  const uint64x2_t high = vmull_u32(vshrn_n_u64(value, 32), prime);
  part->products = vmlal_u32(vshlq_n_u64(high, 32), vmovn_u64(value), prime);
}

uint64_t HashLeaf(const uint8_t* data) {
  Part block[kParts];
  for (size_t i = 0; i < kParts; ++i)
    block[i] = {vld1q_u64(kInitialAccumulators + 2 * i), vdupq_n_u64(0)};
  for (size_t number = 0; number < kBlocksPerLeaf; ++number, data += kBlock) {
    const bool last = number + 1 == kBlocksPerLeaf;
#pragma GCC unroll 15
    for (size_t s = 0; s + 1 < kStripesPerBlock; ++s)
      AddStripe(data + s * kStripe, kSecret + 8 * s, block);
    const uint8_t* secret = kSecret + (last ? kLastStripeSecret : 8 * (kStripesPerBlock - 1));
    AddStripe(data + kBlock - kStripe, secret, block);
    for (Part& part : block) AddSwapped(&part);
    if (last) break;
    for (size_t i = 0; i < kParts; ++i)
      Scramble(&block[i], kSecret + kScrambleSecret + i * kWidth);
  }
  uint64_t accumulators[kLanes];
  for (size_t i = 0; i < kParts; ++i) vst1q_u64(accumulators + 2 * i, block[i].products);
  return Merge(accumulators, kLeafSize);
}

}  // namespace

void HashWholeLeavesNeon(const uint8_t* data, size_t count, uint64_t* digests) {
  for (size_t leaf = 0; leaf < count; ++leaf) digests[leaf] = HashLeaf(data + leaf * kLeafSize);
}

}  // namespace fastckpt

#endif  // __aarch64__

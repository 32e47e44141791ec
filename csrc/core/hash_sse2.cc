// The leaf hash on 128-bit registers, which every x86-64 has: a stripe is four of them.

#include "hash_kernels.h"

#if defined(__x86_64__)

#include <emmintrin.h>

namespace fastckpt {

namespace {

using namespace xxh3;

constexpr size_t kWidth = 16;

struct Part {
  __m128i products;
  __m128i sums;
};

struct Block {
  Part a, b, c, d;
};

__m128i Load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

void AddPart(const uint8_t* data, const uint8_t* secret, Part* part) {
  const __m128i value = Load(data);
  const __m128i key = _mm_xor_si128(value, Load(secret));
  part->products = _mm_add_epi64(part->products, _mm_mul_epu32(key, _mm_srli_epi64(key, 32)));
  part->sums = _mm_add_epi64(part->sums, value);
  FASTCKPT_IN_ORDER(part->products, part->sums);
}

void AddStripe(const uint8_t* data, const uint8_t* secret, Block* block) {
  AddPart(data, secret, &block->a);
  AddPart(data + kWidth, secret + kWidth, &block->b);
  AddPart(data + 2 * kWidth, secret + 2 * kWidth, &block->c);
  AddPart(data + 3 * kWidth, secret + 3 * kWidth, &block->d);
}

// Makes the products the accumulators after the block.
void AddSwapped(Part* part) {
  const __m128i swapped = _mm_shuffle_epi32(part->sums, _MM_SHUFFLE(1, 0, 3, 2));
  part->products = _mm_add_epi64(part->products, swapped);
  part->sums = _mm_setzero_si128();
}

void Scramble(Part* part, const uint8_t* secret) {
  const __m128i prime = _mm_set1_epi64x(kPrime32_1);
  const __m128i accumulator = part->products;
  __m128i value = _mm_xor_si128(accumulator, _mm_srli_epi64(accumulator, 47));
  value = _mm_xor_si128(value, Load(secret));
  const __m128i low = _mm_mul_epu32(value, prime);
  const __m128i high = _mm_mul_epu32(_mm_srli_epi64(value, 32), prime);
  part->products = _mm_add_epi64(low, _mm_slli_epi64(high, 32));
}

uint64_t HashLeaf(const uint8_t* data) {
  const __m128i zero = _mm_setzero_si128();
  Block block = {{Load(kInitialAccumulators), zero},
                 {Load(kInitialAccumulators + 2), zero},
                 {Load(kInitialAccumulators + 4), zero},
                 {Load(kInitialAccumulators + 6), zero}};
  for (size_t number = 0; number < kBlocksPerLeaf; ++number, data += kBlock) {
    const bool last = number + 1 == kBlocksPerLeaf;
#pragma GCC unroll 15
    for (size_t s = 0; s + 1 < kStripesPerBlock; ++s)
      AddStripe(data + s * kStripe, kSecret + 8 * s, &block);
    const uint8_t* secret = kSecret + (last ? kLastStripeSecret : 8 * (kStripesPerBlock - 1));
    AddStripe(data + kBlock - kStripe, secret, &block);
    AddSwapped(&block.a);
    AddSwapped(&block.b);
    AddSwapped(&block.c);
    AddSwapped(&block.d);
    if (last) break;
    Scramble(&block.a, kSecret + kScrambleSecret);
    Scramble(&block.b, kSecret + kScrambleSecret + kWidth);
    Scramble(&block.c, kSecret + kScrambleSecret + 2 * kWidth);
    Scramble(&block.d, kSecret + kScrambleSecret + 3 * kWidth);
  }
  alignas(16) uint64_t accumulators[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(accumulators), block.a.products);
  _mm_store_si128(reinterpret_cast<__m128i*>(accumulators + 2), block.b.products);
  _mm_store_si128(reinterpret_cast<__m128i*>(accumulators + 4), block.c.products);
  _mm_store_si128(reinterpret_cast<__m128i*>(accumulators + 6), block.d.products);
  return Merge(accumulators, kLeafSize);
}

}  // namespace

void HashWholeLeavesSse2(const uint8_t* data, size_t count, uint64_t* digests) {
  for (size_t leaf = 0; leaf < count; ++leaf) digests[leaf] = HashLeaf(data + leaf * kLeafSize);
}

}  // namespace fastckpt

#endif  // __x86_64__

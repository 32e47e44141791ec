// The leaf hash on 256-bit registers: a stripe is two of them.

#include "hash_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace fastckpt {

namespace {

using namespace xxh3;

#define FASTCKPT_AVX2 __attribute__((target("avx2"), always_inline)) inline

FASTCKPT_AVX2 __m256i Load(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

FASTCKPT_AVX2 void AddHalfStripe(const uint8_t* data, const uint8_t* secret, __m256i* products,
                                 __m256i* sums) {
  const __m256i value = Load(data);
  const __m256i key = _mm256_xor_si256(value, Load(secret));
  *products = _mm256_add_epi64(*products, _mm256_mul_epu32(key, _mm256_srli_epi64(key, 32)));
  *sums = _mm256_add_epi64(*sums, value);
  FASTCKPT_IN_ORDER(*products, *sums);
}

FASTCKPT_AVX2 __m256i AddSwapped(__m256i accumulator, __m256i sums) {
  return _mm256_add_epi64(accumulator, _mm256_shuffle_epi32(sums, _MM_SHUFFLE(1, 0, 3, 2)));
}

FASTCKPT_AVX2 __m256i Scramble(__m256i accumulator, const uint8_t* secret) {
  const __m256i prime = _mm256_set1_epi64x(kPrime32_1);
  __m256i value = _mm256_xor_si256(accumulator, _mm256_srli_epi64(accumulator, 47));
  value = _mm256_xor_si256(value, Load(secret));
  const __m256i low = _mm256_mul_epu32(value, prime);
  const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(value, 32), prime);
  return _mm256_add_epi64(low, _mm256_slli_epi64(high, 32));
}

struct Accumulators {
  __m256i low;
  __m256i high;
};

FASTCKPT_AVX2 Accumulators LoadLanes(const uint64_t* lanes) {
  const auto* parts = reinterpret_cast<const __m256i*>(lanes);
  return {_mm256_loadu_si256(parts), _mm256_loadu_si256(parts + 1)};
}

FASTCKPT_AVX2 void StoreLanes(const Accumulators& from, uint64_t* lanes) {
  auto* parts = reinterpret_cast<__m256i*>(lanes);
  _mm256_storeu_si256(parts, from.low);
  _mm256_storeu_si256(parts + 1, from.high);
}

FASTCKPT_AVX2 void AddBlock(const uint8_t* data, const uint8_t* last_secret, Accumulators* to) {
  __m256i low_sums = _mm256_setzero_si256();
  __m256i high_sums = _mm256_setzero_si256();
#pragma GCC unroll 15
  for (size_t s = 0; s + 1 < kStripesPerBlock; ++s) {
    AddHalfStripe(data + s * kStripe, kSecret + 8 * s, &to->low, &low_sums);
    AddHalfStripe(data + s * kStripe + 32, kSecret + 8 * s + 32, &to->high, &high_sums);
  }
  AddHalfStripe(data + kBlock - kStripe, last_secret, &to->low, &low_sums);
  AddHalfStripe(data + kBlock - kStripe + 32, last_secret + 32, &to->high, &high_sums);
  to->low = AddSwapped(to->low, low_sums);
  to->high = AddSwapped(to->high, high_sums);
}

FASTCKPT_AVX2 void AddBlocks(const uint8_t* data, size_t count, Accumulators* to) {
  for (size_t block = 0; block < count; ++block, data += kBlock) {
    AddBlock(data, kSecret + 8 * (kStripesPerBlock - 1), to);
    to->low = Scramble(to->low, kSecret + kScrambleSecret);
    to->high = Scramble(to->high, kSecret + kScrambleSecret + 32);
  }
}

__attribute__((target("avx2"))) uint64_t HashLeaf(const uint8_t* data) {
  Accumulators accumulators = LoadLanes(kInitialAccumulators);
  AddBlocks(data, kBlocksPerLeaf - 1, &accumulators);
  AddBlock(data + (kBlocksPerLeaf - 1) * kBlock, kSecret + kLastStripeSecret, &accumulators);
  alignas(32) uint64_t lanes[kLanes];
  StoreLanes(accumulators, lanes);
  return Merge(lanes, kLeafSize);
}

}  // namespace

void HashWholeLeavesAvx2(const uint8_t* data, size_t count, uint64_t* digests) {
  for (size_t leaf = 0; leaf < count; ++leaf) digests[leaf] = HashLeaf(data + leaf * kLeafSize);
}

__attribute__((target("avx2"))) void HashBlocksAvx2(const uint8_t* data, size_t count,
                                                    uint64_t* lanes) {
  Accumulators accumulators = LoadLanes(lanes);
  AddBlocks(data, count, &accumulators);
  StoreLanes(accumulators, lanes);
}

}  // namespace fastckpt

#endif  // __x86_64__

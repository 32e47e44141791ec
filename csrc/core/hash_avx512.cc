// The leaf hash on 512-bit registers: a stripe is one of them, and the secret of a whole block fits
// into sixteen, so that the inner loop touches no memory but the data.

#include "hash_kernels.h"

#if defined(__x86_64__)

// GCC 12 warns about its own AVX-512 header, where a register is left unset on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace fastckpt {

namespace {

using namespace xxh3;

#define FASTCKPT_AVX512 __attribute__((target("avx512f"), always_inline)) inline

FASTCKPT_AVX512 __m512i Load(const uint8_t* from) {
  return _mm512_loadu_si512(reinterpret_cast<const void*>(from));
}

// The hardware prefetcher stops at page boundaries, and alone does not keep up with registers this
// wide: from memory, asking this far ahead gains a third on huge pages and half on pages of 4 KiB
// (Zen 5; benchmarks/hashing.py). What is asked for behind the end is never read.
constexpr size_t kAhead = 2048;

FASTCKPT_AVX512 void AddStripe(const uint8_t* data, __m512i secret, __m512i* products,
                               __m512i* sums) {
  _mm_prefetch(reinterpret_cast<const char*>(data + kAhead), _MM_HINT_T0);
  const __m512i value = Load(data);
  const __m512i key = _mm512_xor_si512(value, secret);
  *products = _mm512_add_epi64(*products, _mm512_mul_epu32(key, _mm512_srli_epi64(key, 32)));
  *sums = _mm512_add_epi64(*sums, value);
  FASTCKPT_IN_ORDER(*products, *sums);
}

FASTCKPT_AVX512 __m512i AddSwapped(__m512i accumulator, __m512i sums) {
  return _mm512_add_epi64(accumulator, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
}

FASTCKPT_AVX512 __m512i Scramble(__m512i accumulator, __m512i secret) {
  const __m512i prime = _mm512_set1_epi64(kPrime32_1);
  const __m512i shifted = _mm512_srli_epi64(accumulator, 47);
  // 0x96 is the truth table of a three-way exclusive or.
  const __m512i value = _mm512_ternarylogic_epi64(accumulator, shifted, secret, 0x96);
  const __m512i low = _mm512_mul_epu32(value, prime);
  const __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(value, 32), prime);
  return _mm512_add_epi64(low, _mm512_slli_epi64(high, 32));
}

struct Secrets {
  __m512i stripes[kStripesPerBlock];
  __m512i scramble;
};

FASTCKPT_AVX512 void LoadSecrets(Secrets* secrets) {
#pragma GCC unroll 16
  for (size_t s = 0; s < kStripesPerBlock; ++s) secrets->stripes[s] = Load(kSecret + 8 * s);
  secrets->scramble = Load(kSecret + kScrambleSecret);
}

// Whole blocks, none of them the last.
FASTCKPT_AVX512 __m512i AddBlocks(const uint8_t* data, size_t count, const Secrets& secrets,
                                  __m512i accumulator) {
  for (size_t block = 0; block < count; ++block, data += kBlock) {
    __m512i products = _mm512_setzero_si512();
    __m512i sums = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (size_t s = 0; s < kStripesPerBlock; ++s) {
      AddStripe(data + s * kStripe, secrets.stripes[s], &products, &sums);
    }
    accumulator = AddSwapped(_mm512_add_epi64(accumulator, products), sums);
    accumulator = Scramble(accumulator, secrets.scramble);
  }
  return accumulator;
}

}  // namespace

__attribute__((target("avx512f"))) void HashWholeLeavesAvx512(const uint8_t* data, size_t count,
                                                              uint64_t* digests) {
  Secrets secrets;
  LoadSecrets(&secrets);
  const __m512i last_secret = Load(kSecret + kLastStripeSecret);
  for (size_t leaf = 0; leaf < count; ++leaf, data += kLeafSize) {
    __m512i accumulator = Load(reinterpret_cast<const uint8_t*>(kInitialAccumulators));
    accumulator = AddBlocks(data, kBlocksPerLeaf - 1, secrets, accumulator);
    const uint8_t* const last = data + kLeafSize - kBlock;
    __m512i sums = _mm512_setzero_si512();
#pragma GCC unroll 15
    for (size_t s = 0; s + 1 < kStripesPerBlock; ++s) {
      AddStripe(last + s * kStripe, secrets.stripes[s], &accumulator, &sums);
    }
    AddStripe(last + kBlock - kStripe, last_secret, &accumulator, &sums);
    accumulator = AddSwapped(accumulator, sums);
    alignas(64) uint64_t lanes[kLanes];
    _mm512_store_si512(lanes, accumulator);
    digests[leaf] = Merge(lanes, kLeafSize);
  }
}

__attribute__((target("avx512f"))) void HashBlocksAvx512(const uint8_t* data, size_t count,
                                                         uint64_t* lanes) {
  Secrets secrets;
  LoadSecrets(&secrets);
  _mm512_storeu_si512(lanes, AddBlocks(data, count, secrets, _mm512_loadu_si512(lanes)));
}

}  // namespace fastckpt

#endif  // __x86_64__

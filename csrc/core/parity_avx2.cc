// The parity kernels on 256-bit registers.

#include "constants.h"
#include "parity_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace fastckpt {
namespace gf256 {

namespace {

#define FASTCKPT_AVX2 __attribute__((target("avx2"), always_inline)) inline

FASTCKPT_AVX2 __m256i Load(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

FASTCKPT_AVX2 __m256i Twice(__m256i value) {
  const __m256i overflows = _mm256_cmpgt_epi8(_mm256_setzero_si256(), value);
  return _mm256_xor_si256(_mm256_add_epi8(value, value),
                          _mm256_and_si256(overflows, _mm256_set1_epi8(0x1D)));
}

FASTCKPT_AVX2 void Store(uint8_t* to, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}

// The multiples by each half of a byte: in both lanes, as the shuffle takes them.
struct Tables {
  __m256i low;
  __m256i high;
};

FASTCKPT_AVX2 __m256i Table(const uint8_t* of_bit) {
  alignas(16) uint8_t table[16];
  for (int half = 0; half < 16; ++half) {
    table[half] = 0;
    for (int bit = 0; bit < 4; ++bit)
      if ((half >> bit & 1) != 0) table[half] ^= of_bit[bit];
  }
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}

FASTCKPT_AVX2 Tables TablesOf(const Multiples& multiples) {
  return {Table(multiples.of_bit), Table(multiples.of_bit + 4)};
}

FASTCKPT_AVX2 void AddMultiples(const Tables& tables, __m256i value, uint8_t* to) {
  const __m256i half = _mm256_set1_epi8(0x0F);
  const __m256i by_low = _mm256_shuffle_epi8(tables.low, _mm256_and_si256(value, half));
  const __m256i by_high =
      _mm256_shuffle_epi8(tables.high, _mm256_and_si256(_mm256_srli_epi64(value, 4), half));
  Store(to, _mm256_xor_si256(Load(to), _mm256_xor_si256(by_low, by_high)));
}

template <size_t kRows>
__attribute__((target("avx2"))) void AddToRows(const Multiples* multiples, const uint8_t* from,
                                               size_t size, uint8_t* const* rows) {
  Tables tables[kRows];
  for (size_t j = 1; j < kRows; ++j) tables[j] = TablesOf(multiples[j]);
  for (size_t at = 0; at < size; at += sizeof(__m256i)) {
    const __m256i value = Load(from + at);
    Store(rows[0] + at, _mm256_xor_si256(Load(rows[0] + at), value));
    for (size_t j = 1; j < kRows; ++j) AddMultiples(tables[j], value, rows[j] + at);
  }
}

template <size_t kRows>
__attribute__((target("avx2"))) void Fold(const uint8_t* const* sources, uint8_t* const* rows) {
  constexpr size_t kLine = 64;  // bytes that the cache brings together
  constexpr size_t kParts = kLine / sizeof(__m256i);
  for (size_t at = 0; at < kLeafSize; at += kLine) {
    __m256i row[kRows][kParts];
    for (size_t j = 0; j < kRows; ++j)
      for (size_t k = 0; k < kParts; ++k) row[j][k] = Load(rows[j] + at + k * sizeof(__m256i));
#pragma GCC unroll 8
    for (size_t i = 0; i < kFold; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(sources[i] + at + kAhead), _MM_HINT_T0);
      for (size_t k = 0; k < kParts; ++k) {
        const __m256i value = Load(sources[i] + at + k * sizeof(__m256i));
        row[0][k] = _mm256_xor_si256(row[0][k], value);
        if constexpr (kRows > 1) row[1][k] = _mm256_xor_si256(Twice(row[1][k]), value);
        if constexpr (kRows > 2) row[2][k] = _mm256_xor_si256(Twice(Twice(row[2][k])), value);
      }
    }
    for (size_t j = 0; j < kRows; ++j)
      for (size_t k = 0; k < kParts; ++k) Store(rows[j] + at + k * sizeof(__m256i), row[j][k]);
  }
}

}  // namespace

void FoldAvx2(const uint8_t* const* sources, uint8_t* const* rows, size_t count) {
  if (count == 1) return Fold<1>(sources, rows);
  if (count == 2) return Fold<2>(sources, rows);
  Fold<3>(sources, rows);
}

__attribute__((target("avx2"))) void AddMultipleAvx2(const Multiples& multiples,
                                                     const uint8_t* from, size_t size,
                                                     uint8_t* to) {
  const size_t whole = size / sizeof(__m256i) * sizeof(__m256i);
  const Tables tables = TablesOf(multiples);
  for (size_t at = 0; at < whole; at += sizeof(__m256i))
    AddMultiples(tables, Load(from + at), to + at);
  AddMultiplePortable(multiples, from + whole, size - whole, to + whole);
}

void AddToRowsAvx2(const Multiples* multiples, const uint8_t* from, size_t size,
                   uint8_t* const* rows, size_t count) {
  if (count == 1) return AddToRows<1>(multiples, from, size, rows);
  if (count == 2) return AddToRows<2>(multiples, from, size, rows);
  AddToRows<3>(multiples, from, size, rows);
}

}  // namespace gf256
}  // namespace fastckpt

#endif  // __x86_64__

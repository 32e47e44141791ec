// The parity kernel on 512-bit registers.

#include "constants.h"
#include "parity_kernels.h"

#if defined(__x86_64__)

// GCC 12 warns about its own AVX-512 header, where a register is left unset on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace fastckpt {
namespace gf256 {

namespace {

#define FASTCKPT_AVX512 __attribute__((target("avx512f,avx512bw"), always_inline)) inline

FASTCKPT_AVX512 __m512i Load(const uint8_t* from) {
  return _mm512_loadu_si512(reinterpret_cast<const void*>(from));
}

// A shuffle by the bytes of `value` gives 0x1D where the high bit is *not* set: one instruction in place of two, and
// value * 2 + 0x1D in place of value * 2. A row that is kept with this added does not notice: 0x0B * 2 + 0x1D is 0x0B.
constexpr char kKeptWith = 0x0B;

// value * 2 + addend, the first and the result with kKeptWith added. 0x96 is the truth table of a three-way exclusive or.
FASTCKPT_AVX512 __m512i TwiceAnd(__m512i value, __m512i addend) {
  const __m512i carried = _mm512_shuffle_epi8(_mm512_set1_epi8(0x1D), value);
  return _mm512_ternarylogic_epi64(_mm512_add_epi8(value, value), carried, addend, 0x96);
}

template <size_t kRows>
__attribute__((target("avx512f,avx512bw"))) void Fold(const uint8_t* const* sources,
                                                      uint8_t* const* rows) {
  const __m512i kept_with = _mm512_set1_epi8(kKeptWith);
  for (size_t at = 0; at < kLeafSize; at += sizeof(__m512i)) {
    __m512i row[kRows];
    row[0] = Load(rows[0] + at);
    for (size_t j = 1; j < kRows; ++j) row[j] = _mm512_xor_si512(Load(rows[j] + at), kept_with);
#pragma GCC unroll 8
    for (size_t i = 0; i < kFold; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(sources[i] + at + kAhead), _MM_HINT_T0);
      const __m512i value = Load(sources[i] + at);
      row[0] = _mm512_xor_si512(row[0], value);
      if constexpr (kRows > 1) row[1] = TwiceAnd(row[1], value);
      if constexpr (kRows > 2)
        row[2] = TwiceAnd(TwiceAnd(row[2], _mm512_setzero_si512()), value);
    }
    _mm512_storeu_si512(reinterpret_cast<void*>(rows[0] + at), row[0]);
    for (size_t j = 1; j < kRows; ++j)
      _mm512_storeu_si512(reinterpret_cast<void*>(rows[j] + at), _mm512_xor_si512(row[j], kept_with));
  }
}

}  // namespace

void FoldAvx512(const uint8_t* const* sources, uint8_t* const* rows, size_t count) {
  if (count == 1) return Fold<1>(sources, rows);
  if (count == 2) return Fold<2>(sources, rows);
  Fold<3>(sources, rows);
}

}  // namespace gf256
}  // namespace fastckpt

#endif  // __x86_64__

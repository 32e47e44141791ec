// CRC-32 by folding with carry-less multiplication.
//
// Four registers each swallow a piece of the message and are moved on by the distance to the next
// piece with two multiplications (see FoldLow). What is left of them in the end is 16 bytes that
// have the same remainder as all the bytes before: those go through the table.

#include "crc32_kernels.h"

#if defined(__x86_64__)

// GCC 12 warns about its own AVX-512 header, where a register is left unset on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace fastckpt {
namespace crc {

namespace {

#define FASTCKPT_PCLMUL __attribute__((target("pclmul,sse4.1"), always_inline)) inline
#define FASTCKPT_VPCLMUL __attribute__((target("avx512f,vpclmulqdq,pclmul"), always_inline)) inline

FASTCKPT_PCLMUL __m128i Load128(const uint8_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

template <uint64_t kDistance>
FASTCKPT_PCLMUL __m128i Fold128(__m128i value, __m128i next) {
  const __m128i powers = _mm_set_epi64x(static_cast<int64_t>(FoldHigh(kDistance)),
                                        static_cast<int64_t>(FoldLow(kDistance)));
  const __m128i low = _mm_clmulepi64_si128(value, powers, 0x00);
  const __m128i high = _mm_clmulepi64_si128(value, powers, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

FASTCKPT_VPCLMUL __m512i Load512(const uint8_t* from) {
  return _mm512_loadu_si512(reinterpret_cast<const void*>(from));
}

template <uint64_t kDistance>
FASTCKPT_VPCLMUL __m512i Fold512(__m512i value, __m512i next) {
  constexpr int64_t kLow = static_cast<int64_t>(FoldLow(kDistance));
  constexpr int64_t kHigh = static_cast<int64_t>(FoldHigh(kDistance));
  const __m512i powers = _mm512_set_epi64(kHigh, kLow, kHigh, kLow, kHigh, kLow, kHigh, kLow);
  const __m512i low = _mm512_clmulepi64_epi128(value, powers, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(value, powers, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // three-way exclusive or
}

// The hardware prefetcher stops at page boundaries; asking for the data this far ahead gains half
// again from DRAM and costs nothing from the cache (measured). Past the end it is harmless.
constexpr size_t kAhead = 1024;

FASTCKPT_PCLMUL void Prefetch(const uint8_t* data) {
  _mm_prefetch(reinterpret_cast<const char*>(data + kAhead), _MM_HINT_T0);
}

// The last step of both kernels: `rest` continues the message after `folded`.
FASTCKPT_PCLMUL uint32_t Finish(__m128i folded, const uint8_t* rest, size_t size) {
  alignas(16) uint8_t bytes[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(bytes), folded);
  return UpdatePortable(UpdatePortable(0, bytes, sizeof bytes), rest, size);
}

}  // namespace

__attribute__((target("pclmul,sse4.1"))) uint32_t UpdatePclmul(uint32_t state, const uint8_t* data,
                                                               size_t size) {
  if (size < 64) return UpdatePortable(state, data, size);
  __m128i a = _mm_xor_si128(Load128(data), _mm_cvtsi32_si128(static_cast<int>(state)));
  __m128i b = Load128(data + 16);
  __m128i c = Load128(data + 32);
  __m128i d = Load128(data + 48);
  data += 64;
  size -= 64;
  for (; size >= 64; data += 64, size -= 64) {
    Prefetch(data);
    a = Fold128<512>(a, Load128(data));
    b = Fold128<512>(b, Load128(data + 16));
    c = Fold128<512>(c, Load128(data + 32));
    d = Fold128<512>(d, Load128(data + 48));
  }
  d = Fold128<128>(Fold128<128>(Fold128<128>(a, b), c), d);
  for (; size >= 16; data += 16, size -= 16) d = Fold128<128>(d, Load128(data));
  return Finish(d, data, size);
}

__attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.1"))) uint32_t UpdateVpclmul512(
    uint32_t state, const uint8_t* data, size_t size) {
  if (size < 256) return UpdatePclmul(state, data, size);
  const __m512i start = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state)));
  __m512i a = _mm512_xor_si512(Load512(data), start);
  __m512i b = Load512(data + 64);
  __m512i c = Load512(data + 128);
  __m512i d = Load512(data + 192);
  data += 256;
  size -= 256;
  for (; size >= 256; data += 256, size -= 256) {
    Prefetch(data);
    Prefetch(data + 64);
    Prefetch(data + 128);
    Prefetch(data + 192);
    a = Fold512<2048>(a, Load512(data));
    b = Fold512<2048>(b, Load512(data + 64));
    c = Fold512<2048>(c, Load512(data + 128));
    d = Fold512<2048>(d, Load512(data + 192));
  }
  d = Fold512<512>(Fold512<512>(Fold512<512>(a, b), c), d);
  for (; size >= 64; data += 64, size -= 64) d = Fold512<512>(d, Load512(data));
  __m128i folded = _mm512_extracti32x4_epi32(d, 0);
  folded = Fold128<128>(folded, _mm512_extracti32x4_epi32(d, 1));
  folded = Fold128<128>(folded, _mm512_extracti32x4_epi32(d, 2));
  folded = Fold128<128>(folded, _mm512_extracti32x4_epi32(d, 3));
  for (; size >= 16; data += 16, size -= 16) folded = Fold128<128>(folded, Load128(data));
  return Finish(folded, data, size);
}

}  // namespace crc
}  // namespace fastckpt

#endif  // __x86_64__

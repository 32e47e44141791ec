// The kernels of the codec `planes` on 512-bit registers: 64 values at a time. Escapes are moved
// together, and apart again, by the instructions that AVX-512 has for bytes (VBMI2).

#include "planes_kernels.h"

#if defined(__x86_64__)

// GCC 12 warns about its own AVX-512 header, where a register is left unset on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace fastckpt {
namespace planes {

namespace {

#define FASTCKPT_ISA "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi,bmi2,popcnt"
#define FASTCKPT_VBMI2 __attribute__((target(FASTCKPT_ISA)))
#define FASTCKPT_VBMI2_INLINE __attribute__((target(FASTCKPT_ISA), always_inline)) inline

FASTCKPT_VBMI2_INLINE __m512i Load(const void* from) { return _mm512_loadu_si512(from); }
FASTCKPT_VBMI2_INLINE void Store(void* to, __m512i value) { _mm512_storeu_si512(to, value); }
FASTCKPT_VBMI2_INLINE __m512i Bytes(unsigned value) {
  return _mm512_set1_epi8(static_cast<char>(value));
}

// (a & mask) | (b & ~mask)
FASTCKPT_VBMI2_INLINE __m512i Pick(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi64(mask, a, b, 0xCA);
}

// The lower bytes of the 32 words of `a`, then of `b`; the upper ones are zero.
FASTCKPT_VBMI2_INLINE __m512i Narrow(__m512i a, __m512i b) {
  const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
  return _mm512_permutexvar_epi64(order, _mm512_packus_epi16(a, b));
}

FASTCKPT_VBMI2_INLINE void SplitBfloat16(const uint8_t* raw, uint8_t* exponents, uint8_t* rest) {
  const __m512i a = Load(raw);
  const __m512i b = Load(raw + 64);
  const __m512i byte = _mm512_set1_epi16(0xFF);
  const __m512i mantissa = _mm512_set1_epi16(0x7F);
  Store(exponents, Narrow(_mm512_and_si512(_mm512_srli_epi16(a, 7), byte),
                          _mm512_and_si512(_mm512_srli_epi16(b, 7), byte)));
  const __m512i sign = _mm512_set1_epi16(0x80);
  const __m512i sign_a = _mm512_and_si512(_mm512_srli_epi16(a, 8), sign);
  const __m512i sign_b = _mm512_and_si512(_mm512_srli_epi16(b, 8), sign);
  Store(rest, Narrow(Pick(mantissa, a, sign_a), Pick(mantissa, b, sign_b)));
}

// Exponents and signs with the bits above the mantissa, as the bytes of the words that they were.
FASTCKPT_VBMI2_INLINE void UpperBytes(__m512i exponents, __m512i rest, __m512i* high,
                                      __m512i* low) {
  const __m512i top = Bytes(0x80);
  *high = Pick(top, rest, _mm512_srli_epi16(exponents, 1));
  *low = Pick(top, _mm512_slli_epi16(exponents, 7), rest);
}

FASTCKPT_VBMI2_INLINE void JoinBfloat16(const uint8_t* exponents, const uint8_t* rest,
                                        uint8_t* raw) {
  // So that what is interleaved inside of each lane of 128 bits comes out in order.
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  __m512i high;
  __m512i low;
  UpperBytes(_mm512_permutexvar_epi64(order, Load(exponents)),
             _mm512_permutexvar_epi64(order, Load(rest)), &high, &low);
  Store(raw, _mm512_unpacklo_epi8(low, high));
  Store(raw + 64, _mm512_unpackhi_epi8(low, high));
}

// The bytes of 16 words of 32 bits: the lowest of each, then the next of each, and so on.
FASTCKPT_VBMI2_INLINE __m512i ByPlace(__m512i words) {
  const __m512i order = _mm512_set_epi32(
      0x3F3B3733, 0x2F2B2723, 0x1F1B1713, 0x0F0B0703, 0x3E3A3632, 0x2E2A2622, 0x1E1A1612,
      0x0E0A0602, 0x3D393531, 0x2D292521, 0x1D191511, 0x0D090501, 0x3C383430, 0x2C282420,
      0x1C181410, 0x0C080400);
  return _mm512_permutexvar_epi8(order, words);
}

FASTCKPT_VBMI2_INLINE void SplitFloat32(const uint8_t* raw, uint8_t* const* planes, size_t at) {
  __m512i words[4];
  for (size_t i = 0; i < 4; ++i) {
    const __m512i word = Load(raw + 64 * i);
    // The sign goes below the exponent.
    const __m512i exponent = _mm512_slli_epi32(word, 1);
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(word, 8), _mm512_set1_epi32(0x800000));
    const __m512i mantissa = _mm512_and_si512(word, _mm512_set1_epi32(0x7FFFFF));
    const __m512i upper = _mm512_set1_epi32(-16777216);  // the highest byte
    words[i] = ByPlace(Pick(upper, exponent, _mm512_or_si512(sign, mantissa)));
  }
  const __m512i low01 = _mm512_shuffle_i64x2(words[0], words[1], 0x44);
  const __m512i high01 = _mm512_shuffle_i64x2(words[0], words[1], 0xEE);
  const __m512i low23 = _mm512_shuffle_i64x2(words[2], words[3], 0x44);
  const __m512i high23 = _mm512_shuffle_i64x2(words[2], words[3], 0xEE);
  Store(planes[3] + at, _mm512_shuffle_i64x2(low01, low23, 0x88));
  Store(planes[2] + at, _mm512_shuffle_i64x2(low01, low23, 0xDD));
  Store(planes[1] + at, _mm512_shuffle_i64x2(high01, high23, 0x88));
  Store(planes[0] + at, _mm512_shuffle_i64x2(high01, high23, 0xDD));
}

FASTCKPT_VBMI2_INLINE void JoinFloat32(const uint8_t* const* planes, size_t at, uint8_t* raw) {
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  const __m512i b0 = _mm512_permutexvar_epi32(order, Load(planes[3] + at));
  const __m512i b1 = _mm512_permutexvar_epi32(order, Load(planes[2] + at));
  __m512i b2;
  __m512i b3;
  UpperBytes(_mm512_permutexvar_epi32(order, Load(planes[0] + at)),
             _mm512_permutexvar_epi32(order, Load(planes[1] + at)), &b3, &b2);
  const __m512i low01 = _mm512_unpacklo_epi8(b0, b1);
  const __m512i high01 = _mm512_unpackhi_epi8(b0, b1);
  const __m512i low23 = _mm512_unpacklo_epi8(b2, b3);
  const __m512i high23 = _mm512_unpackhi_epi8(b2, b3);
  Store(raw, _mm512_unpacklo_epi16(low01, low23));
  Store(raw + 64, _mm512_unpackhi_epi16(low01, low23));
  Store(raw + 128, _mm512_unpacklo_epi16(high01, high23));
  Store(raw + 192, _mm512_unpackhi_epi16(high01, high23));
}

FASTCKPT_VBMI2 void Split(unsigned kind, const uint8_t* raw, size_t n, uint8_t* const* planes) {
  size_t done = 0;
  if (kind == kPlanesKindBfloat16)
    for (; done + 64 <= n; done += 64)
      SplitBfloat16(raw + 2 * done, planes[0] + done, planes[1] + done);
  if (kind == kPlanesKindFloat32)
    for (; done + 64 <= n; done += 64) SplitFloat32(raw + 4 * done, planes, done);
  WithFields(kind, [=](auto fields) __attribute__((always_inline)) {
    SplitLoop<decltype(fields)>(raw, done, n, planes);
  });
}

FASTCKPT_VBMI2 void Join(unsigned kind, const uint8_t* const* planes, size_t n, uint8_t* raw) {
  size_t done = 0;
  if (kind == kPlanesKindBfloat16)
    for (; done + 64 <= n; done += 64)
      JoinBfloat16(planes[0] + done, planes[1] + done, raw + 2 * done);
  if (kind == kPlanesKindFloat32)
    for (; done + 64 <= n; done += 64) JoinFloat32(planes, done, raw + 4 * done);
  WithFields(kind, [=](auto fields) __attribute__((always_inline)) {
    JoinLoop<decltype(fields)>(planes, done, n, raw);
  });
}

template <unsigned kWidth>
FASTCKPT_VBMI2_INLINE void StoreDigits(__m512i digits, uint8_t* rows, size_t row, size_t at,
                                       size_t n) {
  for (unsigned p = 0; p < kWidth; ++p)
    StoreBits(rows + p * row, at, n, _mm512_test_epi8_mask(digits, Bytes(1U << p)));
}

// Values behind the last one are zero, so that their bits are.
FASTCKPT_VBMI2_INLINE __m512i LoadValues(const uint8_t* values, size_t at, size_t n) {
  const size_t rest = n - at;
  if (rest >= 64) return Load(values + at);
  return _mm512_maskz_loadu_epi8((uint64_t{1} << rest) - 1, values + at);
}

template <unsigned kWidth>
FASTCKPT_VBMI2_INLINE void PackWidth(const uint8_t* values, size_t n, uint8_t* rows) {
  const size_t row = RowSize(n);
  for (size_t i = 0; i < n; i += 64)
    StoreDigits<kWidth>(LoadValues(values, i, n), rows, row, i, n);
}

FASTCKPT_VBMI2 size_t Pack(const uint8_t* values, size_t n, unsigned width, uint8_t* rows) {
#define FASTCKPT_CALL(w) PackWidth<w>(values, n, rows)
  FASTCKPT_BY_WIDTH(width, FASTCKPT_CALL)
#undef FASTCKPT_CALL
  return RowSize(n) * width;
}

// 64 digits; `escapes` gets a bit for each of them that has all bits set.
template <unsigned kWidth>
FASTCKPT_VBMI2_INLINE __m512i LoadDigits(const uint8_t* rows, size_t row, size_t at, size_t n,
                                         uint64_t* escapes) {
  uint64_t all = ~uint64_t{0};
  __m512i digits = _mm512_setzero_si512();
  for (unsigned p = 0; p < kWidth; ++p) {
    const uint64_t bits = LoadBits(rows + p * row, at, n);
    all &= bits;
    digits = _mm512_mask_add_epi8(digits, bits, digits, Bytes(1U << p));
  }
  *escapes = all;
  return digits;
}

template <unsigned kWidth>
FASTCKPT_VBMI2_INLINE void UnpackWidth(const uint8_t* rows, size_t n, uint8_t base,
                                       uint8_t* values) {
  const size_t row = RowSize(n);
  uint64_t unused;
  for (size_t i = 0; i < n; i += 64)
    Store(values + i, _mm512_add_epi8(LoadDigits<kWidth>(rows, row, i, n, &unused), Bytes(base)));
}

FASTCKPT_VBMI2 void Unpack(const uint8_t* rows, size_t n, unsigned width, uint8_t base,
                           uint8_t* values) {
#define FASTCKPT_CALL(w) UnpackWidth<w>(rows, n, base, values)
  FASTCKPT_BY_WIDTH(width, FASTCKPT_CALL)
#undef FASTCKPT_CALL
}

// A table of 256 bytes in four registers.
struct Table {
  __m512i parts[4];
};

FASTCKPT_VBMI2_INLINE Table LoadTable(const uint8_t* table) {
  return {{Load(table), Load(table + 64), Load(table + 128), Load(table + 192)}};
}

FASTCKPT_VBMI2_INLINE __m512i LookUp(const Table& table, __m512i index) {
  const __m512i low = _mm512_permutex2var_epi8(table.parts[0], index, table.parts[1]);
  const __m512i high = _mm512_permutex2var_epi8(table.parts[2], index, table.parts[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}

// One level: digits to `rows`; what is left of the escapes moves to the front of `values`.
// The first level also turns values into ranks. Returns the number of escapes.
template <unsigned kWidth>
FASTCKPT_VBMI2_INLINE size_t NestLevel(uint8_t* values, size_t n, const Nesting& nesting,
                                       bool first, bool closed, uint8_t* rows) {
  const size_t row = RowSize(n);
  const __m512i limit = Bytes((1U << kWidth) - 1);
  // Nearly all values are in the window: then one register has the table.
  const __m512i start = Bytes(nesting.window);
  alignas(64) uint8_t window[64];
  for (size_t i = 0; i < 64; ++i)
    window[i] = nesting.ranks[static_cast<uint8_t>(nesting.window + i)];
  const __m512i near = Load(window);
  uint8_t* left = values;
  for (size_t i = 0; i < n; i += 64) {
    __m512i rank = LoadValues(values, i, n);
    if (first) {
      const __m512i place = _mm512_sub_epi8(rank, start);
      const __m512i value = rank;
      rank = _mm512_permutexvar_epi8(place, near);
      const __mmask64 far = _mm512_cmpgt_epu8_mask(place, Bytes(63));
      if (far != 0)
        rank = _mm512_mask_blend_epi8(far, rank, LookUp(LoadTable(nesting.ranks), value));
      if (n - i < 64) rank = _mm512_maskz_mov_epi8((uint64_t{1} << (n - i)) - 1, rank);
    }
    if (closed) {
      StoreDigits<kWidth>(rank, rows, row, i, n);
      continue;
    }
    StoreDigits<kWidth>(_mm512_min_epu8(rank, limit), rows, row, i, n);
    // Zeros behind the last value are no escapes.
    const __mmask64 escapes = _mm512_cmpge_epu8_mask(rank, limit);
    Store(left, _mm512_maskz_compress_epi8(escapes, _mm512_sub_epi8(rank, limit)));
    left += _mm_popcnt_u64(escapes);
  }
  return static_cast<size_t>(left - values);
}

FASTCKPT_VBMI2 size_t Nest(uint8_t* values, size_t n, const Nesting& nesting, uint8_t* out) {
  uint8_t* at = out;
  for (size_t level = 0; level < nesting.levels && n != 0; ++level) {
    const unsigned width = nesting.widths[level];
    const bool closed = nesting.LastIsClosed(level);
    const size_t row = RowSize(n);
    size_t escapes = 0;
    if (level == 0) {
#define FASTCKPT_CALL(w) escapes = NestLevel<w>(values, n, nesting, true, closed, at)
      FASTCKPT_BY_WIDTH(width, FASTCKPT_CALL)
#undef FASTCKPT_CALL
    } else {
#define FASTCKPT_CALL(w) escapes = NestLevel<w>(values, n, nesting, false, closed, at)
      FASTCKPT_BY_WIDTH(width, FASTCKPT_CALL)
#undef FASTCKPT_CALL
    }
    at += row * width;
    n = escapes;
  }
  std::memcpy(at, values, n);
  return static_cast<size_t>(at + n - out);
}

enum class Ranks { kStay, kFew, kAny };

// One level of digits, with what the next level has for its escapes added.
template <unsigned kWidth>
FASTCKPT_VBMI2_INLINE void UnnestLevel(const uint8_t* rows, size_t n, bool closed,
                                       const uint8_t* deeper, Ranks ranks, const uint8_t* symbols,
                                       uint8_t* to) {
  const size_t row = RowSize(n);
  const Table table = LoadTable(symbols);
  for (size_t i = 0; i < n; i += 64) {
    uint64_t escapes;
    __m512i rank = LoadDigits<kWidth>(rows, row, i, n, &escapes);
    if (!closed) {
      rank = _mm512_add_epi8(rank, _mm512_maskz_expand_epi8(escapes, Load(deeper)));
      deeper += _mm_popcnt_u64(escapes);
    }
    if (ranks == Ranks::kFew) rank = _mm512_permutexvar_epi8(rank, table.parts[0]);
    if (ranks == Ranks::kAny) rank = LookUp(table, rank);
    Store(to + i, rank);
  }
}

FASTCKPT_VBMI2 size_t Unnest(const uint8_t* in, size_t size, size_t n, const Nesting& nesting,
                             Lane* levels, uint8_t* values) {
  LevelPlaces places;
  if (!FindLevels(in, size, n, nesting, &places)) return kDamaged;
  const uint8_t* deeper = places.bytes;
  for (size_t level = places.levels; level-- != 0;) {
    uint8_t* to = level == 0 ? values : levels[level].values;
    const bool closed = nesting.LastIsClosed(level);
    const uint8_t* rows = places.rows[level];
    const size_t count = places.counts[level];
    const bool few = nesting.covered <= 64 && places.counts[places.levels] == 0;
#define FASTCKPT_LEVEL(w, ranks) \
  UnnestLevel<w>(rows, count, closed, deeper, ranks, nesting.symbols, to)
#define FASTCKPT_STAY(w) FASTCKPT_LEVEL(w, Ranks::kStay)
#define FASTCKPT_FEW(w) FASTCKPT_LEVEL(w, Ranks::kFew)
#define FASTCKPT_ANY(w) FASTCKPT_LEVEL(w, Ranks::kAny)
    if (level != 0) {
      FASTCKPT_BY_WIDTH(nesting.widths[level], FASTCKPT_STAY)
    } else if (few) {
      FASTCKPT_BY_WIDTH(nesting.widths[level], FASTCKPT_FEW)
    } else {
      FASTCKPT_BY_WIDTH(nesting.widths[level], FASTCKPT_ANY)
    }
#undef FASTCKPT_LEVEL
#undef FASTCKPT_STAY
#undef FASTCKPT_FEW
#undef FASTCKPT_ANY
    deeper = to;
  }
  return places.used;
}

FASTCKPT_VBMI2 void Survey(const uint8_t* raw, size_t words, uint64_t* any, uint64_t* all,
                           size_t* zeros) {
  SurveyLoop(raw, words, any, all, zeros);
}

}  // namespace

const Kernels kAvx512Kernels = {Split, Join, Pack, Unpack, Nest, Unnest, Survey};

}  // namespace planes
}  // namespace fastckpt

#endif

// The kernels of the codec `planes` on 256-bit registers: 32 values at a time. Escapes are moved
// together, and apart again, eight at a time by the instructions that BMI2 has for masks.

#include "planes_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace fastckpt {
namespace planes {

namespace {

#define FASTCKPT_ISA "avx2,bmi,bmi2,popcnt"
#define FASTCKPT_BMI2 __attribute__((target(FASTCKPT_ISA)))
#define FASTCKPT_BMI2_INLINE __attribute__((target(FASTCKPT_ISA), always_inline)) inline

constexpr uint64_t kOnes = 0x0101010101010101;
constexpr uint64_t kTops = 0x8080808080808080;

FASTCKPT_BMI2_INLINE __m256i Load(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
FASTCKPT_BMI2_INLINE void Store(uint8_t* to, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}
FASTCKPT_BMI2_INLINE __m256i Bytes(unsigned value) {
  return _mm256_set1_epi8(static_cast<char>(value));
}

FASTCKPT_BMI2 void Split(unsigned kind, const uint8_t* raw, size_t n, uint8_t* const* planes) {
  WithFields(kind, [=](auto fields) __attribute__((always_inline)) {
    SplitLoop<decltype(fields)>(raw, 0, n, planes);
  });
}

// Where `mask` has a bit, that of `a`, elsewhere that of `b`.
FASTCKPT_BMI2_INLINE __m256i Pick(__m256i mask, __m256i a, __m256i b) {
  return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}

// What is interleaved inside of each lane of 128 bits, in order.
FASTCKPT_BMI2_INLINE void StoreInOrder(__m256i low, __m256i high, uint8_t* to_low,
                                       uint8_t* to_high) {
  Store(to_low, _mm256_permute2x128_si256(low, high, 0x20));
  Store(to_high, _mm256_permute2x128_si256(low, high, 0x31));
}

FASTCKPT_BMI2_INLINE void JoinFloat32(const uint8_t* const* planes, size_t at, uint8_t* raw) {
  const __m256i exponents = Load(planes[0] + at);
  const __m256i rest = Load(planes[1] + at);
  const __m256i top = Bytes(0x80);
  const __m256i b3 = Pick(top, rest, _mm256_srli_epi16(exponents, 1));
  const __m256i b2 = Pick(top, _mm256_slli_epi16(exponents, 7), rest);
  const __m256i b0 = Load(planes[3] + at);
  const __m256i b1 = Load(planes[2] + at);
  const __m256i low01 = _mm256_unpacklo_epi8(b0, b1);
  const __m256i high01 = _mm256_unpackhi_epi8(b0, b1);
  const __m256i low23 = _mm256_unpacklo_epi8(b2, b3);
  const __m256i high23 = _mm256_unpackhi_epi8(b2, b3);
  StoreInOrder(_mm256_unpacklo_epi16(low01, low23), _mm256_unpackhi_epi16(low01, low23), raw,
               raw + 64);
  StoreInOrder(_mm256_unpacklo_epi16(high01, high23), _mm256_unpackhi_epi16(high01, high23),
               raw + 32, raw + 96);
}

FASTCKPT_BMI2 void Join(unsigned kind, const uint8_t* const* planes, size_t n, uint8_t* raw) {
  size_t done = 0;
  if (kind == kPlanesKindFloat32)
    for (; done + 32 <= n; done += 32) JoinFloat32(planes, done, raw + 4 * done);
  WithFields(kind, [=](auto fields) __attribute__((always_inline)) {
    JoinLoop<decltype(fields)>(planes, done, n, raw);
  });
}

// Bit `p` of each of 32 bytes.
FASTCKPT_BMI2_INLINE uint32_t BitsOf(__m256i bytes, unsigned p) {
  // Shifts are of 16 bits: what comes from the neighbour ends below the bit that is looked at.
  const __m128i count = _mm_cvtsi32_si128(static_cast<int>(7 - p));
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_sll_epi16(bytes, count)));
}

// Values behind the last one are zero. A lane has room for reading them; a caller's values may not.
FASTCKPT_BMI2_INLINE __m256i LoadValues(const uint8_t* values, size_t at, size_t n) {
  const size_t rest = n - at;
  if (rest >= 32) return Load(values + at);
  alignas(32) uint8_t some[32] = {};
  std::memcpy(some, values + at, rest);
  return Load(some);
}

FASTCKPT_BMI2_INLINE void StoreDigits(__m256i digits, unsigned width, uint8_t* rows, size_t row,
                                      size_t at, size_t n) {
  const size_t rest = n - at;
  for (unsigned p = 0; p < width; ++p) {
    const uint32_t bits = BitsOf(digits, p);
    std::memcpy(rows + p * row + at / 8, &bits, rest >= 32 ? 4 : RowSize(rest));
  }
}

FASTCKPT_BMI2 size_t Pack(const uint8_t* values, size_t n, unsigned width, uint8_t* rows) {
  const size_t row = RowSize(n);
  for (size_t i = 0; i < n; i += 32)
    StoreDigits(LoadValues(values, i, n), width, rows, row, i, n);
  return row * width;
}

// Byte i gets all bits of bit i.
FASTCKPT_BMI2_INLINE __m256i Spread(uint32_t bits) {
  const __m256i place = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202,
                                          0x0101010101010101, 0);
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), place);
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
}

FASTCKPT_BMI2_INLINE uint32_t LoadBits32(const uint8_t* row, size_t at, size_t n) {
  const size_t rest = n - at;
  if (rest >= 32) return Load32(row + at / 8);
  return static_cast<uint32_t>(LoadSome(row + at / 8, RowSize(rest))) & ((uint32_t{1} << rest) - 1);
}

template <unsigned kWidth>
FASTCKPT_BMI2_INLINE __m256i LoadDigits(const uint8_t* rows, size_t row, size_t at, size_t n,
                                        uint32_t* escapes) {
  uint32_t all = ~uint32_t{0};
  __m256i digits = _mm256_setzero_si256();
  for (unsigned p = 0; p < kWidth; ++p) {
    const uint32_t bits = LoadBits32(rows + p * row, at, n);
    all &= bits;
    digits = _mm256_or_si256(digits, _mm256_and_si256(Spread(bits), Bytes(1U << p)));
  }
  *escapes = all;
  return digits;
}

template <unsigned kWidth>
FASTCKPT_BMI2_INLINE void UnpackWidth(const uint8_t* rows, size_t n, uint8_t base,
                                      uint8_t* values) {
  const size_t row = RowSize(n);
  uint32_t unused;
  for (size_t i = 0; i < n; i += 32)
    Store(values + i, _mm256_add_epi8(LoadDigits<kWidth>(rows, row, i, n, &unused), Bytes(base)));
}

FASTCKPT_BMI2 void Unpack(const uint8_t* rows, size_t n, unsigned width, uint8_t base,
                          uint8_t* values) {
#define FASTCKPT_CALL(w) UnpackWidth<w>(rows, n, base, values)
  FASTCKPT_BY_WIDTH(width, FASTCKPT_CALL)
#undef FASTCKPT_CALL
}

// A table of 32 bytes, and what it has for an index below 32.
struct SmallTable {
  __m256i low;
  __m256i high;
};

FASTCKPT_BMI2_INLINE SmallTable LoadSmallTable(const uint8_t* table) {
  const auto* parts = reinterpret_cast<const __m128i*>(table);
  return {_mm256_broadcastsi128_si256(_mm_loadu_si128(parts)),
          _mm256_broadcastsi128_si256(_mm_loadu_si128(parts + 1))};
}

FASTCKPT_BMI2_INLINE __m256i LookUp(const SmallTable& table, __m256i index) {
  // Bit 4 decides between the halves: moved to bit 7, where a blend looks.
  return _mm256_blendv_epi8(_mm256_shuffle_epi8(table.low, index),
                            _mm256_shuffle_epi8(table.high, index), _mm256_slli_epi16(index, 3));
}

// Bits of the bytes that are above 31.
FASTCKPT_BMI2_INLINE uint32_t Above31(__m256i bytes) {
  return static_cast<uint32_t>(
      _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(bytes, Bytes(32)), bytes)));
}

// Each of the n bytes becomes table[byte]. Most are among the 32 from `start` on.
FASTCKPT_BMI2_INLINE void Translate(uint8_t* bytes, size_t n, const uint8_t* table, uint8_t start) {
  uint8_t window[32];
  for (size_t i = 0; i < 32; ++i) window[i] = table[static_cast<uint8_t>(start + i)];
  const SmallTable near = LoadSmallTable(window);
  const __m256i first = Bytes(start);
  // Into the margin: what is behind the last byte is of no use to anyone.
  for (size_t i = 0; i < n; i += 32) {
    const __m256i place = _mm256_sub_epi8(Load(bytes + i), first);
    uint32_t far = Above31(place);
    alignas(32) uint8_t before[32];
    if (far != 0) std::memcpy(before, bytes + i, 32);
    Store(bytes + i, LookUp(near, place));
    for (; far != 0; far = _blsr_u32(far)) {
      const size_t at = _tzcnt_u32(far);
      bytes[i + at] = table[before[at]];
    }
  }
}

FASTCKPT_BMI2 size_t Nest(uint8_t* values, size_t n, const Nesting& nesting, uint8_t* out) {
  Translate(values, n, nesting.ranks, nesting.window);
  uint8_t* at = out;
  for (size_t level = 0; level < nesting.levels && n != 0; ++level) {
    const unsigned width = nesting.widths[level];
    const size_t row = RowSize(n);
    if (nesting.LastIsClosed(level))
      return static_cast<size_t>(at + Pack(values, n, width, at) - out);
    const __m256i limit = Bytes((1U << width) - 1);
    uint8_t* left = values;
    for (size_t i = 0; i < n; i += 32) {
      const __m256i rank = LoadValues(values, i, n);
      StoreDigits(_mm256_min_epu8(rank, limit), width, at, row, i, n);
      const __m256i escaped = _mm256_cmpeq_epi8(_mm256_max_epu8(rank, limit), rank);
      const __m256i rest = _mm256_sub_epi8(rank, limit);
      const auto keep = [&left](long long four, long long mask)
          __attribute__((target(FASTCKPT_ISA), always_inline)) {
        const uint64_t which = static_cast<uint64_t>(mask);
        const uint64_t kept = _pext_u64(static_cast<uint64_t>(four), which);
        std::memcpy(left, &kept, 8);
        left += static_cast<size_t>(_mm_popcnt_u64(which)) / 8;
      };
      keep(_mm256_extract_epi64(rest, 0), _mm256_extract_epi64(escaped, 0));
      keep(_mm256_extract_epi64(rest, 1), _mm256_extract_epi64(escaped, 1));
      keep(_mm256_extract_epi64(rest, 2), _mm256_extract_epi64(escaped, 2));
      keep(_mm256_extract_epi64(rest, 3), _mm256_extract_epi64(escaped, 3));
    }
    at += row * width;
    n = static_cast<size_t>(left - values);
  }
  std::memcpy(at, values, n);
  return static_cast<size_t>(at + n - out);
}

// Adds to the escaped ones of eight values what the next level has for them.
FASTCKPT_BMI2_INLINE const uint8_t* AddDeeper(uint8_t* eight, uint8_t escaped,
                                              const uint8_t* deeper) {
  const uint64_t mask = _pdep_u64(escaped, kOnes) * 255;
  const uint64_t a = Load64(eight);
  const uint64_t b = _pdep_u64(Load64(deeper), mask);
  // Byte by byte: no carry may reach a neighbour.
  const uint64_t sum = ((a & ~kTops) + (b & ~kTops)) ^ ((a ^ b) & kTops);
  std::memcpy(eight, &sum, 8);
  return deeper + _mm_popcnt_u32(escaped);
}

template <unsigned kWidth>
FASTCKPT_BMI2_INLINE void UnnestLevel(const uint8_t* rows, size_t n, bool closed,
                                      const uint8_t* deeper, uint8_t* to) {
  const size_t row = RowSize(n);
  for (size_t i = 0; i < n; i += 32) {
    uint32_t escapes;
    Store(to + i, LoadDigits<kWidth>(rows, row, i, n, &escapes));
    if (closed) continue;
    for (size_t part = 0; part < 4; ++part)
      deeper = AddDeeper(to + i + 8 * part, static_cast<uint8_t>(escapes >> (8 * part)), deeper);
  }
}

FASTCKPT_BMI2 size_t Unnest(const uint8_t* in, size_t size, size_t n, const Nesting& nesting,
                            Lane* levels, uint8_t* values) {
  LevelPlaces places;
  if (!FindLevels(in, size, n, nesting, &places)) return kDamaged;
  const uint8_t* deeper = places.bytes;
  for (size_t level = places.levels; level-- != 0;) {
    uint8_t* to = level == 0 ? values : levels[level].values;
    const bool closed = nesting.LastIsClosed(level);
    const uint8_t* rows = places.rows[level];
    const size_t count = places.counts[level];
#define FASTCKPT_CALL(w) UnnestLevel<w>(rows, count, closed, deeper, to)
    FASTCKPT_BY_WIDTH(nesting.widths[level], FASTCKPT_CALL)
#undef FASTCKPT_CALL
    deeper = to;
  }
  Translate(values, n, nesting.symbols, 0);
  return places.used;
}

FASTCKPT_BMI2 void Survey(const uint8_t* raw, size_t words, uint64_t* any, uint64_t* all,
                          size_t* zeros) {
  SurveyLoop(raw, words, any, all, zeros);
}

}  // namespace

const Kernels kAvx2Kernels = {Split, Join, Pack, Unpack, Nest, Unnest, Survey};

}  // namespace planes
}  // namespace fastckpt

#endif

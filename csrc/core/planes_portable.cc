// The kernels of the codec `planes` without special instructions: eight values in a 64-bit word.

#include "cpu.h"
#include "planes_kernels.h"

namespace fastckpt {
namespace planes {

namespace {

constexpr uint64_t kOnes = 0x0101010101010101;
constexpr uint64_t kTops = 0x8080808080808080;

// Byte i becomes bit i of `bits`.
inline uint64_t Spread(uint64_t bits) {
  const uint64_t picked = (bits * kOnes) & 0x8040201008040201;
  return ((picked + (kTops - kOnes)) >> 7) & kOnes;
}

// Bit i becomes bit `p` of byte i.
inline uint64_t Gather(uint64_t bytes, unsigned p) {
  return (((bytes >> p) & kOnes) * 0x0102040810204080) >> 56;
}

void Split(unsigned kind, const uint8_t* raw, size_t n, uint8_t* const* planes) {
  WithFields(kind, [=](auto fields) { SplitLoop<decltype(fields)>(raw, 0, n, planes); });
}

void Join(unsigned kind, const uint8_t* const* planes, size_t n, uint8_t* raw) {
  WithFields(kind, [=](auto fields) { JoinLoop<decltype(fields)>(planes, 0, n, raw); });
}

size_t Pack(const uint8_t* values, size_t n, unsigned width, uint8_t* rows) {
  const size_t row = RowSize(n);
  for (size_t i = 0; i < n; i += 8) {
    const uint64_t bytes = LoadSome(values + i, n - i < 8 ? n - i : 8);
    for (unsigned p = 0; p < width; ++p)
      rows[p * row + i / 8] = static_cast<uint8_t>(Gather(bytes, p));
  }
  return row * width;
}

// Eight values at a time; those behind the last one are garbage, in the margin of a lane.
template <typename Finish>
inline void UnpackEights(const uint8_t* rows, size_t n, unsigned width, uint8_t* values,
                         Finish finish) {
  const size_t row = RowSize(n);
  for (size_t i = 0; i < n; i += 8) {
    uint64_t bytes = 0;
    uint8_t escaped = static_cast<uint8_t>(n - i < 8 ? (1U << (n - i)) - 1 : 255U);
    for (unsigned p = 0; p < width; ++p) {
      const uint8_t bits = rows[p * row + i / 8];
      escaped = static_cast<uint8_t>(escaped & bits);
      bytes |= Spread(bits) << p;
    }
    std::memcpy(values + i, &bytes, 8);
    finish(values + i, escaped);
  }
}

void Unpack(const uint8_t* rows, size_t n, unsigned width, uint8_t base, uint8_t* values) {
  UnpackEights(rows, n, width, values, [](uint8_t*, uint8_t) {});
  for (size_t i = 0; base != 0 && i < n; ++i) values[i] = static_cast<uint8_t>(values[i] + base);
}

size_t Nest(uint8_t* values, size_t n, const Nesting& nesting, uint8_t* out) {
  for (size_t i = 0; i < n; ++i) values[i] = nesting.ranks[values[i]];
  uint8_t* at = out;
  for (size_t level = 0; level < nesting.levels && n != 0; ++level) {
    const unsigned width = nesting.widths[level];
    if (nesting.LastIsClosed(level))
      return static_cast<size_t>(at + Pack(values, n, width, at) - out);
    const uint8_t limit = static_cast<uint8_t>((1U << width) - 1);
    Lane digits;
    size_t escapes = 0;
    for (size_t i = 0; i < n; ++i) {
      const uint8_t rank = values[i];
      digits.values[i] = rank < limit ? rank : limit;
      // Written in any case, kept only if it is an escape: no branch to be guessed.
      values[escapes] = static_cast<uint8_t>(rank - limit);
      escapes += rank >= limit ? 1 : 0;
    }
    at += Pack(digits.values, n, width, at);
    n = escapes;
  }
  std::memcpy(at, values, n);
  return static_cast<size_t>(at + n - out);
}

size_t Unnest(const uint8_t* in, size_t size, size_t n, const Nesting& nesting, Lane* levels,
              uint8_t* values) {
  LevelPlaces places;
  if (!FindLevels(in, size, n, nesting, &places)) return kDamaged;
  const uint8_t* deeper = places.bytes;
  for (size_t level = places.levels; level-- != 0;) {
    uint8_t* to = level == 0 ? values : levels[level].values;
    const bool closed = nesting.LastIsClosed(level);
    const uint8_t* next = deeper;
    UnpackEights(places.rows[level], places.counts[level], nesting.widths[level], to,
                 [&next, closed](uint8_t* eight, uint8_t escaped) {
                   if (closed) return;
                   for (; escaped != 0; escaped = static_cast<uint8_t>(escaped & (escaped - 1))) {
                     uint8_t& value = eight[__builtin_ctz(escaped)];
                     value = static_cast<uint8_t>(value + *next++);
                   }
                 });
    deeper = to;
  }
  for (size_t i = 0; i < n; ++i) values[i] = nesting.symbols[values[i]];
  return places.used;
}

void Survey(const uint8_t* raw, size_t words, uint64_t* any, uint64_t* all, size_t* zeros) {
  SurveyLoop(raw, words, any, all, zeros);
}

}  // namespace

const Kernels kPortableKernels = {Split, Join, Pack, Unpack, Nest, Unnest, Survey};

Kernels CurrentKernels() {
#if defined(__x86_64__)
  switch (CurrentSimdLevel()) {
    case SimdLevel::kAvx512:
      if (HasVbmi2()) return kAvx512Kernels;
      [[fallthrough]];
    case SimdLevel::kAvx2:
      if (HasBmi2()) return kAvx2Kernels;
      break;
    default:
      break;
  }
#endif
  return kPortableKernels;
}

}  // namespace planes
}  // namespace fastckpt

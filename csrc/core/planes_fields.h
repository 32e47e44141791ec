// How an element is divided into planes: the table of kinds in SPEC.md, section 10.4, as code.
// Internal to planes*.cc.

#ifndef FASTCKPT_CORE_PLANES_FIELDS_H_
#define FASTCKPT_CORE_PLANES_FIELDS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "constants.h"
#include "planes.h"

#define FASTCKPT_INLINE __attribute__((always_inline)) inline

namespace fastckpt {
namespace planes {

inline constexpr size_t kMaxPlanes = 8;

// Plane `p` of an element and back. Join() takes what lies above a field's bits for absent.
template <typename Number, size_t kPlanes>
struct WholeBytes {
  using Word = Number;
  static constexpr size_t kCount = kPlanes;
  static constexpr unsigned Bits(size_t) { return 8; }
  static FASTCKPT_INLINE uint8_t Field(Word word, size_t p) {
    return static_cast<uint8_t>(word >> (8 * (kPlanes - 1 - p)));
  }
  static FASTCKPT_INLINE Word Part(uint8_t value, size_t p) {
    return static_cast<Word>(static_cast<Word>(value) << (8 * (kPlanes - 1 - p)));
  }
};

// `kExponent` bits of exponent from bit `kLow` on are plane 0; sign and what is left of the
// mantissa's upper bits are plane 1; whole bytes follow.
template <typename Number, unsigned kExponent, unsigned kMantissa>
struct Float {
  using Word = Number;
  static constexpr unsigned kWholeBytes = kMantissa / 8;  // planes 2 and on
  static constexpr unsigned kUpper = kMantissa % 8;       // mantissa bits in plane 1
  static constexpr unsigned kSign = kExponent + kMantissa;
  static constexpr size_t kCount = 2 + kWholeBytes;
  static constexpr unsigned Bits(size_t p) { return p == 0 ? kExponent : p == 1 ? kUpper + 1 : 8; }
  static FASTCKPT_INLINE uint8_t Field(Word word, size_t p) {
    if (p == 0) return static_cast<uint8_t>((word >> kMantissa) & ((1U << kExponent) - 1));
    if (p == 1)
      return static_cast<uint8_t>(((word >> (8 * kWholeBytes)) & ((1U << kUpper) - 1)) |
                                  ((word >> kSign) << kUpper));
    return static_cast<uint8_t>(word >> (8 * (kCount - 1 - p)));
  }
  static FASTCKPT_INLINE Word Part(uint8_t value, size_t p) {
    const Word word = value;
    if (p == 0) return static_cast<Word>((word & ((1U << kExponent) - 1)) << kMantissa);
    if (p == 1)
      return static_cast<Word>(((word & ((1U << kUpper) - 1)) << (8 * kWholeBytes)) |
                               (((word >> kUpper) & 1U) << kSign));
    return static_cast<Word>(word << (8 * (kCount - 1 - p)));
  }
};

// Of the eleven bits of exponent the lower eight are plane 0: they are those that vary.
struct Float64 {
  using Word = uint64_t;
  static constexpr size_t kCount = 8;
  static constexpr unsigned Bits(size_t) { return 8; }
  static FASTCKPT_INLINE uint8_t Field(Word word, size_t p) {
    if (p == 0) return static_cast<uint8_t>(word >> 52);
    if (p == 1) return static_cast<uint8_t>(((word >> 60) << 4) | ((word >> 48) & 15));
    return static_cast<uint8_t>(word >> (8 * (7 - p)));
  }
  static FASTCKPT_INLINE Word Part(uint8_t value, size_t p) {
    const Word word = value;
    if (p == 0) return word << 52;
    if (p == 1) return ((word >> 4) << 60) | ((word & 15) << 48);
    return word << (8 * (7 - p));
  }
};

struct Nibbles {
  using Word = uint8_t;
  static constexpr size_t kCount = 2;
  static constexpr unsigned Bits(size_t) { return 4; }
  static FASTCKPT_INLINE uint8_t Field(Word word, size_t p) {
    return p == 0 ? static_cast<uint8_t>(word >> 4) : static_cast<uint8_t>(word & 15);
  }
  static FASTCKPT_INLINE Word Part(uint8_t value, size_t p) {
    return p == 0 ? static_cast<Word>(value << 4) : static_cast<Word>(value & 15);
  }
};

// Calls `visit` with the fields of a kind, which must be below kPlanesKinds.
template <typename Visit>
FASTCKPT_INLINE auto WithFields(unsigned kind, Visit visit) {
  switch (kind) {
    case kPlanesKindWords:
      return visit(WholeBytes<uint16_t, 2>());
    case kPlanesKindDoubleWords:
      return visit(WholeBytes<uint32_t, 4>());
    case kPlanesKindQuadWords:
      return visit(WholeBytes<uint64_t, 8>());
    case kPlanesKindFloat16:
      return visit(Float<uint16_t, 5, 10>());
    case kPlanesKindBfloat16:
      return visit(Float<uint16_t, 8, 7>());
    case kPlanesKindFloat32:
      return visit(Float<uint32_t, 8, 23>());
    case kPlanesKindFloat64:
      return visit(Float64());
    case kPlanesKindFloat8E4:
      return visit(Float<uint8_t, 4, 3>());
    case kPlanesKindFloat8E5:
      return visit(Float<uint8_t, 5, 2>());
    case kPlanesKindNibbles:
      return visit(Nibbles());
    default:
      return visit(WholeBytes<uint8_t, 1>());
  }
}

inline size_t WordSize(unsigned kind) {
  return WithFields(kind, [](auto f) { return sizeof(typename decltype(f)::Word); });
}
inline size_t PlaneCount(unsigned kind) {
  return WithFields(kind, [](auto f) -> size_t { return decltype(f)::kCount; });
}
inline unsigned PlaneBits(unsigned kind, size_t plane) {
  return WithFields(kind, [plane](auto f) { return decltype(f)::Bits(plane); });
}

// Elements [from, to) into planes, and back. The loops are for the compiler to vectorise with the
// instruction set of the function that they are inlined into: one plane after the other, so that
// each loop is a plain narrowing of words.
template <typename Fields>
FASTCKPT_INLINE void SplitLoop(const uint8_t* raw, size_t from, size_t to, uint8_t* const* planes) {
  using Word = typename Fields::Word;
  for (size_t p = 0; p < Fields::kCount; ++p) {
    uint8_t* __restrict plane = planes[p];
    for (size_t i = from; i < to; ++i) {
      Word word;
      std::memcpy(&word, raw + i * sizeof(Word), sizeof(Word));
      plane[i] = Fields::Field(word, p);
    }
  }
}

template <typename Fields>
FASTCKPT_INLINE void JoinLoop(const uint8_t* const* planes, size_t from, size_t to, uint8_t* raw) {
  using Word = typename Fields::Word;
  const uint8_t* local[Fields::kCount];
  for (size_t p = 0; p < Fields::kCount; ++p) local[p] = planes[p];
  uint8_t* __restrict out = raw;
  for (size_t i = from; i < to; ++i) {
    Word word = 0;
    for (size_t p = 0; p < Fields::kCount; ++p)
      word = static_cast<Word>(word | Fields::Part(local[p][i], p));
    std::memcpy(out + i * sizeof(Word), &word, sizeof(Word));
  }
}

}  // namespace planes
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_FIELDS_H_

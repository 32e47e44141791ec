// What the kernels of the codec `planes` for the several instruction sets share. Internal to
// planes*.cc. All of them work on one tile, at most kPlanesTile elements, and give the same bytes.

#ifndef FASTCKPT_CORE_PLANES_KERNELS_H_
#define FASTCKPT_CORE_PLANES_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bytes.h"
#include "constants.h"
#include "planes_fields.h"

namespace fastckpt {
namespace planes {

// Bytes that a kernel may read or write behind values in a Lane, and read behind stored bytes.
inline constexpr size_t kMargin = 64;

// The values of one plane in one tile.
struct alignas(64) Lane {
  uint8_t values[kPlanesTile + kMargin];
};

// A nested plane: widths of its levels and the order of its symbols.
struct Nesting {
  size_t levels = 0;
  uint8_t widths[kPlanesMaxLevels] = {};
  bool closed = false;  // no digit of the last level is an escape
  alignas(64) uint8_t symbols[256];  // by rank
  alignas(64) uint8_t ranks[256];    // by symbol
  size_t covered = 0;                // ranks below it need no byte behind the last level
  uint8_t window = 0;                // most values are among the 32, or 64, from this one on

  bool LastIsClosed(size_t level) const { return closed && level + 1 == levels; }
};

struct Kernels {
  void (*split)(unsigned kind, const uint8_t* raw, size_t n, uint8_t* const* planes);
  void (*join)(unsigned kind, const uint8_t* const* planes, size_t n, uint8_t* raw);
  // n values of `width` bits, 1 to 7, to and from rows of bits; returns the bytes of the rows.
  size_t (*pack)(const uint8_t* values, size_t n, unsigned width, uint8_t* rows);
  void (*unpack)(const uint8_t* rows, size_t n, unsigned width, uint8_t base, uint8_t* values);
  // `values` is overwritten. Returns the bytes written.
  size_t (*nest)(uint8_t* values, size_t n, const Nesting& nesting, uint8_t* out);
  // Returns the bytes used, or kDamaged if the `size` bytes at `in` do not suffice; kMargin bytes
  // behind them can be read. `levels` is room to work in.
  size_t (*unnest)(const uint8_t* in, size_t size, size_t n, const Nesting& nesting, Lane* levels,
                   uint8_t* values);
  // Bitwise or and and of all words, and how many of the words are zero.
  void (*survey)(const uint8_t* raw, size_t words, uint64_t* any, uint64_t* all, size_t* zeros);
};

inline constexpr size_t kDamaged = SIZE_MAX;

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// Those of the current SIMD level.
Kernels CurrentKernels();

// Bytes of one row of n bits.
constexpr size_t RowSize(size_t n) { return (n + 7) / 8; }

// The first `count` bytes, at most 8, as a number.
FASTCKPT_INLINE uint64_t LoadSome(const uint8_t* from, size_t count) {
  uint64_t value = 0;
  std::memcpy(&value, from, count);
  return value;
}

// Bits [at, at + 64) of a row of n bits; those behind its end are zero.
FASTCKPT_INLINE uint64_t LoadBits(const uint8_t* row, size_t at, size_t n) {
  const size_t rest = n - at;
  if (rest >= 64) return Load64(row + at / 8);
  return LoadSome(row + at / 8, RowSize(rest)) & ((uint64_t{1} << rest) - 1);
}

FASTCKPT_INLINE void StoreBits(uint8_t* row, size_t at, size_t n, uint64_t bits) {
  const size_t rest = n - at;
  std::memcpy(row + at / 8, &bits, rest >= 64 ? 8 : RowSize(rest));
}

// Where each level of a nested plane lies, found by counting the escapes of the one before.
struct LevelPlaces {
  const uint8_t* rows[kPlanesMaxLevels];
  size_t counts[kPlanesMaxLevels + 1];
  size_t levels = 0;  // that have a value
  size_t used = 0;    // bytes of all of them and of the bytes behind them
  const uint8_t* bytes = nullptr;
};

// False: too few bytes.
FASTCKPT_INLINE bool FindLevels(const uint8_t* in, size_t size, size_t n, const Nesting& nesting,
                                LevelPlaces* places) {
  size_t at = 0;
  size_t count = n;
  size_t level = 0;
  for (; level < nesting.levels && count != 0; ++level) {
    const size_t row = RowSize(count);
    const unsigned width = nesting.widths[level];
    if (size - at < row * width) return false;
    const uint8_t* rows = in + at;
    places->rows[level] = rows;
    places->counts[level] = count;
    at += row * width;
    size_t escapes = 0;
    if (!nesting.LastIsClosed(level)) {
      for (size_t i = 0; i < count; i += 64) {
        uint64_t bits = ~uint64_t{0};
        for (unsigned p = 0; p < width; ++p) bits &= LoadBits(rows + p * row, i, count);
        escapes += static_cast<size_t>(__builtin_popcountll(bits));
      }
    }
    count = escapes;
  }
  places->levels = level;
  places->bytes = in + at;
  places->counts[level] = count;
  if (size - at < count) return false;
  places->used = at + count;
  return true;
}

// Calls `call` with the width as a constant, so that its loops over bits are unrolled.
#define FASTCKPT_BY_WIDTH(width, call) \
  switch (width) {                     \
    case 1: call(1); break;            \
    case 2: call(2); break;            \
    case 3: call(3); break;            \
    case 4: call(4); break;            \
    case 5: call(5); break;            \
    case 6: call(6); break;            \
    default: call(7); break;           \
  }

// For the compiler to vectorise with the instruction set of the function it is inlined into.
FASTCKPT_INLINE void SurveyLoop(const uint8_t* raw, size_t words, uint64_t* any, uint64_t* all,
                                size_t* zeros) {
  uint64_t some = 0;
  uint64_t every = ~uint64_t{0};
  uint64_t empty = 0;
  for (size_t i = 0; i < words; ++i) {
    const uint64_t word = Load64(raw + 8 * i);
    some |= word;
    every &= word;
    empty += word == 0 ? 1 : 0;
  }
  *any = some;
  *all = every;
  *zeros = static_cast<size_t>(empty);
}

}  // namespace planes
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_KERNELS_H_

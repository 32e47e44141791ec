// Tiles: groups of zeros that are left out, and the shifts of rows and columns. Internal to
// planes*.cc.

#ifndef FASTCKPT_CORE_PLANES_TILE_H_
#define FASTCKPT_CORE_PLANES_TILE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bytes.h"
#include "constants.h"

namespace fastckpt {
namespace planes {

constexpr size_t AlignEight(size_t size) { return (size + 7) & ~size_t{7}; }

constexpr size_t GroupCount(size_t n) { return (n + kPlanesGroup - 1) / kPlanesGroup; }

// Bytes of the mask of a tile of n elements: a bit for each group, in words of 64 bits.
constexpr size_t MaskSize(size_t n) { return (GroupCount(n) + 63) / 64 * 8; }

// Which groups of a tile are stored.
struct Mask {
  uint8_t bits[MaskSize(kPlanesTile)];

  bool Has(size_t group) const { return ((bits[group / 8] >> (group % 8)) & 1) != 0; }
  // Of n elements, those in groups that are stored.
  size_t Stored(size_t n) const {
    size_t stored = 0;
    for (size_t group = 0; group < GroupCount(n); ++group)
      if (Has(group)) stored += std::min(kPlanesGroup, n - group * kPlanesGroup);
    return stored;
  }
};

// Moves the stored values of a lane of n together, and apart again, with zeros between them.
inline void Compact(const Mask& mask, size_t n, uint8_t* values) {
  uint8_t* to = values;
  for (size_t group = 0; group < GroupCount(n); ++group) {
    if (!mask.Has(group)) continue;
    std::memmove(to, values + group * kPlanesGroup, kPlanesGroup);
    to += kPlanesGroup;
  }
}

inline void Scatter(const Mask& mask, size_t n, const uint8_t* stored, uint8_t* values) {
  for (size_t group = 0; group < GroupCount(n); ++group) {
    const uint64_t eight = mask.Has(group) ? Load64(stored) : 0;
    std::memcpy(values + group * kPlanesGroup, &eight, kPlanesGroup);
    if (mask.Has(group)) stored += kPlanesGroup;
  }
}

// The shifts of a chunk's rows and columns; none if row_length is 0.
struct Shifts {
  uint32_t row_length = 0;
  uint32_t phase = 0;
  uint32_t row_count = 0;
  const uint8_t* rows = nullptr;
  const uint8_t* columns = nullptr;

  explicit operator bool() const { return row_length != 0; }
  bool Covers(size_t elements) const {
    return (uint64_t{phase} + elements - 1) / row_length < row_count;
  }
};

// Adds to the values of elements [first, first + n) of the chunk their shifts, or takes them off.
template <bool kAdd>
inline void ApplyShifts(const Shifts& shifts, size_t first, size_t n, uint8_t* values) {
  const uint64_t at = uint64_t{shifts.phase} + first;
  size_t row = static_cast<size_t>(at / shifts.row_length);
  size_t column = static_cast<size_t>(at % shifts.row_length);
  for (size_t done = 0; done < n; ++row, column = 0) {
    const size_t run = std::min<size_t>(shifts.row_length - column, n - done);
    const uint8_t by = shifts.rows[row];
    const uint8_t* __restrict columns = shifts.columns + column;
    uint8_t* __restrict to = values + done;
    for (size_t i = 0; i < run; ++i)
      to[i] = static_cast<uint8_t>(kAdd ? to[i] + (columns[i] + by) : to[i] - (columns[i] + by));
    done += run;
  }
}

}  // namespace planes
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_TILE_H_

// The codec `planes`: the fields of numbers, each stored by itself. SPEC.md, section 10.4, states
// the bytes; here one chunk is encoded or decoded, in one thread, at the current SIMD level.
//
// All levels give the same bytes, and the same error for bytes that do not decode.

#ifndef FASTCKPT_CORE_PLANES_H_
#define FASTCKPT_CORE_PLANES_H_

#include <cstddef>
#include <cstdint>

#include "constants.h"
#include "status.h"

namespace fastckpt {

// The raw bytes of one chunk, and what is known of them. What is wrong in that makes the result
// larger, never wrong.
struct PlanesChunk {
  const uint8_t* raw = nullptr;
  size_t size = 0;                 // at most kChunkSize
  const uint8_t* kinds = nullptr;  // PlanesBlockCount(size) kinds below kPlanesKinds
  uint32_t row_length = 0;         // elements in a row of the matrix, or 0
  uint32_t phase = 0;              // place of the first element in its row
};

inline constexpr size_t kPlanesKinds = kPlanesKindNibbles + 1;

// Blocks of 2^kPlanesBlockLog2 bytes, the last one shorter.
constexpr size_t PlanesBlockCount(size_t size) {
  return (size + (size_t{1} << kPlanesBlockLog2) - 1) >> kPlanesBlockLog2;
}

// Room that EncodePlanes() needs at `out`: it looks at how much it has written between tiles only.
inline constexpr size_t kPlanesSlack = 256 * 1024;
constexpr size_t PlanesRoom(size_t size) { return size + kPlanesSlack; }

// Writes the stored bytes to `out` and their number to `stored`: 0 if they would not be fewer than
// the raw ones. Fails for want of memory, and for arguments that are no chunk.
Status EncodePlanes(const PlanesChunk& chunk, uint8_t* out, size_t* stored);

// Writes exactly `size` raw bytes. On failure they are undefined, but nothing else was touched.
Status DecodePlanes(const uint8_t* stored, size_t stored_size, uint8_t* raw, size_t size);

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_H_

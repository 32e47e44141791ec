// Small arithmetic on bytes, offsets and sizes, with overflow as a value.

#ifndef FASTCKPT_CORE_BYTES_H_
#define FASTCKPT_CORE_BYTES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "constants.h"

// Digests are stored little-endian and hashing reads little-endian words. Every platform torch
// ships for is little-endian; refusing others here is better than wrong digests there.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "fastckpt needs a little-endian machine");

namespace fastckpt {

inline uint64_t Load64(const void* from) {
  uint64_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline uint32_t Load32(const void* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// `unit` must be a power of two.
constexpr uint64_t AlignDown(uint64_t value, uint64_t unit) { return value & ~(unit - 1); }
constexpr bool IsAligned(uint64_t value, uint64_t unit) { return (value & (unit - 1)) == 0; }

// False when the rounded value does not fit 64 bits.
constexpr bool AlignUp(uint64_t value, uint64_t unit, uint64_t* out) {
  if (value > UINT64_MAX - (unit - 1)) return false;
  *out = AlignDown(value + (unit - 1), unit);
  return true;
}

constexpr bool AddOverflows(uint64_t a, uint64_t b) { return a > UINT64_MAX - b; }

// Number of leaves that cover `size` bytes. Cannot overflow.
constexpr uint64_t LeafCount(uint64_t size) {
  return size / kLeafSize + (size % kLeafSize != 0 ? 1 : 0);
}

inline uint8_t* ToPointer(uint64_t address) {
  return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(address));
}

inline uint64_t AddressOf(const void* pointer) {
  return static_cast<uint64_t>(reinterpret_cast<uintptr_t>(pointer));
}

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_BYTES_H_

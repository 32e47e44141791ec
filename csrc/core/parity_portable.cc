// The parity kernels on 64-bit words: eight bytes at a time. Compilers make vectors of these loops
// where the baseline has some.

#include <cstring>

#include "bytes.h"
#include "constants.h"
#include "parity_kernels.h"

namespace fastckpt {
namespace gf256 {

namespace {

inline uint64_t Twice(uint64_t value) {
  const uint64_t high = (value >> 7) & 0x0101010101010101;  // a 1 in each byte that overflows
  const uint64_t masks = (high << 8) - high;                // and from it, 0xFF
  return ((value << 1) & 0xFEFEFEFEFEFEFEFE) ^ (masks & 0x1D1D1D1D1D1D1D1D);
}

template <size_t kRows>
void Fold(const uint8_t* const* sources, uint8_t* const* rows) {
  for (size_t at = 0; at < kLeafSize; at += sizeof(uint64_t)) {
    uint64_t row[kRows];
    for (size_t j = 0; j < kRows; ++j) row[j] = Load64(rows[j] + at);
    for (size_t i = 0; i < kFold; ++i) {
      const uint64_t value = Load64(sources[i] + at);
      row[0] ^= value;
      if constexpr (kRows > 1) row[1] = Twice(row[1]) ^ value;
      if constexpr (kRows > 2) row[2] = Twice(Twice(row[2])) ^ value;
    }
    for (size_t j = 0; j < kRows; ++j) std::memcpy(rows[j] + at, &row[j], sizeof row[j]);
  }
}

}  // namespace

void FoldPortable(const uint8_t* const* sources, uint8_t* const* rows, size_t count) {
  if (count == 1) return Fold<1>(sources, rows);
  if (count == 2) return Fold<2>(sources, rows);
  Fold<3>(sources, rows);
}

void AddMultiplePortable(const Multiples& multiples, const uint8_t* from, size_t size,
                         uint8_t* to) {
  size_t at = 0;
  for (; at + sizeof(uint64_t) <= size; at += sizeof(uint64_t)) {
    const uint64_t value = Load64(from + at);
    uint64_t sum = Load64(to + at);
    for (int bit = 0; bit < 8; ++bit)  // No byte of a product overflows: it is 0 or the multiple.
      sum ^= ((value >> bit) & 0x0101010101010101) * multiples.of_bit[bit];
    std::memcpy(to + at, &sum, sizeof sum);
  }
  for (; at < size; ++at)
    for (int bit = 0; bit < 8; ++bit)
      if ((from[at] >> bit & 1) != 0) to[at] ^= multiples.of_bit[bit];
}

}  // namespace gf256
}  // namespace fastckpt

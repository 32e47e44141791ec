// The parity kernel on NEON.

#include "constants.h"
#include "parity_kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

namespace fastckpt {
namespace gf256 {

namespace {

inline uint8x16_t Twice(uint8x16_t value) {
  const uint8x16_t overflows = vcltzq_s8(vreinterpretq_s8_u8(value));
  return veorq_u8(vaddq_u8(value, value), vandq_u8(overflows, vdupq_n_u8(0x1D)));
}

template <size_t kRows>
void Fold(const uint8_t* const* sources, uint8_t* const* rows) {
  for (size_t at = 0; at < kLeafSize; at += sizeof(uint8x16_t)) {
    uint8x16_t row[kRows];
    for (size_t j = 0; j < kRows; ++j) row[j] = vld1q_u8(rows[j] + at);
#pragma GCC unroll 8
    for (size_t i = 0; i < kFold; ++i) {
      const uint8x16_t value = vld1q_u8(sources[i] + at);
      row[0] = veorq_u8(row[0], value);
      if constexpr (kRows > 1) row[1] = veorq_u8(Twice(row[1]), value);
      if constexpr (kRows > 2) row[2] = veorq_u8(Twice(Twice(row[2])), value);
    }
    for (size_t j = 0; j < kRows; ++j) vst1q_u8(rows[j] + at, row[j]);
  }
}

}  // namespace

void FoldNeon(const uint8_t* const* sources, uint8_t* const* rows, size_t count) {
  if (count == 1) return Fold<1>(sources, rows);
  if (count == 2) return Fold<2>(sources, rows);
  Fold<3>(sources, rows);
}

}  // namespace gf256
}  // namespace fastckpt

#endif  // __aarch64__

// CRC-32 by folding, as in crc32_pclmul.cc, with the carry-less multiplication of 64-bit ARM.

#include "crc32_kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

namespace fastckpt {
namespace crc {

namespace {

#define FASTCKPT_PMULL __attribute__((target("+crypto"), always_inline)) inline

FASTCKPT_PMULL uint64x2_t Load(const uint8_t* from) { return vreinterpretq_u64_u8(vld1q_u8(from)); }

template <uint64_t kDistance>
FASTCKPT_PMULL uint64x2_t Fold(uint64x2_t value, uint64x2_t next) {
  const uint64x2_t powers = {FoldLow(kDistance), FoldHigh(kDistance)};
  const poly64x2_t a = vreinterpretq_p64_u64(value);
  const poly64x2_t b = vreinterpretq_p64_u64(powers);
  const poly128_t low = vmull_p64(vgetq_lane_p64(a, 0), vgetq_lane_p64(b, 0));
  const poly128_t high = vmull_high_p64(a, b);
  return veorq_u64(veorq_u64(vreinterpretq_u64_p128(low), vreinterpretq_u64_p128(high)), next);
}

}  // namespace

__attribute__((target("+crypto"))) uint32_t UpdatePmull(uint32_t state, const uint8_t* data,
                                                        size_t size) {
  if (size < 64) return UpdatePortable(state, data, size);
  const uint64x2_t start = {state, 0};
  uint64x2_t a = veorq_u64(Load(data), start);
  uint64x2_t b = Load(data + 16);
  uint64x2_t c = Load(data + 32);
  uint64x2_t d = Load(data + 48);
  data += 64;
  size -= 64;
  for (; size >= 64; data += 64, size -= 64) {
    a = Fold<512>(a, Load(data));
    b = Fold<512>(b, Load(data + 16));
    c = Fold<512>(c, Load(data + 32));
    d = Fold<512>(d, Load(data + 48));
  }
  d = Fold<128>(Fold<128>(Fold<128>(a, b), c), d);
  for (; size >= 16; data += 16, size -= 16) d = Fold<128>(d, Load(data));
  uint8_t bytes[16];
  vst1q_u8(bytes, vreinterpretq_u8_u64(d));
  return UpdatePortable(UpdatePortable(0, bytes, sizeof bytes), data, size);
}

}  // namespace crc
}  // namespace fastckpt

#endif  // __aarch64__

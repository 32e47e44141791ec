#include "crc32.h"

#include "cpu.h"
#include "crc32_kernels.h"

namespace fastckpt {

uint32_t Crc32(uint32_t crc, const uint8_t* data, size_t size) {
  const uint32_t state = ~crc;
  [[maybe_unused]] const SimdLevel level = CurrentSimdLevel();
#if defined(__x86_64__)
  if (level >= SimdLevel::kAvx512 && HasVpclmul512())
    return ~crc::UpdateVpclmul512(state, data, size);
  if (level >= SimdLevel::kAvx2 && HasPclmul()) return ~crc::UpdatePclmul(state, data, size);
#elif defined(__aarch64__)
  if (level == SimdLevel::kNeon && HasPmull()) return ~crc::UpdatePmull(state, data, size);
#endif
  return ~crc::UpdatePortable(state, data, size);
}

uint32_t Crc32Combine(uint32_t crc_a, uint32_t crc_b, uint64_t size_b) {
  // B's bytes move A's remainder up by 8 * size_b powers of x. The powers of x repeat after
  // 2^32 - 1 (the field without zero), and so taking the size modulo that keeps 8 * size in range.
  constexpr uint64_t kOrder = 0xFFFFFFFF;
  return crc::Multiply(crc::PowerOfX(8 * (size_b % kOrder)), crc_a) ^ crc_b;
}

}  // namespace fastckpt

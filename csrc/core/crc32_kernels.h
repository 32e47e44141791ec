// What the CRC-32 kernels share: arithmetic on polynomials modulo P. Internal to crc32*.cc.
//
// P is the CRC-32 polynomial. A remainder is kept reflected: bit 31 is the coefficient of x^0, bit
// 0 that of x^31. Every constant the kernels use is derived here from P at compile time.

#ifndef FASTCKPT_CORE_CRC32_KERNELS_H_
#define FASTCKPT_CORE_CRC32_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {
namespace crc {

inline constexpr uint32_t kPolynomial = 0xEDB88320;  // 0x04C11DB7 with its bits reversed
inline constexpr uint32_t kOne = 0x80000000;         // x^0

// a * b mod P, by the schoolbook: b times x per step, added where a has that power.
constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t power = kOne; power != 0; power >>= 1) {
    if ((a & power) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// x^n mod P, by repeated squaring.
constexpr uint32_t PowerOfX(uint64_t n) {
  uint32_t result = kOne;
  for (uint32_t square = kOne >> 1; n != 0; n >>= 1) {
    if ((n & 1) != 0) result = Multiply(result, square);
    square = Multiply(square, square);
  }
  return result;
}

// Folding replaces 128 bits of message by an equivalent value `distance` bits further on: each
// 64-bit half is multiplied by a power of x. A carry-less product of reflected operands comes out
// one bit short, which the shift by one makes up for; the +-32 are the halves' places relative to
// the 32 bits of a remainder. Low half: the earlier bytes, hence the higher power.
constexpr uint64_t FoldLow(uint64_t distance) {
  return static_cast<uint64_t>(PowerOfX(distance + 32)) << 1;
}
constexpr uint64_t FoldHigh(uint64_t distance) {
  return static_cast<uint64_t>(PowerOfX(distance - 32)) << 1;
}

// The kernels work on the bare register: no inversion before or after.
uint32_t UpdatePortable(uint32_t state, const uint8_t* data, size_t size);
#if defined(__x86_64__)
uint32_t UpdatePclmul(uint32_t state, const uint8_t* data, size_t size);
uint32_t UpdateVpclmul512(uint32_t state, const uint8_t* data, size_t size);
#elif defined(__aarch64__)
uint32_t UpdatePmull(uint32_t state, const uint8_t* data, size_t size);
#endif

}  // namespace crc
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_CRC32_KERNELS_H_

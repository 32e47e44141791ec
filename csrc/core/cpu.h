// Which instruction sets this machine has, and which of them the kernels use.

#ifndef FASTCKPT_CORE_CPU_H_
#define FASTCKPT_CORE_CPU_H_

namespace fastckpt {

// In rising order of speed, where one machine has several; the best one that it supports is used
// unless told otherwise. NEON is that of 64-bit ARM, the others but the portable one are x86-64's.
enum class SimdLevel { kPortable, kNeon, kSse2, kAvx2, kAvx512 };
inline constexpr SimdLevel kSimdLevels[] = {SimdLevel::kPortable, SimdLevel::kNeon,
                                            SimdLevel::kSse2, SimdLevel::kAvx2, SimdLevel::kAvx512};

const char* SimdLevelName(SimdLevel level);
bool SimdLevelSupported(SimdLevel level);

SimdLevel CurrentSimdLevel();
// The level must be supported. For tests and benchmarks: all levels give the same results.
void SetSimdLevel(SimdLevel level);

// Carry-less multiplication, for CRC-32. These come apart from the vector levels, so they are asked
// for one by one: the 128-bit form, and the form on 512-bit registers; and that of 64-bit ARM.
bool HasPclmul();
bool HasVpclmul512();
bool HasPmull();
// Bytes moved by a mask, for the codec planes: inside 64-bit words, and inside 512-bit registers.
bool HasBmi2();
bool HasVbmi2();
// Instructions on the bytes of 512-bit registers, for parity; the first CPUs with AVX-512 lack them.
bool HasAvx512Bw();

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_CPU_H_

// Which instruction sets this machine has, and which of them the kernels use.

#ifndef FASTCKPT_CORE_CPU_H_
#define FASTCKPT_CORE_CPU_H_

namespace fastckpt {

// In rising order of speed; the best one that the machine supports is used unless told otherwise.
enum class SimdLevel { kPortable, kSse2, kAvx2, kAvx512 };
inline constexpr SimdLevel kSimdLevels[] = {SimdLevel::kPortable, SimdLevel::kSse2,
                                            SimdLevel::kAvx2, SimdLevel::kAvx512};

const char* SimdLevelName(SimdLevel level);
bool SimdLevelSupported(SimdLevel level);

SimdLevel CurrentSimdLevel();
// The level must be supported. For tests and benchmarks: all levels give the same results.
void SetSimdLevel(SimdLevel level);

// Carry-less multiplication, for CRC-32. These come apart from the vector levels, so they are asked
// for one by one: the 128-bit form, and the form on 512-bit registers.
bool HasPclmul();
bool HasVpclmul512();
// Bytes moved by a mask, for the codec planes: inside 64-bit words, and inside 512-bit registers.
bool HasBmi2();
bool HasVbmi2();
// Instructions on the bytes of 512-bit registers, for parity; the first CPUs with AVX-512 lack them.
bool HasAvx512Bw();

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_CPU_H_

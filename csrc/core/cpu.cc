#include "cpu.h"

#include <atomic>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fastckpt {

namespace {

// The compiler's own check also asks the operating system whether it saves the wide registers.
#if defined(__x86_64__)
bool DetectAvx2() { return __builtin_cpu_supports("avx2") != 0; }
bool DetectAvx512() { return __builtin_cpu_supports("avx512f") != 0; }
bool DetectAvx512Bw() { return DetectAvx512() && __builtin_cpu_supports("avx512bw") != 0; }
bool DetectPclmul() {
  return __builtin_cpu_supports("pclmul") != 0 && __builtin_cpu_supports("sse4.1") != 0;
}
bool DetectVpclmul512() {
  return DetectAvx512() && DetectPclmul() && __builtin_cpu_supports("vpclmulqdq") != 0;
}
bool DetectBmi2() { return DetectAvx2() && __builtin_cpu_supports("bmi2") != 0; }
bool DetectVbmi2() {
  return DetectAvx512() && DetectBmi2() && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512vbmi") != 0 &&
         __builtin_cpu_supports("avx512vbmi2") != 0 && __builtin_cpu_supports("popcnt") != 0;
}
#else
bool DetectAvx2() { return false; }
bool DetectAvx512() { return false; }
bool DetectAvx512Bw() { return false; }
bool DetectPclmul() { return false; }
bool DetectVpclmul512() { return false; }
bool DetectBmi2() { return false; }
bool DetectVbmi2() { return false; }
#endif

#if defined(__aarch64__) && defined(__ARM_FEATURE_AES)
bool DetectPmull() { return true; }  // part of the baseline, as on every Mac
#elif defined(__aarch64__) && defined(__linux__)
bool DetectPmull() { return (getauxval(AT_HWCAP) & HWCAP_PMULL) != 0; }
#else
bool DetectPmull() { return false; }
#endif

// What belongs to the baseline of the architecture.
#if defined(__x86_64__)
constexpr SimdLevel kBaseline = SimdLevel::kSse2;
#elif defined(__aarch64__)
constexpr SimdLevel kBaseline = SimdLevel::kNeon;
#else
constexpr SimdLevel kBaseline = SimdLevel::kPortable;
#endif

SimdLevel BestLevel() {
  if (SimdLevelSupported(SimdLevel::kAvx512)) return SimdLevel::kAvx512;
  if (SimdLevelSupported(SimdLevel::kAvx2)) return SimdLevel::kAvx2;
  return kBaseline;
}

std::atomic<SimdLevel>& Level() {
  static std::atomic<SimdLevel> level{BestLevel()};
  return level;
}

}  // namespace

const char* SimdLevelName(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kSse2:
      return "sse2";
    case SimdLevel::kNeon:
      return "neon";
    case SimdLevel::kPortable:
      break;
  }
  return "portable";
}

bool SimdLevelSupported(SimdLevel level) {
  static const bool avx2 = DetectAvx2();
  static const bool avx512 = DetectAvx512();
  switch (level) {
    case SimdLevel::kAvx512:
      return avx512;
    case SimdLevel::kAvx2:
      return avx2;
    case SimdLevel::kSse2:
    case SimdLevel::kNeon:
      return level == kBaseline;
    case SimdLevel::kPortable:
      break;
  }
  return true;
}

SimdLevel CurrentSimdLevel() { return Level().load(std::memory_order_relaxed); }

void SetSimdLevel(SimdLevel level) { Level().store(level, std::memory_order_relaxed); }

bool HasPclmul() {
  static const bool has = DetectPclmul();
  return has;
}

bool HasVpclmul512() {
  static const bool has = DetectVpclmul512();
  return has;
}

bool HasPmull() {
  static const bool has = DetectPmull();
  return has;
}

bool HasBmi2() {
  static const bool has = DetectBmi2();
  return has;
}

bool HasVbmi2() {
  static const bool has = DetectVbmi2();
  return has;
}

bool HasAvx512Bw() {
  static const bool has = DetectAvx512Bw();
  return has;
}

}  // namespace fastckpt

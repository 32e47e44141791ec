#include "cpu.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fastckpt {

namespace {

#if defined(__x86_64__)
// Asked of the CPU itself: __builtin_cpu_supports is filled in by a part of gcc's runtime, which not every compiler
// links. Bits of leaf 1 and leaf 7, and of XCR0, by which the operating system says which registers it saves: Intel's
// Software Developer's Manual, volume 2A, CPUID, and volume 1, chapter 13.
struct Cpu {
  unsigned leaf1_c = 0, leaf7_b = 0, leaf7_c = 0, saved = 0;

  Cpu() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) != 0) leaf1_c = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
      leaf7_b = b;
      leaf7_c = c;
    }
    constexpr unsigned kOsxsave = 1u << 27;
    if ((leaf1_c & kOsxsave) != 0) {
      asm volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    }
  }

  bool Leaf1C(int bit) const { return (leaf1_c >> bit & 1) != 0; }
  bool Leaf7B(int bit) const { return (leaf7_b >> bit & 1) != 0; }
  bool Leaf7C(int bit) const { return (leaf7_c >> bit & 1) != 0; }
  bool Saves(unsigned registers) const { return (saved & registers) == registers; }
};

const Cpu& ThisCpu() {
  static const Cpu cpu;
  return cpu;
}

constexpr unsigned kYmm = 0x06;  // SSE and AVX state
constexpr unsigned kZmm = 0xE6;  // and masks, and all of the 512-bit registers

bool DetectAvx2() { return ThisCpu().Saves(kYmm) && ThisCpu().Leaf7B(5); }
bool DetectAvx512() { return ThisCpu().Saves(kZmm) && ThisCpu().Leaf7B(16); }
bool DetectAvx512Bw() { return DetectAvx512() && ThisCpu().Leaf7B(30); }
bool DetectPclmul() { return ThisCpu().Leaf1C(1) && ThisCpu().Leaf1C(19); }  // with SSE4.1
bool DetectVpclmul512() { return DetectAvx512() && DetectPclmul() && ThisCpu().Leaf7C(10); }
bool DetectBmi2() { return DetectAvx2() && ThisCpu().Leaf7B(8); }
bool DetectVbmi2() {
  constexpr int kVl = 31, kVbmi = 1, kVbmi2 = 6, kPopcnt = 23;
  return DetectAvx512Bw() && DetectBmi2() && ThisCpu().Leaf7B(kVl) && ThisCpu().Leaf7C(kVbmi) &&
         ThisCpu().Leaf7C(kVbmi2) && ThisCpu().Leaf1C(kPopcnt);
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

#include "hash.h"

#include <cstring>

#include "bytes.h"
#include "constants.h"
#include "cpu.h"
#include "hash_kernels.h"

namespace fastckpt {

namespace {

void HashWholeLeaves(const uint8_t* data, size_t count, uint64_t* digests) {
  switch (CurrentSimdLevel()) {
#if defined(__x86_64__)
    case SimdLevel::kAvx512:
      return HashWholeLeavesAvx512(data, count, digests);
    case SimdLevel::kAvx2:
      return HashWholeLeavesAvx2(data, count, digests);
    case SimdLevel::kSse2:
      return HashWholeLeavesSse2(data, count, digests);
#elif defined(__aarch64__)
    case SimdLevel::kNeon:
      return HashWholeLeavesNeon(data, count, digests);
#endif
    default:
      break;
  }
  HashWholeLeavesPortable(data, count, digests);
}

}  // namespace

void HashLeaves(const uint8_t* data, size_t size, uint64_t* digests) {
  const size_t whole = size / kLeafSize;
  if (whole != 0) HashWholeLeaves(data, whole, digests);
  const size_t rest = size - whole * kLeafSize;
  if (rest == 0) return;
  alignas(64) uint8_t padded[kLeafSize];
  std::memcpy(padded, data + whole * kLeafSize, rest);
  std::memset(padded + rest, 0, kLeafSize - rest);
  HashWholeLeaves(padded, 1, digests + whole);
}

}  // namespace fastckpt

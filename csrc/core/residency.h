// How much of a file the page cache holds.
//
// Asking fetches nothing. A cached-only read would: when it misses, it starts a read-ahead of just
// that place, and a cold file that was sampled so looks warm when it is asked again.

#ifndef FASTCKPT_CORE_RESIDENCY_H_
#define FASTCKPT_CORE_RESIDENCY_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {

enum class Residency { kNone, kSome, kAll, kUnknown };

// How much of a range of a file is cached; unknown where the kernel has no cachestat(2), or does not
// tell this user.
Residency QueryResidency(int fd, uint64_t offset, size_t size);

// How many of the first `size` bytes of a file are cached, to whole pages; -1 where that cannot be
// found out. Asks mincore(2) where the kernel has no cachestat(2). Linux tells neither of a file that
// belongs to another user and may not be written.
int64_t CachedBytes(int fd, uint64_t size);

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_RESIDENCY_H_

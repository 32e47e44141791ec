#include "residency.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <vector>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include "bytes.h"

namespace fastckpt {

namespace {

// What mincore is asked about in one go.
constexpr uint64_t kWindow = uint64_t{1} << 30;

uint64_t PageSize() { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

// The cached pages of a range; -1 where the system cannot tell.
int64_t CachedPages(int fd, uint64_t offset, uint64_t size) {
#if defined(__linux__)
  // cachestat(2), Linux 6.5. The number is the same on every architecture; older headers lack it.
#if defined(SYS_cachestat)
  constexpr long kCachestat = SYS_cachestat;
#else
  constexpr long kCachestat = 451;
#endif
  struct Range {
    uint64_t offset, size;
  } range = {offset, size};
  struct Counts {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } counts = {};
  if (syscall(kCachestat, fd, &range, &counts, 0) != 0) return -1;
  return static_cast<int64_t>(counts.cached);
#else
  (void)fd, (void)offset, (void)size;
  return -1;
#endif
}

// Whether mincore tells the truth about a file: of one that belongs to another user and may not be
// written, Linux calls every page cached.
bool MayKnow(int fd) {
#if defined(__linux__)
  struct stat file;
  if (fstat(fd, &file) != 0) return false;
  const uid_t user = geteuid();
  if (user == 0 || user == file.st_uid) return true;
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0;
#else
  (void)fd;
  return true;
#endif
}

int64_t MappedPages(int fd, uint64_t size, uint64_t page) {
#if defined(__APPLE__)
  using Seen = char;
#else
  using Seen = unsigned char;
#endif
  int64_t cached = 0;
  std::vector<Seen> seen;
  for (uint64_t at = 0; at < size; at += kWindow) {
    const size_t length = static_cast<size_t>(std::min(kWindow, size - at));
    void* const map = mmap(nullptr, length, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(at));
    if (map == MAP_FAILED) return -1;
    seen.assign((length + page - 1) / page, 0);
    const bool told = mincore(map, length, seen.data()) == 0;
    munmap(map, length);
    if (!told) return -1;
    cached += std::count_if(seen.begin(), seen.end(), [](Seen flags) { return (flags & 1) != 0; });
  }
  return cached;
}

}  // namespace

Residency QueryResidency(int fd, uint64_t offset, size_t size) {
  if (size == 0 || AddOverflows(offset, size)) return Residency::kUnknown;
  const int64_t cached = CachedPages(fd, offset, size);
  if (cached < 0) return Residency::kUnknown;
  if (cached == 0) return Residency::kNone;
  const uint64_t page = PageSize();
  const uint64_t last = (offset + size - 1) / page;
  return static_cast<uint64_t>(cached) > last - offset / page ? Residency::kAll : Residency::kSome;
}

int64_t CachedBytes(int fd, uint64_t size) {
  if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return -1;
  const uint64_t page = PageSize();
  int64_t pages = CachedPages(fd, 0, size);
  if (pages < 0 && MayKnow(fd)) pages = MappedPages(fd, size, page);
  if (pages < 0) return -1;
  return static_cast<int64_t>(std::min(static_cast<uint64_t>(pages) * page, size));
}

}  // namespace fastckpt

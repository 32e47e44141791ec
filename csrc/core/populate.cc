#include "populate.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "bytes.h"

namespace fastckpt {

int PopulateForRead(uint64_t address, size_t size) {
#if defined(__linux__)
#if defined(MADV_POPULATE_READ)
  constexpr int kPopulateRead = MADV_POPULATE_READ;
#else
  constexpr int kPopulateRead = 22;  // the same number on every architecture; older headers lack it
#endif
  if (size == 0) return 0;
  static const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  uint64_t end = 0;
  if (!AlignUp(address + size, page, &end)) return EFAULT;
  const uint64_t start = AlignDown(address, page);
  for (;;) {
    if (madvise(reinterpret_cast<void*>(static_cast<uintptr_t>(start)),
                static_cast<size_t>(end - start), kPopulateRead) == 0)
      return 0;
    if (errno == EINTR) continue;
    return errno == EINVAL ? 0 : errno;
  }
#else
  (void)address, (void)size;
  return 0;
#endif
}

void ReleaseMapped(uint64_t address, size_t size) {
#if defined(__linux__)
  static const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  uint64_t start = 0;
  if (!AlignUp(address, page, &start)) return;
  const uint64_t end = AlignDown(address + size, page);
  if (start < end)
    madvise(reinterpret_cast<void*>(static_cast<uintptr_t>(start)),
            static_cast<size_t>(end - start), MADV_DONTNEED);  // a hint: failure changes nothing
#else
  (void)address, (void)size;
#endif
}

}  // namespace fastckpt

// Asking for mapped file pages before touching them.
//
// Touching a page of a mapped file that the file no longer has, or that the disk cannot read, kills
// the process with SIGBUS. Asking the kernel first turns both into an error number.

#ifndef FASTCKPT_CORE_POPULATE_H_
#define FASTCKPT_CORE_POPULATE_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {

// How much to ask for at a time.
inline constexpr size_t kPopulateStep = 2 * 1024 * 1024;

// Makes the pages of [address, address + size) present for reading. Returns 0 or an errno value;
// 0 as well where the kernel cannot be asked (before Linux 5.14). A file that is cut short between
// this call and the reading can still raise SIGBUS.
int PopulateForRead(uint64_t address, size_t size);

// Gives back the whole pages within [address, address + size) of a shared map of a file: they stay
// in the page cache, and no longer count as this process's memory. Taken away a piece at a time, by
// the threads at work, they need not be taken away by one thread at the end. Only for such maps:
// from other memory this would take its content.
void ReleaseMapped(uint64_t address, size_t size);

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_POPULATE_H_

// Positional reads and writes that finish what they start, or say why not.

#ifndef FASTCKPT_CORE_FILE_IO_H_
#define FASTCKPT_CORE_FILE_IO_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace fastckpt {

// `done` bytes were moved before `error` (an errno value) stopped it. For a read, `error` 0 with
// `done` short of what was asked for means the end of the file.
struct IoResult {
  size_t done = 0;
  int error = 0;
};

// Repeat over short transfers and EINTR.
IoResult ReadAt(int fd, uint8_t* to, size_t size, uint64_t offset);
IoResult WriteAt(int fd, const uint8_t* from, size_t size, uint64_t offset);

// Whether a read error concerns the place that was read (a bad sector), so that reading elsewhere
// in the same file may well succeed. A closed descriptor, say, fails everywhere.
bool ConcernsPlace(int error);

// Reads only what the page cache holds: stops at the first byte that would need the disk. `error`
// is EOPNOTSUPP where the kernel or the file system has no such read.
IoResult ReadCachedAt(int fd, uint8_t* to, size_t size, uint64_t offset);

// Reads with O_DIRECT into `count` parts of memory, one after the other, in one request; addresses,
// sizes and the offset are multiples of 4096. A short result can be the end of the file or an
// obstacle; a plain read of the rest tells which.
IoResult ReadDirectAt(int fd, const iovec* parts, int count, uint64_t offset);

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_FILE_IO_H_

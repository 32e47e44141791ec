// Writes a span of memory to a file, past the page cache where that is possible.

#ifndef FASTCKPT_CORE_SPAN_WRITER_H_
#define FASTCKPT_CORE_SPAN_WRITER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "status.h"

namespace fastckpt {

class SpanWriter {
 public:
  // As SpanReader: `direct_fd` is the same file opened with O_DIRECT, or -1.
  SpanWriter(int fd, int direct_fd, std::atomic<bool>* direct_works)
      : fd_(fd), direct_fd_(direct_fd), direct_works_(direct_works) {}

  // Writes exactly [offset, offset + size): whole 4 KiB units directly when `offset` is a multiple
  // of 4096, what remains through the page cache. Memory that is not aligned goes through a copy.
  Status Write(const uint8_t* from, size_t size, uint64_t offset);

  // The same with so many zeros behind it, in one write.
  Status WritePadded(const uint8_t* from, size_t size, size_t zeros, uint64_t offset);

 private:
  size_t WriteDirect(const uint8_t* from, size_t size, uint64_t offset, Status* status);

  const int fd_;
  const int direct_fd_;
  std::atomic<bool>* const direct_works_;
  AlignedBuffer bounce_;
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_SPAN_WRITER_H_

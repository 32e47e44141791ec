// Reads past the page cache: one request for neighbouring spans, to where they shall be.
//
// A disk, and even more so a virtual or a distant one, takes some time for each request, whatever its
// size. What can be read in place is; the rest lands in memory of the reader and is copied from there.

#ifndef FASTCKPT_CORE_DIRECT_READER_H_
#define FASTCKPT_CORE_DIRECT_READER_H_

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"

namespace fastckpt {

// `size` bytes of the file at `offset`, wanted at `to`.
struct FileSpan {
  uint64_t offset;
  size_t size;
  uint8_t* to;
};

class DirectReader {
 public:
  // `fd` is opened with O_DIRECT, or -1. `works` is shared by the readers of a job: cleared when
  // the file system refuses direct reads.
  DirectReader(int fd, std::atomic<bool>* works) : fd_(fd), works_(works) {}

  bool works() const { return fd_ >= 0 && works_->load(std::memory_order_relaxed); }

  // Reads from the begin of the first span to the end of the last one; they are in rising order and
  // do not overlap. Returns how far it got, counted from the begin of the first. That can be short
  // for any reason: a plain read of the rest tells which.
  uint64_t Read(const FileSpan* spans, size_t count);

  // Puts [begin, end) of one of the spans read last in its place, as far as it is not there already.
  void Settle(const FileSpan& span, size_t begin, size_t end) const;

 private:
  const int fd_;
  std::atomic<bool>* const works_;
  AlignedBuffer other_;  // for what is not read in place: holds the file from first_ on
  uint64_t first_ = 0;
  std::vector<iovec> parts_;
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_DIRECT_READER_H_

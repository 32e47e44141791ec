// Brings a span of a file into memory, and says which parts could not be had.

#ifndef FASTCKPT_CORE_SPAN_READER_H_
#define FASTCKPT_CORE_SPAN_READER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "direct_reader.h"
#include "workers.h"

namespace fastckpt {

// A piece is what is read, and then hashed, in one go: small enough to still lie in the cache when
// the hash comes to it, large enough to make the system call's cost vanish. 128 to 256 KiB measured
// best.
inline constexpr size_t kPiece = 256 * 1024;

// Told, in rising order and from the reading thread, what became of each part of a span. Positions
// count from the start of the span.
class SpanObserver {
 public:
  virtual ~SpanObserver() = default;
  // [begin, end) is there. `begin` is a multiple of the leaf size, and so is `end` unless the span
  // ends there.
  virtual void OnData(size_t begin, size_t end) = 0;
  // [begin, end) could not be read. `error` is an errno value, 0 for the end of the file.
  virtual void OnFault(size_t begin, size_t end, int error) = 0;
};

class SpanReader {
 public:
  // `direct_fd` and `direct_works`: see DirectReader.
  SpanReader(int fd, int direct_fd, std::atomic<bool>* direct_works, const Job* job)
      : fd_(fd), direct_(direct_fd, direct_works), job_(job) {}

  // Reads `size` bytes at `offset`. Returns early, with the rest not reported, when the job is
  // cancelled.
  void Read(uint64_t offset, uint8_t* to, size_t size, SpanObserver* observer);

  // Reads neighbouring spans, in rising order, in one direct request, if nothing of them is cached.
  // False if not all of them could be had that way: then each has to be read alone.
  bool ReadTogether(const FileSpan* spans, size_t count);

  // Hands over one of the spans that were read together.
  void Deliver(const FileSpan& span, SpanObserver* observer);

 private:
  // Each takes the span from `begin` on and returns how far it got.
  size_t ReadPastCache(uint64_t offset, uint8_t* to, size_t size, SpanObserver* observer);
  size_t ReadDirect(uint64_t offset, uint8_t* to, size_t begin, size_t end,
                    SpanObserver* observer);
  void Settle(const FileSpan& span, size_t begin, size_t size, SpanObserver* observer);
  void ReadPlain(uint64_t offset, uint8_t* to, size_t begin, size_t size, SpanObserver* observer);
  bool ReadLeaves(uint64_t offset, uint8_t* to, size_t begin, size_t end, size_t size,
                  SpanObserver* observer);

  const int fd_;
  DirectReader direct_;
  const Job* const job_;
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_SPAN_READER_H_

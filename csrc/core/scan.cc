#include "scan.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "buffer.h"
#include "bytes.h"
#include "file_io.h"

namespace fastckpt {

namespace {

constexpr uint64_t kSpan = kChunkSize;
// Offsets beyond this do not exist in a file; staying a span below keeps the sums in range.
constexpr uint64_t kMaxStop = static_cast<uint64_t>(INT64_MAX) - kSpan;

uint64_t FirstCandidate(uint64_t start) {
  uint64_t first = 0;
  return AlignUp(start, kAlignment, &first) ? std::min(first, kMaxStop) : kMaxStop;
}

}  // namespace

BlockScan::BlockScan(int fd, const uint8_t* magic, uint64_t start, uint64_t stop)
    : fd_(fd), stop_(std::min(stop, kMaxStop)), next_(FirstCandidate(start)) {
  std::memcpy(magic_, magic, sizeof magic_);
}

void BlockScan::Work() {
  try {
    AlignedBuffer buffer;
    if (!buffer.Reserve(kSpan)) throw std::bad_alloc();
    std::vector<uint64_t> found;
    while (!cancelled() && !at_end_.load(std::memory_order_relaxed)) {
      const uint64_t start = next_.fetch_add(kSpan, std::memory_order_relaxed);
      if (start >= stop_) break;
      const uint64_t stop = std::min(start + kSpan, stop_);
      ScanSpan(buffer.data(), start, stop, &found);
      AddProgress(stop - start);
    }
    std::lock_guard<std::mutex> lock(results_mutex_);
    found_.insert(found_.end(), found.begin(), found.end());
  } catch (const std::bad_alloc&) {
    Fail(Status::NoMemory());
  }
}

// Reads in one go, and where that fails in steps of 4 KiB, so that a bad sector hides nothing but
// itself.
void BlockScan::ScanSpan(uint8_t* buffer, uint64_t start, uint64_t stop,
                         std::vector<uint64_t>* found) {
  uint64_t step = kSpan;
  for (uint64_t at = start; at < stop && !cancelled();) {
    // Whole units: a candidate at the very end of the range still needs its eight bytes.
    const uint64_t candidates = (stop - at + kAlignment - 1) / kAlignment;
    const size_t wanted = static_cast<size_t>(std::min(step, candidates * kAlignment));
    const IoResult read = ReadAt(fd_, buffer, wanted, at);
    const bool again = read.error != 0 && step != kAlignment;
    // What is going to be read again from some unit on must not be found twice.
    const size_t looked_at =
        again ? static_cast<size_t>(AlignDown(read.done, kAlignment)) : read.done;
    for (size_t i = 0; i + kMagicSize <= looked_at; i += kAlignment)
      if (Matches(buffer + i)) found->push_back(at + i);
    if (read.error != 0 && !ConcernsPlace(read.error))
      return Fail(Status::IoError(read.error, "reading", at));
    if (read.error == 0 && read.done < wanted)
      return at_end_.store(true, std::memory_order_relaxed);
    at += again ? looked_at : wanted;
    if (again) step = kAlignment;
  }
}

void BlockScan::Fail(const Status& status) {
  {
    std::lock_guard<std::mutex> lock(results_mutex_);
    if (status_.ok()) status_ = status;
  }
  Cancel();
}

bool BlockScan::Matches(const uint8_t* data) const {
  return std::memcmp(data, magic_, sizeof magic_) == 0;
}

Status BlockScan::Finish(std::vector<uint64_t>* offsets) {
  if (!status_.ok()) return status_;
  std::sort(found_.begin(), found_.end());
  offsets->swap(found_);
  return Status::Ok();
}

}  // namespace fastckpt

#include "planes_reader.h"

#include <algorithm>
#include <new>

#include "bytes.h"
#include "constants.h"
#include "hash.h"
#include "planes.h"

namespace fastckpt {

namespace {

// Stored bytes of a run: the disk wants large requests, and threads equal shares.
constexpr uint64_t kRun = 2 * kChunkSize;
// Chunks are read in one request where no more than this lies between them.
constexpr uint64_t kMaxGap = 4 * kLeafSize;

// Remembers where the first byte is that could not be read.
class Observer : public SpanObserver {
 public:
  explicit Observer(size_t size) : reached_(size) {}
  void OnData(size_t, size_t) override {}
  void OnFault(size_t begin, size_t, int) override { reached_ = std::min(reached_, begin); }
  size_t reached() const { return reached_; }

 private:
  size_t reached_;
};

}  // namespace

Status PlanesReadRequest::Check(size_t* leaf_count, uint64_t* total) const {
  *leaf_count = 0;
  *total = 0;
  for (size_t i = 0; i < count; ++i) {
    const StoredChunk& chunk = chunks[i];
    if (chunk.stored_size > kChunkSize || chunk.raw_size > kChunkSize)
      return Status::InvalidArgument("larger than a chunk", i);
    if (chunk.offset > INT64_MAX - kChunkSize)
      return Status::InvalidArgument("source out of range", i);
    *leaf_count += static_cast<size_t>(LeafCount(chunk.raw_size));
    *total += chunk.raw_size;
  }
  return Status::Ok();
}

void PlanesReader::Work() {
  SpanReader reader(request_.fd, request_.direct_fd, &direct_works_, this);
  AlignedBuffer stored;
  AlignedBuffer raw;
  Run run;
  try {
    while (!cancelled() && Next(&run)) Read(run, &reader, &stored, &raw);
  } catch (const std::bad_alloc&) {
    // What was not read is not good.
  }
}

bool PlanesReader::Next(Run* run) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (next_ == request_.count) return false;
  const StoredChunk* const chunks = request_.chunks;
  *run = {next_, next_, next_leaf_};
  uint64_t end = 0;
  do {
    end = chunks[next_].offset + chunks[next_].stored_size;
    next_leaf_ += static_cast<size_t>(LeafCount(chunks[next_].raw_size));
    ++next_;
  } while (next_ < request_.count && chunks[next_].offset >= end &&
           chunks[next_].offset - end <= kMaxGap &&
           chunks[next_].offset + chunks[next_].stored_size - chunks[run->first].offset <= kRun);
  run->last = next_;
  return true;
}

void PlanesReader::Read(const Run& run, SpanReader* reader, AlignedBuffer* stored,
                        AlignedBuffer* raw) {
  const StoredChunk* const chunks = request_.chunks;
  const StoredChunk& last = chunks[run.last - 1];
  const uint64_t begin = chunks[run.first].offset;
  const size_t size = static_cast<size_t>(last.offset + last.stored_size - begin);
  if (!stored->Reserve(kRun + kAlignment) || !raw->Reserve(kChunkSize)) return;
  // Landing at the same place within 4 KiB as in the file lets direct reads do without a copy.
  uint8_t* const landing = stored->data() + begin % kAlignment;
  Observer observer(size);
  reader->Read(begin, landing, size, &observer);
  size_t leaf = run.leaf;
  for (size_t i = run.first; i < run.last && !cancelled(); ++i) {
    const StoredChunk& chunk = chunks[i];
    const size_t at = static_cast<size_t>(chunk.offset - begin);
    uint8_t* const to = chunk.raw == 0 ? raw->data() : ToPointer(chunk.raw);
    uint64_t* const leaves = request_.verify ? request_.leaves + leaf : nullptr;
    // A chunk that is not good is read once more by others, and counts then.
    if (at + chunk.stored_size <= observer.reached() && Decode(chunk, landing + at, to, leaves)) {
      request_.good[i] = 1;
      AddProgress(chunk.raw_size);
    }
    leaf += static_cast<size_t>(LeafCount(chunk.raw_size));
  }
}

bool PlanesReader::Decode(const StoredChunk& chunk, const uint8_t* stored, uint8_t* raw,
                          uint64_t* leaves) {
  const size_t stored_size = static_cast<size_t>(chunk.stored_size);
  const size_t raw_size = static_cast<size_t>(chunk.raw_size);
  if (stored_size < kLeastHashed) return false;
  if (leaves != nullptr && HashBytes(stored, stored_size) != chunk.digest) return false;
  if (!DecodePlanes(stored, stored_size, raw, raw_size).ok()) return false;
  if (leaves != nullptr) HashLeaves(raw, raw_size, leaves);
  return true;
}

}  // namespace fastckpt

// Brings chunks of the codec planes from a file to memory: while some threads wait for the disk,
// others decode.
//
// It only says which chunks are good. What is wrong with another, whoever reads it alone finds out.

#ifndef FASTCKPT_CORE_PLANES_READER_H_
#define FASTCKPT_CORE_PLANES_READER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "buffer.h"
#include "span_reader.h"
#include "status.h"
#include "workers.h"

namespace fastckpt {

// One chunk of a file. The row is what Python hands over.
struct StoredChunk {
  uint64_t offset;
  uint64_t stored_size;
  uint64_t digest;  // of the stored bytes
  uint64_t raw;     // an address, or 0: the raw bytes are only hashed
  uint64_t raw_size;
};

struct PlanesReadRequest {
  int fd = -1;
  int direct_fd = -1;  // the same file opened with O_DIRECT, or -1
  const StoredChunk* chunks = nullptr;
  size_t count = 0;
  bool verify = true;          // compare stored digests, and hash leaves
  uint64_t* leaves = nullptr;  // those of all chunks, one chunk after the other
  uint8_t* good = nullptr;     // one for each chunk: set to 1 when its raw bytes are there

  // Sizes and offsets in bounds? On success, `leaves` is the number of all leaves and `total` that
  // of the raw bytes.
  Status Check(size_t* leaf_count, uint64_t* total) const;
};

class PlanesReader : public Job {
 public:
  // The request must have passed Check(), and what it points at must outlive the reader.
  explicit PlanesReader(const PlanesReadRequest& request) : request_(request) {}

  void Work() override;

 private:
  // Chunks [first, last), near each other in the file; the leaves of the first begin at `leaf`.
  struct Run {
    size_t first;
    size_t last;
    size_t leaf;
  };

  bool Next(Run* run);
  void Read(const Run& run, SpanReader* reader, AlignedBuffer* stored, AlignedBuffer* raw);
  bool Decode(const StoredChunk& chunk, const uint8_t* stored, uint8_t* raw, uint64_t* leaves);

  const PlanesReadRequest request_;
  std::atomic<bool> direct_works_{true};
  std::mutex mutex_;
  size_t next_ = 0;       // guarded by mutex_
  size_t next_leaf_ = 0;  // guarded by mutex_
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_READER_H_

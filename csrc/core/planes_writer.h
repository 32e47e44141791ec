// Encodes chunks with the codec planes and writes them one behind the other: while some threads
// wait for the disk, others encode.
//
// Where a chunk lies is known only once all before it are encoded. Threads encode in any order, each
// into memory of its own, and take their places in the order of the chunks: these are filled into
// segments of aligned memory, and whoever completes a segment writes it, past the page cache where
// that is possible.

#ifndef FASTCKPT_CORE_PLANES_WRITER_H_
#define FASTCKPT_CORE_PLANES_WRITER_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "constants.h"
#include "span_writer.h"
#include "status.h"
#include "workers.h"

namespace fastckpt {

// The raw bytes of one chunk. The row is what Python hands over.
struct RawChunk {
  uint64_t source;  // an address, or the offset in a file
  uint64_t size;
  uint64_t row_length;  // as in PlanesChunk
  uint64_t phase;
  uint64_t skip;  // bytes left out before it, from the next multiple of 4 KiB on; 0: it follows at once
};

// What became of a chunk. The row is what Python gets.
struct WrittenChunk {
  uint64_t offset;
  uint64_t stored_size;
  uint64_t encoded;  // 1, or 0 when it is stored as it is
  uint64_t digest;   // of the stored bytes, if it is encoded
  uint64_t crc;      // CRC-32 of the raw bytes, if wanted
  uint64_t read;     // raw bytes that could be read: fewer than there are is a fault, for the reason
  uint64_t error;    // `error`, an errno value, or 0 for the end of the file
};

class PlanesWriter : public Job {
 public:
  static constexpr size_t kBlocks = kChunkSize >> kPlanesBlockLog2;
  static constexpr size_t kLeaves = kChunkSize / kLeafSize;

  struct Sink {
    int fd = -1;
    int direct_fd = -1;   // the same file opened with O_DIRECT, or -1
    uint64_t offset = 0;  // where to begin, a multiple of 4096
  };

  PlanesWriter(const Sink& sink, bool want_crcs);

  // False when there is no memory. To be called first.
  bool Reserve();

  static Status Check(const RawChunk* chunks, size_t count, bool from_file);

  // Chunks to be written behind the others. They have passed Check(), and have kBlocks kinds each.
  // `source_fd` is a file or -1: memory, which must stay until WaitUntilRead().
  void Append(int source_fd, const RawChunk* chunks, const uint8_t* kinds, size_t count);

  // Encodes what was appended until the writer is closed.
  void Work() override;

  // Encodes what was appended so far, for a caller that could start no thread.
  void WorkOff();

  // Waits until the bytes of all chunks appended are no longer needed, at most for `timeout`. True
  // when they are not, and when the writer has been closed or has failed.
  bool WaitUntilRead(std::chrono::milliseconds timeout);

  // So, too, until the `count` oldest chunks are in the file. The last of them ends a record:
  // what comes next begins with bytes left out.
  bool WaitUntilWritten(size_t count, std::chrono::milliseconds timeout);

  // Adds what became of the `count` oldest chunks, which are written; they are forgotten then. A
  // chunk has LeafCount(size) leaves, one behind the other. The status is that of the first write
  // that failed. Throws std::bad_alloc.
  Status Take(size_t count, std::vector<WrittenChunk>* chunks, std::vector<uint64_t>* leaves);

  // Stops the threads: they return from Work() within one piece of I/O.
  void Close();

 private:
  // Enough that the disk has several large requests while others are filled.
  static constexpr size_t kSegmentSize = 4 * kChunkSize;
  static constexpr size_t kSegments = 6;

  struct Chunk {
    int source_fd = -1;
    RawChunk raw = {};
    uint8_t kinds[kBlocks] = {};
    uint64_t leaves[kLeaves] = {};
    WrittenChunk written = {};
    uint64_t last_segment = 0;
  };
  struct Segment {
    AlignedBuffer memory;
    uint64_t offset = 0;  // in the file
    size_t filled = 0;    // bytes that have an owner
    size_t copying = 0;   // owners that are not done
    bool closed = false;  // nobody else will own a part of it
    bool written = false;
  };
  // A thread's memory.
  struct Room {
    AlignedBuffer raw;
    AlignedBuffer out;
  };
  // A part of a segment that a thread has to fill.
  struct Part {
    Segment* segment;
    size_t at;
    size_t size;
  };
  // It closes a segment, and lies in two.
  static constexpr size_t kMostParts = 3;

  void Run(bool stay);
  Chunk* Next(bool stay, uint64_t* number);
  bool Encode(Chunk* chunk, Room* room, const uint8_t** stored);
  size_t PlaceInOrder(Chunk* chunk, uint64_t number, Part* parts);
  Part CloseSegment();
  void Fill(const Part& part, const uint8_t* from, SpanWriter* writer);
  void Fail(const Status& status);
  void WakeAll();
  bool stopped() const { return cancelled() || !status_.ok(); }
  bool HasOpenSegment() { return opened_ != 0 && !At(opened_ - 1).closed; }
  Segment& At(uint64_t segment) { return segments_[segment % kSegments]; }

  const Sink sink_;
  const bool want_crcs_;
  std::atomic<bool> direct_works_{true};

  std::mutex mutex_;  // guards all that follows, but not what a thread has taken of it
  std::condition_variable appended_;
  std::condition_variable placed_;
  std::condition_variable done_;
  std::deque<Chunk> chunks_;
  uint64_t taken_ = 0;       // chunks that are forgotten
  uint64_t begun_ = 0;       // chunks that a thread has
  uint64_t read_ = 0;        // chunks whose bytes are no longer needed
  uint64_t in_place_ = 0;    // chunks that know where they lie
  uint64_t position_ = 0;    // in the file: behind these
  Segment segments_[kSegments];
  uint64_t opened_ = 0;   // segments that have begun
  uint64_t written_ = 0;  // segments that are written, as all before them
  Status status_;
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_WRITER_H_

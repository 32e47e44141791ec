// The engine: moves extents from a source to a sink and hashes them on the way.
//
// Source and sink are each a file or memory, the sink can be absent. Reading, hashing and writing
// of one piece follow each other on one thread, so that the bytes are fetched from DRAM once.

#ifndef FASTCKPT_CORE_TRANSFER_H_
#define FASTCKPT_CORE_TRANSFER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "mapped.h"
#include "parity_tally.h"
#include "status.h"
#include "workers.h"

namespace fastckpt {

// One run of bytes to move. `source` and `sink` are file offsets or memory addresses, by the kind
// of the two ends; leaf k of the extent has its digest in leaves[first_leaf + k].
struct Extent {
  uint64_t source;
  uint64_t sink;
  uint64_t size;
  uint64_t first_leaf;
};

// A part of an extent that could not be read. `error` is an errno value, 0 for the end of the file.
struct ReadFault {
  uint64_t extent;
  uint64_t offset;  // from the start of the extent
  uint64_t size;
  int error;
};

struct TransferRequest {
  static constexpr int kMemory = -1;
  static constexpr int kNoSink = -2;

  int source_fd = kMemory;    // a file, or kMemory
  int sink_fd = kNoSink;      // a file, kMemory, or kNoSink
  int source_direct_fd = -1;  // the source file opened with O_DIRECT, or -1
  int sink_direct_fd = -1;    // the sink file opened with O_DIRECT, or -1
  const Extent* extents = nullptr;
  size_t extent_count = 0;
  uint64_t* leaves = nullptr;  // null: no leaf is hashed
  size_t leaf_count = 0;
  uint32_t* crcs = nullptr;  // one CRC-32 per extent; null: none is computed
  bool mapped = false;       // memory source: a mapped file, whose pages may not be there
  bool padded = false;       // file sink: zeros follow each extent up to the next multiple of 4 KiB
                             // of the file; they are written with it
  bool release = false;      // with mapped, and only for a shared map of a file: give its pages
                             // back once they are moved
  ParityTally* tally = nullptr;  // file sink: to it all that is written there is added

  // Sizes, offsets and leaf ranges in bounds? On success, `total` is the number of bytes to move.
  Status Check(uint64_t* total) const;

  // Written past the page cache: every extent is a request of its own that the disk may have beside
  // others, however small.
  bool writes_directly() const { return sink_fd >= 0 && sink_direct_fd >= 0; }
};

// What a thread takes at a time: whole extents [first, last) when they are small, or a part of one.
// From a file that is read past the page cache, only extents that lie near each other; to one that
// is written so from elsewhere, a single extent.
struct WorkItem {
  size_t first = 0;
  size_t last = 0;
  uint64_t offset = 0;  // where the part starts; its size is in `bytes`
  uint64_t bytes = 0;
  bool partial = false;
};

class Transfer : public Job {
 public:
  // The request must have passed Check(), and what it points at must outlive the transfer.
  explicit Transfer(const TransferRequest& request);

  void Work() override;

  // To be called once all threads have returned from Work(): completes the CRCs and hands over the
  // faults, in order. The status is that of the first write that failed, or of memory that could
  // not be had.
  Status Finish(std::vector<ReadFault>* faults);

  // For the threads at work.
  const TransferRequest& request() const { return request_; }
  std::atomic<bool>* source_direct_works() { return &source_direct_works_; }
  std::atomic<bool>* sink_direct_works() { return &sink_direct_works_; }
  void Fail(const Status& status);

  // The CRC of a part of an extent; invalid when some of it could not be read.
  struct PartialCrc {
    size_t extent;
    uint64_t offset;
    uint64_t size;
    uint32_t crc;
    bool valid;
  };
  void Collect(const std::vector<ReadFault>& faults, const std::vector<PartialCrc>& crcs);

 private:
  bool Next(WorkItem* item);
  bool IsNext(size_t extent) const;
  uint64_t PastBoundary(uint64_t offset) const;
  void CombineCrcs();
  void MergeFaults();

  const TransferRequest request_;
  const uint64_t block_;      // bytes of a work item
  const bool direct_source_;  // a file that can be read past the page cache
  std::optional<BusErrorsCaught> caught_;
  std::atomic<bool> source_direct_works_{true};
  std::atomic<bool> sink_direct_works_{true};

  std::mutex cursor_mutex_;
  size_t cursor_extent_ = 0;    // guarded by cursor_mutex_
  uint64_t cursor_offset_ = 0;  // guarded by cursor_mutex_

  std::mutex results_mutex_;
  Status status_;                        // guarded by results_mutex_
  std::vector<ReadFault> faults_;        // guarded by results_mutex_
  std::vector<PartialCrc> partial_crcs_;  // guarded by results_mutex_
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_TRANSFER_H_

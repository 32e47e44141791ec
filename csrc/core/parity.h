// Parity over the leaves of a file, and lost leaves back from it.
//
// The leaves of a file are dealt out to groups: leaf n belongs to group n % groups, as its number
// n / groups, so that a hole in the file costs every group the same. Each group has one to three
// leaves of parity (gf256.h), from which as many lost leaves of it can be had again. A last leaf
// that is short counts as if zeros followed it, and so does one that a group lacks.

#ifndef FASTCKPT_CORE_PARITY_H_
#define FASTCKPT_CORE_PARITY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "bytes.h"
#include "mapped.h"
#include "status.h"
#include "transfer.h"
#include "workers.h"

namespace fastckpt {

struct ParityRequest {
  static constexpr int kMemory = -1;

  int source_fd = kMemory;
  int source_direct_fd = -1;        // the same file opened with O_DIRECT, or -1
  const uint8_t* memory = nullptr;  // the file's bytes, where it is not read from a descriptor
  bool mapped = false;              // that is a shared map of a file, pages of which may not be there
  uint64_t size = 0;                // of all of it
  uint64_t groups = 0;
  size_t rows = 0;  // leaves of parity of a group

  // The groups to see to, in rising order.
  const uint64_t* picked = nullptr;
  size_t picked_count = 0;

  // Leaf q of row j, of the group picked[q], lies at parity + (j * picked_count + q) * kLeafSize.
  // Without `recovered` it is written.
  uint8_t* parity = nullptr;

  // Null, or the digests of all leaves of the file: those of the groups are written.
  uint64_t* leaves = nullptr;

  // With `recovered`, lost leaves are found instead. `lost` are their numbers, in rising order; they
  // are not read. known[j * picked_count + q] tells whether that leaf of `parity` can be relied on.
  // Leaf i of `lost` comes to recovered + i * kLeafSize, and then solved[i] is set to 1. A group with
  // more lost leaves than known parity stays as it is.
  uint8_t* recovered = nullptr;
  const uint64_t* lost = nullptr;
  size_t lost_count = 0;
  const uint8_t* known = nullptr;
  uint8_t* solved = nullptr;

  // Numbers in range? On success, `total` is about how many bytes are read.
  Status Check(uint64_t* total) const;

  uint64_t leaf_count() const;
  uint64_t depth() const;  // leaves of the first group, which has the most
};

class ParityJob : public Job {
 public:
  // The request must have passed Check(), and what it points at must outlive the job.
  explicit ParityJob(const ParityRequest& request);

  void Work() override;

  // To be called once all threads have returned from Work(). Where a leaf could not be read, the
  // parity of its group means nothing. Offsets of faults are those in the file. Where a page of a
  // map is not there, all of the file is one fault with EFAULT, and nothing means anything.
  Status Finish(std::vector<ReadFault>* faults);

  const ParityRequest& request() const { return request_; }
  std::atomic<bool>* direct_works() { return &direct_works_; }

  // Calls `work`, which may read the memory, or cancels the job; see TryMapped().
  template <typename Work>
  void FromMemory(const Work& work) {
    if (!request_.mapped) return work();
    const size_t size = static_cast<size_t>(request_.size);
    if (!TryMapped(AddressOf(request_.memory), size, work)) GiveUpMap();
  }

 private:
  bool Next(size_t* first, size_t* last);
  void Fail(const Status& status);
  void GiveUpMap();

  const ParityRequest request_;
  const size_t width_;  // groups that a thread takes at a time, at most
  std::atomic<bool> direct_works_{true};
  std::optional<BusErrorsCaught> caught_;  // while a map is read

  std::mutex mutex_;
  size_t next_ = 0;                // guarded by mutex_
  bool map_given_up_ = false;      // guarded by mutex_
  Status status_;                  // guarded by mutex_
  std::vector<ReadFault> faults_;  // guarded by mutex_
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PARITY_H_

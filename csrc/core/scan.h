// Finds blocks by their magic number: what is left to do when nothing says where the records lie.

#ifndef FASTCKPT_CORE_SCAN_H_
#define FASTCKPT_CORE_SCAN_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "constants.h"
#include "status.h"
#include "workers.h"

namespace fastckpt {

class BlockScan : public Job {
 public:
  // Looks at every multiple of 4096 in [start, stop), up to the end of the file, for the 8 bytes of
  // `magic`. Parts that cannot be read are passed over.
  BlockScan(int fd, const uint8_t* magic, uint64_t start, uint64_t stop);

  void Work() override;

  // Once all threads have returned from Work(): the offsets, rising.
  Status Finish(std::vector<uint64_t>* offsets);

 private:
  void ScanSpan(uint8_t* buffer, uint64_t start, uint64_t stop, std::vector<uint64_t>* found);
  void Fail(const Status& status);
  bool Matches(const uint8_t* data) const;

  const int fd_;
  uint8_t magic_[kMagicSize];
  const uint64_t stop_;
  std::atomic<uint64_t> next_;
  std::atomic<bool> at_end_{false};

  std::mutex results_mutex_;
  Status status_;                // guarded by results_mutex_
  std::vector<uint64_t> found_;  // guarded by results_mutex_
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_SCAN_H_

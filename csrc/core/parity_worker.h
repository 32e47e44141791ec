// What one thread of a parity job does with some groups that follow each other.

#ifndef FASTCKPT_CORE_PARITY_WORKER_H_
#define FASTCKPT_CORE_PARITY_WORKER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "parity.h"
#include "span_reader.h"

namespace fastckpt {

class ParityWorker : private SpanObserver {
 public:
  explicit ParityWorker(ParityJob* job);

  // To be called once, with the most groups at a time. False when there is no memory.
  bool Prepare(size_t width);

  // Sees to `count` picked groups from number `first` on.
  void See(size_t first, size_t count);

  const std::vector<ReadFault>& faults() const { return faults_; }

 private:
  void BringRow(uint64_t row, size_t i);
  void BringRun(uint64_t first, uint64_t last, size_t group, size_t i);
  void OnData(size_t begin, size_t end) override;
  void OnFault(size_t begin, size_t end, int error) override;
  uint8_t* Row(size_t j, size_t group) const;
  void Recover(size_t group);

  ParityJob* const job_;
  const ParityRequest& request_;
  SpanReader reader_;
  AlignedBuffer room_;  // from a file: the leaves at hand; from memory: the last one, padded
  AlignedBuffer sums_;  // to recover: rows of what is not lost
  std::vector<ReadFault> faults_;

  size_t width_ = 0;
  size_t first_ = 0;  // the first of the picked groups, and how many
  size_t count_ = 0;
  // Of group g, the leaf of the i-th row at hand is sources_[g * kFold + i].
  std::vector<const uint8_t*> sources_;

  // The run of leaves that is read now.
  uint8_t* landing_ = nullptr;
  uint64_t landing_leaf_ = 0;
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PARITY_WORKER_H_

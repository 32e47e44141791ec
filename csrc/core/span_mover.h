// What one thread of a transfer does with one span: read, hash, write.

#ifndef FASTCKPT_CORE_SPAN_MOVER_H_
#define FASTCKPT_CORE_SPAN_MOVER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "span_reader.h"
#include "span_writer.h"
#include "transfer.h"

namespace fastckpt {

class SpanMover : private SpanObserver {
 public:
  explicit SpanMover(Transfer* transfer);

  // Moves [offset, offset + size) of an extent. `offset` is a multiple of the leaf size, and so is
  // `size` unless the extent ends there.
  void Move(size_t extent, uint64_t offset, size_t size);

  // Moves whole extents [first, last), which lie near each other in the source.
  void MoveTogether(size_t first, size_t last);

  const std::vector<ReadFault>& faults() const { return faults_; }
  const std::vector<Transfer::PartialCrc>& crcs() const { return crcs_; }

 private:
  void Begin(size_t extent, uint64_t offset, size_t size);
  bool ReadTogether(size_t first, size_t last);
  void MoveFromFile();
  void MoveFromMemory();
  void MoveMapped(size_t begin, size_t end);
  void MovePieces(size_t begin, size_t end);

  void OnData(size_t begin, size_t end) override;
  void OnFault(size_t begin, size_t end, int error) override;
  void Digest(const uint8_t* data, size_t begin, size_t size);
  size_t TallyEnd(size_t end) const;
  void Tally(const uint8_t* data, size_t begin, size_t end);
  void FinishCrc();
  size_t Padding(size_t end) const;
  void WriteRun();
  bool Write(const uint8_t* from, size_t begin, size_t size);

  Transfer* const transfer_;
  const TransferRequest& request_;
  const bool direct_;  // some end is read or written with O_DIRECT
  SpanReader reader_;
  SpanWriter writer_;
  AlignedBuffer scratch_;
  std::vector<FileSpan> together_;  // what was read in one request
  std::vector<ReadFault> faults_;
  std::vector<Transfer::PartialCrc> crcs_;

  // The span being moved; positions in it count from its start.
  const Extent* extent_ = nullptr;
  size_t extent_number_ = 0;
  uint64_t offset_ = 0;  // of the span in the extent
  size_t size_ = 0;
  uint32_t crc_ = 0;
  bool whole_ = true;  // no fault so far

  // File source: the span is read in steps. Where the present one lands, where it starts in the
  // span, and the run of its bytes that is still to be written, counted from the step's start.
  uint8_t* landing_ = nullptr;
  size_t step_begin_ = 0;
  size_t run_begin_ = 0;
  size_t run_end_ = 0;
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_SPAN_MOVER_H_

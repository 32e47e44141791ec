#include "span_mover.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "bytes.h"
#include "constants.h"
#include "crc32.h"
#include "hash.h"
#include "mapped.h"

namespace fastckpt {

SpanMover::SpanMover(Transfer* transfer)
    : transfer_(transfer),
      request_(transfer->request()),
      direct_((request_.source_fd >= 0 && request_.source_direct_fd >= 0) ||
              (request_.sink_fd >= 0 && request_.sink_direct_fd >= 0)),
      reader_(request_.source_fd, request_.source_direct_fd, transfer->source_direct_works(),
              transfer),
      writer_(request_.sink_fd, request_.sink_direct_fd, transfer->sink_direct_works()) {}

void SpanMover::Begin(size_t extent, uint64_t offset, size_t size) {
  extent_ = &request_.extents[extent];
  extent_number_ = extent;
  offset_ = offset;
  size_ = size;
  crc_ = 0;
  whole_ = true;
}

void SpanMover::Move(size_t extent, uint64_t offset, size_t size) {
  Begin(extent, offset, size);
  if (request_.source_fd >= 0) {
    MoveFromFile();
  } else {
    MoveFromMemory();
  }
  if (request_.crcs != nullptr) FinishCrc();
}

void SpanMover::MoveTogether(size_t first, size_t last) {
  const bool read = ReadTogether(first, last);
  auto span = together_.begin();
  for (size_t i = first; i < last && !transfer_->cancelled(); ++i) {
    const size_t size = static_cast<size_t>(request_.extents[i].size);
    if (!read || size == 0) {
      Move(i, 0, size);
      continue;
    }
    Begin(i, 0, size);
    landing_ = span->to;
    step_begin_ = run_begin_ = run_end_ = 0;
    reader_.Deliver(*span++, this);
    WriteRun();
    if (request_.crcs != nullptr) FinishCrc();
  }
}

bool SpanMover::ReadTogether(size_t first, size_t last) {
  const bool to_memory = request_.sink_fd == TransferRequest::kMemory;
  together_.clear();
  for (size_t i = first; i < last; ++i) {
    const Extent& extent = request_.extents[i];
    if (extent.size != 0)
      together_.push_back({extent.source, static_cast<size_t>(extent.size),
                           to_memory ? ToPointer(extent.sink) : nullptr});
  }
  if (together_.size() < 2) return false;
  if (!to_memory) {
    // Landing at the same place within 4 KiB as in the file lets direct reads do without a copy.
    const uint64_t begin = AlignDown(together_.front().offset, kAlignment);
    if (!scratch_.Reserve(
            static_cast<size_t>(together_.back().offset + together_.back().size - begin)))
      return false;
    for (FileSpan& span : together_) span.to = scratch_.data() + (span.offset - begin);
  }
  return reader_.ReadTogether(together_.data(), together_.size());
}

void SpanMover::MoveFromFile() {
  const uint64_t source = extent_->source + offset_;
  if (request_.sink_fd == TransferRequest::kMemory) {
    landing_ = ToPointer(extent_->sink + offset_);
    step_begin_ = 0;
    reader_.Read(source, landing_, size_, this);
    return;
  }
  // Through scratch memory, in steps: pieces that stay in the cache, or for direct I/O the whole
  // span, because the disk wants large requests.
  const size_t step = direct_ ? size_ : std::min(size_, kPiece);
  if (size_ == 0) return;
  if (!scratch_.Reserve(step + kAlignment)) return transfer_->Fail(Status::NoMemory());
  // Landing at the same place within 4 KiB as in the file lets direct reads do without a copy.
  landing_ = scratch_.data() + source % kAlignment;
  for (size_t at = 0; at < size_ && !transfer_->cancelled(); at += step) {
    step_begin_ = at;
    run_begin_ = run_end_ = 0;
    reader_.Read(source + at, landing_, std::min(step, size_ - at), this);
    WriteRun();
  }
}

void SpanMover::MoveFromMemory() {
  step_begin_ = 0;
  if (!request_.mapped) return MovePieces(0, size_);
  for (size_t at = 0; at < size_ && !transfer_->cancelled(); at += kReleaseStep) {
    const size_t end = std::min(at + kReleaseStep, size_);
    MoveMapped(at, end);
    if (request_.release) ReleaseMapped(extent_->source + offset_ + at, end - at);
  }
}

// Moves a part of mapped memory that may turn out not to be there.
void SpanMover::MoveMapped(size_t begin, size_t end) {
  const auto move = [this](size_t from, size_t to) {
    return TryMapped(extent_->source + offset_ + from, to - from, [=] { MovePieces(from, to); });
  };
  for (size_t at = begin; at < end && !transfer_->cancelled(); at += kPiece) {
    const size_t piece_end = std::min(at + kPiece, end);
    if (move(at, piece_end)) continue;
    for (size_t leaf = at; leaf < piece_end; leaf += kLeafSize) {
      const size_t leaf_end = std::min(leaf + kLeafSize, piece_end);
      if (!move(leaf, leaf_end)) OnFault(leaf, leaf_end, EFAULT);
    }
  }
}

void SpanMover::MovePieces(size_t begin, size_t end) {
  const uint8_t* const source = ToPointer(extent_->source + offset_);
  if (request_.sink_fd == TransferRequest::kNoSink) {
    for (size_t at = begin; at < end && !transfer_->cancelled(); at += kPiece)
      Digest(source + at, at, std::min(kPiece, end - at));
    return;
  }
  // Hashed is always a copy that nobody else can change, so that the digests are those of the bytes
  // that arrive, also when another thread writes to the source meanwhile. On the way to a file that
  // copy stays in the cache; for direct I/O it is the whole span, because the disk is fastest from
  // aligned memory in large requests.
  const bool to_memory = request_.sink_fd == TransferRequest::kMemory;
  const size_t step = direct_ || to_memory ? end - begin : std::min(kPiece, end - begin);
  if (!to_memory && end > begin && !scratch_.Reserve(step + kAlignment))
    return transfer_->Fail(Status::NoMemory());
  for (size_t start = begin; start < end && !transfer_->cancelled(); start += step) {
    const size_t stop = std::min(start + step, end);
    uint8_t* const to = to_memory ? ToPointer(extent_->sink + offset_) + start : scratch_.data();
    const size_t zeros = to_memory ? 0 : Padding(stop);
    size_t tallied = start;
    for (size_t at = start; at < stop && !transfer_->cancelled(); at += kPiece) {
      const size_t piece_end = std::min(at + kPiece, stop);
      std::memcpy(to + (at - start), source + at, piece_end - at);
      Digest(to + (at - start), at, piece_end - at);
      if (piece_end == stop) std::memset(to + (piece_end - start), 0, zeros);
      const size_t reached = piece_end == stop ? piece_end + zeros : TallyEnd(piece_end);
      if (request_.tally == nullptr || reached <= tallied) continue;
      Tally(to + (tallied - start), tallied, reached);
      tallied = reached;
    }
    if (to_memory || transfer_->cancelled()) continue;
    if (!Write(to, start, stop - start + zeros)) return;
  }
}

void SpanMover::OnData(size_t begin, size_t end) {
  Digest(landing_ + begin, step_begin_ + begin, end - begin);
  if (begin != run_end_) {  // a fault lies between
    WriteRun();
    run_begin_ = begin;
  }
  run_end_ = end;
}

void SpanMover::OnFault(size_t begin, size_t end, int error) {
  const uint64_t at = offset_ + step_begin_ + begin;
  faults_.push_back({extent_number_, at, end - begin, error});
  whole_ = false;
  if (request_.leaves == nullptr) return;
  uint64_t* const leaves = request_.leaves + extent_->first_leaf;
  std::fill(leaves + at / kLeafSize, leaves + LeafCount(at + (end - begin)), uint64_t{0});
}

void SpanMover::Digest(const uint8_t* data, size_t begin, size_t size) {
  if (request_.leaves != nullptr)
    HashLeaves(data, size, request_.leaves + extent_->first_leaf + (offset_ + begin) / kLeafSize);
  if (request_.crcs != nullptr && whole_) crc_ = Crc32(crc_, data, size);
}

// Where the last whole leaf of the sink ends that does not reach behind a part of the span: what is
// cut there lies in the cache when the rest of it comes.
size_t SpanMover::TallyEnd(size_t end) const {
  const size_t over = static_cast<size_t>((extent_->sink + offset_ + end) % kLeafSize);
  return end - std::min(end, over);
}

void SpanMover::Tally(const uint8_t* data, size_t begin, size_t end) {
  if (request_.tally == nullptr) return;
  const Status status =
      request_.tally->Add(data, end - begin, extent_->sink + offset_ + begin);
  if (!status.ok()) transfer_->Fail(status);
}

void SpanMover::FinishCrc() {
  if (size_ == extent_->size) {
    request_.crcs[extent_number_] = whole_ ? crc_ : 0;
  } else {
    crcs_.push_back({extent_number_, offset_, size_, crc_, whole_});
  }
}

// How many zeros of the sink belong behind a part of the span that ends there.
size_t SpanMover::Padding(size_t end) const {
  if (!request_.padded || offset_ + end != extent_->size) return 0;
  return static_cast<size_t>((0 - (extent_->sink + extent_->size)) % kAlignment);
}

// Writes what the reader has brought since the last fault.
void SpanMover::WriteRun() {
  if (request_.sink_fd < 0 || run_end_ == run_begin_ || transfer_->cancelled()) return;
  const uint8_t* const from = landing_ + run_begin_;
  const size_t begin = step_begin_ + run_begin_;
  const size_t size = run_end_ - run_begin_;
  const size_t zeros = Padding(begin + size);
  Tally(from, begin, begin + size);
  if (zeros == 0) {
    Write(from, begin, size);
  } else {
    // What lies behind may be the next extent, read along with this one.
    const uint64_t to = extent_->sink + offset_ + begin;
    const Status status = writer_.WritePadded(from, size, zeros, to);
    if (!status.ok()) transfer_->Fail(status);
  }
  run_begin_ = run_end_;
}

bool SpanMover::Write(const uint8_t* from, size_t begin, size_t size) {
  const Status status = writer_.Write(from, size, extent_->sink + offset_ + begin);
  if (!status.ok()) transfer_->Fail(status);
  return status.ok();
}

}  // namespace fastckpt

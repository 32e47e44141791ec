#include "transfer.h"

#include <algorithm>
#include <cstdint>
#include <new>

#include "bytes.h"
#include "constants.h"
#include "crc32.h"
#include "span_mover.h"

namespace fastckpt {

namespace {

// The size of a work item, as measured; a power of two. Page cache and memory: enough to make
// taking an item cheap, and whole huge pages, so that two threads do not fault in the same one.
// Direct I/O: the disk wants large requests.
constexpr uint64_t kBufferedBlock = 2 * kChunkSize;
constexpr uint64_t kDirectBlock = 8 * kChunkSize;
// The same where each thread needs memory of its own for it, to read what goes to no memory: as fast
// with eight threads, which have no more than 32 MiB then.
constexpr uint64_t kScratchBlock = 4 * kChunkSize;
constexpr size_t kMaxExtentsPerItem = 1024;
// Extents of a file are read in one direct request where no more than this lies between them: to
// skip it would cost the disk more.
constexpr uint64_t kMaxGap = kLeafSize;

constexpr uint64_t kMaxFileOffset = INT64_MAX;

uint64_t BlockFor(const TransferRequest& request) {
  if (request.source_fd >= 0 && request.source_direct_fd >= 0)
    return request.sink_fd == TransferRequest::kMemory ? kDirectBlock : kScratchBlock;
  return request.writes_directly() ? kDirectBlock : kBufferedBlock;
}

bool RangeFits(bool is_file, uint64_t start, uint64_t size) {
  if (is_file) return start <= kMaxFileOffset && size <= kMaxFileOffset - start;
  return !AddOverflows(start, size) && (start != 0 || size == 0);
}

}  // namespace

Status TransferRequest::Check(uint64_t* total) const {
  if (source_fd < kMemory) return Status::InvalidArgument("source_fd is not a descriptor");
  if (sink_fd < kNoSink) return Status::InvalidArgument("sink_fd is not a descriptor");
  if (tally != nullptr && sink_fd < 0) return Status::InvalidArgument("a tally is of a file");
  uint64_t sum = 0;
  for (size_t i = 0; i < extent_count; ++i) {
    const Extent& extent = extents[i];
    if (!RangeFits(source_fd >= 0, extent.source, extent.size))
      return Status::InvalidArgument("source out of range", i);
    if (sink_fd != kNoSink && !RangeFits(sink_fd >= 0, extent.sink, extent.size))
      return Status::InvalidArgument("sink out of range", i);
    if (leaves != nullptr && (extent.first_leaf > leaf_count ||
                              LeafCount(extent.size) > leaf_count - extent.first_leaf))
      return Status::InvalidArgument("leaves out of range", i);
    if (AddOverflows(sum, extent.size))
      return Status::InvalidArgument("total size out of range", i);
    sum += extent.size;
  }
  *total = sum;
  return Status::Ok();
}

Transfer::Transfer(const TransferRequest& request)
    : request_(request),
      block_(BlockFor(request)),
      direct_source_(request.source_fd >= 0 && request.source_direct_fd >= 0) {
  if (request.mapped) caught_.emplace();
}

void Transfer::Work() {
  try {
    SpanMover mover(this);
    WorkItem item;
    while (!cancelled() && Next(&item)) {
      if (item.partial) {
        mover.Move(item.first, item.offset, static_cast<size_t>(item.bytes));
      } else if (direct_source_) {
        mover.MoveTogether(item.first, item.last);
      } else {
        for (size_t i = item.first; i < item.last; ++i)
          mover.Move(i, 0, static_cast<size_t>(request_.extents[i].size));
      }
      AddProgress(item.bytes);
    }
    Collect(mover.faults(), mover.crcs());
  } catch (const std::bad_alloc&) {
    Fail(Status::NoMemory());
  }
}

// Items are made as they are asked for: a list of them would cost memory and time that grow with
// the transfer, before its first byte moves.
bool Transfer::Next(WorkItem* item) {
  std::lock_guard<std::mutex> lock(cursor_mutex_);
  if (cursor_extent_ == request_.extent_count) return false;
  item->first = cursor_extent_;
  item->offset = cursor_offset_;
  item->bytes = 0;
  const uint64_t left = request_.extents[cursor_extent_].size - cursor_offset_;
  item->partial = cursor_offset_ != 0 || left > block_;
  if (item->partial) {
    item->bytes = std::min(left, block_ - PastBoundary(cursor_offset_));
    cursor_offset_ += item->bytes;
    if (item->bytes == left) {
      ++cursor_extent_;
      cursor_offset_ = 0;
    }
    item->last = item->first + 1;
    return true;
  }
  do {
    item->bytes += request_.extents[cursor_extent_++].size;
  } while (cursor_extent_ < request_.extent_count &&
           cursor_extent_ - item->first < kMaxExtentsPerItem &&
           request_.extents[cursor_extent_].size <= block_ - item->bytes &&
           (direct_source_ ? IsNext(cursor_extent_) : !request_.writes_directly()));
  item->last = cursor_extent_;
  return true;
}

// Whether an extent lies in the source right behind the one before it.
bool Transfer::IsNext(size_t extent) const {
  const Extent& before = request_.extents[extent - 1];
  const uint64_t end = before.source + before.size;
  const uint64_t begin = request_.extents[extent].source;
  return begin >= end && begin - end <= kMaxGap;
}

// How far a block from `offset` on would reach over a boundary of the sink's memory, in whole
// leaves. Two threads that meet in one fresh huge page would both clear it, one for nothing.
uint64_t Transfer::PastBoundary(uint64_t offset) const {
  if (request_.sink_fd != TransferRequest::kMemory) return 0;
  const uint64_t end = request_.extents[cursor_extent_].sink + offset + block_;
  return AlignDown(end % block_, kLeafSize);
}

void Transfer::Fail(const Status& status) {
  {
    std::lock_guard<std::mutex> lock(results_mutex_);
    if (status_.ok()) status_ = status;
  }
  Cancel();
}

void Transfer::Collect(const std::vector<ReadFault>& faults,
                       const std::vector<PartialCrc>& crcs) {
  std::lock_guard<std::mutex> lock(results_mutex_);
  faults_.insert(faults_.end(), faults.begin(), faults.end());
  partial_crcs_.insert(partial_crcs_.end(), crcs.begin(), crcs.end());
}

Status Transfer::Finish(std::vector<ReadFault>* faults) {
  if (!status_.ok()) return status_;
  CombineCrcs();
  MergeFaults();
  faults->swap(faults_);
  return Status::Ok();
}

void Transfer::CombineCrcs() {
  std::sort(partial_crcs_.begin(), partial_crcs_.end(),
            [](const PartialCrc& a, const PartialCrc& b) {
              return a.extent != b.extent ? a.extent < b.extent : a.offset < b.offset;
            });
  for (size_t i = 0; i < partial_crcs_.size();) {
    const size_t extent = partial_crcs_[i].extent;
    uint32_t crc = 0;
    bool valid = true;
    for (; i < partial_crcs_.size() && partial_crcs_[i].extent == extent; ++i) {
      crc = Crc32Combine(crc, partial_crcs_[i].crc, partial_crcs_[i].size);
      valid = valid && partial_crcs_[i].valid;
    }
    request_.crcs[extent] = valid ? crc : 0;
  }
}

// Neighbouring faults of one cause become one: a file cut short is one fault per extent.
void Transfer::MergeFaults() {
  std::sort(faults_.begin(), faults_.end(), [](const ReadFault& a, const ReadFault& b) {
    return a.extent != b.extent ? a.extent < b.extent : a.offset < b.offset;
  });
  size_t kept = 0;
  for (const ReadFault& fault : faults_) {
    ReadFault* const before = kept != 0 ? &faults_[kept - 1] : nullptr;
    if (before != nullptr && before->extent == fault.extent && before->error == fault.error &&
        before->offset + before->size == fault.offset) {
      before->size += fault.size;
    } else {
      faults_[kept++] = fault;
    }
  }
  faults_.resize(kept);
}

}  // namespace fastckpt

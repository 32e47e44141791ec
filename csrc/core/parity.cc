#include "parity.h"

#include <algorithm>
#include <cerrno>
#include <new>

#include "bytes.h"
#include "constants.h"
#include "gf256.h"
#include "parity_worker.h"

namespace fastckpt {

namespace {

// Groups that follow each other have neighbouring leaves, which are read together. From the page
// cache: as few as make a call's cost small, so that four reads and the rows lie in the core's cache.
// From the disk: larger reads, as long as enough are left for all threads.
constexpr size_t kCachedWidth = 4;
constexpr size_t kDirectWidth = 16;
constexpr size_t kItems = 32;

size_t WidthFor(const ParityRequest& request) {
  if (request.source_fd < 0 || request.source_direct_fd < 0) return kCachedWidth;
  return std::clamp(request.picked_count / kItems, kCachedWidth, kDirectWidth);
}

bool Rises(const uint64_t* numbers, size_t count, uint64_t end) {
  for (size_t i = 0; i < count; ++i)
    if (numbers[i] >= end || (i != 0 && numbers[i] <= numbers[i - 1])) return false;
  return true;
}

}  // namespace

uint64_t ParityRequest::leaf_count() const { return LeafCount(size); }

uint64_t ParityRequest::depth() const {
  return groups == 0 ? 0 : leaf_count() / groups + (leaf_count() % groups != 0 ? 1 : 0);
}

Status ParityRequest::Check(uint64_t* total) const {
  if (source_fd < kMemory) return Status::InvalidArgument("source_fd is not a descriptor");
  if (size > INT64_MAX) return Status::InvalidArgument("size out of range");
  if (rows == 0 || rows > gf256::kMaxRows) return Status::InvalidArgument("rows out of range");
  if (groups > leaf_count() || depth() > gf256::kMaxDepth || (groups == 0 && size != 0))
    return Status::InvalidArgument("groups out of range");
  if (!Rises(picked, picked_count, groups))
    return Status::InvalidArgument("picked groups are out of range or order");
  if (!Rises(lost, lost_count, leaf_count()))
    return Status::InvalidArgument("lost leaves are out of range or order");
  *total = picked_count * depth() * kLeafSize;  // groups and depth are those of leaves that exist
  return Status::Ok();
}

ParityJob::ParityJob(const ParityRequest& request)
    : request_(request), width_(WidthFor(request)) {
  if (request.mapped) caught_.emplace();
}

void ParityJob::Work() {
  ParityWorker worker(this);
  size_t first = 0, last = 0;
  if (!worker.Prepare(width_)) return Fail(Status::NoMemory());
  try {
    while (!cancelled() && Next(&first, &last)) {
      worker.See(first, last - first);
      if (request_.mapped) ReleaseMapped(AddressOf(request_.memory), static_cast<size_t>(request_.size));
      AddProgress((last - first) * request_.depth() * kLeafSize);
    }
  } catch (const std::bad_alloc&) {  // of the list of faults, or in direct reads
    Fail(Status::NoMemory());
  }
  std::lock_guard<std::mutex> lock(mutex_);
  faults_.insert(faults_.end(), worker.faults().begin(), worker.faults().end());
}

// Picked groups [first, last), which follow each other in the file.
bool ParityJob::Next(size_t* first, size_t* last) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (next_ == request_.picked_count) return false;
  *first = next_++;
  while (next_ < request_.picked_count && next_ - *first < width_ &&
         request_.picked[next_] == request_.picked[next_ - 1] + 1)
    ++next_;
  *last = next_;
  return true;
}

void ParityJob::Fail(const Status& status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (status_.ok()) status_ = status;
  }
  Cancel();
}

void ParityJob::GiveUpMap() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    map_given_up_ = true;
  }
  Cancel();
}

Status ParityJob::Finish(std::vector<ReadFault>* faults) {
  if (!status_.ok()) return status_;
  if (map_given_up_) faults_.push_back({0, 0, request_.size, EFAULT});
  std::sort(faults_.begin(), faults_.end(), [](const ReadFault& a, const ReadFault& b) {
    return a.offset < b.offset;
  });
  faults->swap(faults_);
  return Status::Ok();
}

}  // namespace fastckpt

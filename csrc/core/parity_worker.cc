#include "parity_worker.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "bytes.h"
#include "constants.h"
#include "gf256.h"
#include "hash.h"
#include "parity_kernels.h"

namespace fastckpt {

namespace {

using gf256::kFold;

alignas(64) constexpr uint8_t kZeros[kLeafSize] = {};

}  // namespace

ParityWorker::ParityWorker(ParityJob* job)
    : job_(job),
      request_(job->request()),
      reader_(request_.source_fd, request_.source_direct_fd, job->direct_works(), job) {}

bool ParityWorker::Prepare(size_t width) {
  width_ = width;
  try {
    sources_.resize(width * kFold);
  } catch (const std::bad_alloc&) {
    return false;
  }
  const size_t leaves = request_.source_fd >= 0 ? width * kFold : 1;
  if (!room_.Reserve(leaves * kLeafSize)) return false;
  return request_.recovered == nullptr || sums_.Reserve(width * request_.rows * kLeafSize);
}

// By Horner's rule from the last leaf of each group to the first, kFold of them at a time: these are
// brought, and hashed, and folded while they lie in the core's cache.
void ParityWorker::See(size_t first, size_t count) {
  first_ = first;
  count_ = count;
  for (size_t j = 0; j < request_.rows; ++j) std::memset(Row(j, 0), 0, count * kLeafSize);
  const uint64_t depth = request_.depth();
  for (uint64_t end = (depth + kFold - 1) / kFold * kFold; end != 0; end -= kFold) {
    for (size_t i = 0; i < kFold; ++i) {
      for (size_t group = 0; group < count; ++group) sources_[group * kFold + i] = kZeros;
      BringRow(end - 1 - i, i);
    }
    if (job_->cancelled()) return;
    for (size_t group = 0; group < count; ++group) {
      uint8_t* rows[gf256::kMaxRows];
      for (size_t j = 0; j < request_.rows; ++j) rows[j] = Row(j, group);
      const uint8_t* const* const sources = &sources_[group * kFold];
      job_->FromMemory([&] { gf256::Fold(sources, rows, request_.rows); });
    }
  }
  if (request_.recovered == nullptr || job_->cancelled()) return;
  for (size_t group = 0; group < count; ++group) Recover(group);
}

// Brings the leaves that are number `row` of the groups as the i-th row at hand: each run of them
// between those that are lost.
void ParityWorker::BringRow(uint64_t row, size_t i) {
  if (row >= request_.depth()) return;
  const uint64_t begin = row * request_.groups + request_.picked[first_];
  const uint64_t end = std::min(begin + count_, request_.leaf_count());
  const uint64_t* const lost_end = request_.lost + request_.lost_count;
  const uint64_t* lost = std::lower_bound(request_.lost, lost_end, begin);
  for (uint64_t leaf = begin; leaf < end && !job_->cancelled();) {
    const uint64_t stop = lost != lost_end && *lost < end ? *lost++ : end;
    if (leaf < stop) BringRun(leaf, stop, static_cast<size_t>(leaf - begin), i);
    leaf = stop + 1;
  }
}

// Leaves [first, last), of the groups from `group` on.
void ParityWorker::BringRun(uint64_t first, uint64_t last, size_t group, size_t i) {
  const uint64_t offset = first * kLeafSize;
  const size_t size = static_cast<size_t>(std::min(last * kLeafSize, request_.size) - offset);
  const size_t whole = size / kLeafSize * kLeafSize;
  const uint8_t* data = request_.memory + offset;
  uint8_t* tail = room_.data();
  if (request_.source_fd >= 0) {
    landing_ = room_.data() + (i * width_ + group) * kLeafSize;
    landing_leaf_ = first;
    reader_.Read(offset, landing_, size, this);
    data = landing_;
    tail = landing_ + whole;
  } else {
    job_->FromMemory([&] {
      if (request_.leaves != nullptr) HashLeaves(data, size, request_.leaves + first);
      if (whole < size) std::memcpy(tail, data + whole, size - whole);
    });
  }
  for (size_t at = 0; at < size; at += kLeafSize)
    sources_[(group + at / kLeafSize) * kFold + i] = at < whole ? data + at : tail;
  if (whole < size) std::memset(tail + (size - whole), 0, kLeafSize - (size - whole));
}

void ParityWorker::OnData(size_t begin, size_t end) {
  if (request_.leaves != nullptr)
    HashLeaves(landing_ + begin, end - begin, request_.leaves + landing_leaf_ + begin / kLeafSize);
}

void ParityWorker::OnFault(size_t begin, size_t end, int error) {
  faults_.push_back({0, landing_leaf_ * kLeafSize + begin, end - begin, error});
  std::memset(landing_ + begin, 0, end - begin);
  if (request_.leaves == nullptr) return;
  uint64_t* const leaves = request_.leaves + landing_leaf_;
  std::fill(leaves + begin / kLeafSize, leaves + LeafCount(end), uint64_t{0});
}

// Where row j of the group that is number `group` of those at hand is summed up.
uint8_t* ParityWorker::Row(size_t j, size_t group) const {
  if (request_.recovered != nullptr) return sums_.data() + (j * width_ + group) * kLeafSize;
  return request_.parity + (j * request_.picked_count + first_ + group) * kLeafSize;
}

void ParityWorker::Recover(size_t group) {
  size_t places[gf256::kMaxRows], found[gf256::kMaxRows], rows[gf256::kMaxRows];
  size_t count = 0;
  const uint64_t* const lost_end = request_.lost + request_.lost_count;
  const uint64_t* lost = request_.lost;
  for (uint64_t place = 0; place < request_.depth(); ++place) {
    const uint64_t leaf = place * request_.groups + request_.picked[first_ + group];
    lost = std::lower_bound(lost, lost_end, leaf);
    if (lost == lost_end || *lost != leaf) continue;
    if (count == request_.rows) return;
    places[count] = static_cast<size_t>(place);
    found[count++] = static_cast<size_t>(lost - request_.lost);
  }
  size_t known = 0;
  for (size_t j = 0; j < request_.rows && known < count; ++j)
    if (request_.known[j * request_.picked_count + first_ + group] != 0) rows[known++] = j;
  if (known < count) return;
  uint8_t* data[gf256::kMaxRows];
  for (size_t q = 0; q < count; ++q) {
    const size_t at = rows[q] * request_.picked_count + first_ + group;
    const uint8_t* const parity = request_.parity + at * kLeafSize;
    data[q] = request_.recovered + found[q] * kLeafSize;
    gf256::Subtract(parity, Row(rows[q], group), data[q]);
  }
  gf256::Solve(places, rows, count, data);
  for (size_t q = 0; q < count; ++q) request_.solved[found[q]] = 1;
}

}  // namespace fastckpt

#include "parity_tally.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "bytes.h"
#include "constants.h"
#include "gf256.h"
#include "hash.h"
#include "parity.h"

namespace fastckpt {

Status ParityTally::Check(const Plan& plan) {
  ParityRequest request;
  request.size = plan.size;
  request.groups = plan.groups;
  request.rows = plan.rows;
  uint64_t total = 0;
  return request.Check(&total);
}

ParityTally::ParityTally(const Plan& plan) : plan_(plan) {
  const uint64_t leaf_count = LeafCount(plan_.size);
  if (leaf_count == 0) return;
  std::memset(plan_.parity, 0, plan_.rows * plan_.groups * kLeafSize);
  const std::vector<uint8_t> zeros(kLeafSize);
  uint64_t digest = 0;
  HashLeaves(zeros.data(), kLeafSize, &digest);
  std::fill(plan_.leaves, plan_.leaves + leaf_count, digest);
}

Status ParityTally::Add(const uint8_t* data, size_t size, uint64_t offset) {
  if (offset >= plan_.size) return Status::Ok();
  size = static_cast<size_t>(std::min<uint64_t>(size, plan_.size - offset));
  try {
    while (size != 0) {
      const uint64_t leaf = offset / kLeafSize;
      const size_t at = static_cast<size_t>(offset % kLeafSize);
      size_t taken = size / kLeafSize * kLeafSize;
      if (at == 0 && taken != 0) {
        AddLeaves(data, leaf, taken / kLeafSize);
      } else {
        taken = std::min(size, kLeafSize - at);
        AddPart(data, taken, leaf, at);
      }
      data += taken;
      offset += taken;
      size -= taken;
    }
  } catch (const std::bad_alloc&) {
    return Status::NoMemory();
  }
  return Status::Ok();
}

// Whole leaves. They are hashed and added a few at a time, while they lie in the core's cache.
void ParityTally::AddLeaves(const uint8_t* data, uint64_t first, uint64_t count) {
  while (count != 0) {
    const uint64_t place = first / plan_.groups, group = first % plan_.groups;
    const uint64_t stripe = group / kStripe;
    const uint64_t end = std::min((stripe + 1) * kStripe, plan_.groups);
    const uint64_t some = std::min(count, end - group);
    const size_t size = static_cast<size_t>(some * kLeafSize);
    HashLeaves(data, size, plan_.leaves + first);
    uint8_t* rows[gf256::kMaxRows];
    for (size_t j = 0; j < plan_.rows; ++j)
      rows[j] = plan_.parity + (j * plan_.groups + group) * kLeafSize;
    const std::lock_guard<std::mutex> lock(row_locks_[stripe % kLocks]);
    gf256::AddToRows(place, data, size, rows, plan_.rows);
    data += size;
    first += some;
    count -= some;
  }
}

// A part of a leaf: it waits for the others.
void ParityTally::AddPart(const uint8_t* data, size_t size, uint64_t leaf, size_t at) {
  Open whole;
  {
    const std::lock_guard<std::mutex> lock(open_lock_);
    Open& open = open_[leaf];
    if (open.data.empty()) open.data.resize(kLeafSize);
    std::memcpy(open.data.data() + at, data, size);
    open.have += size;
    if (open.have < SizeOf(leaf)) return;
    whole = std::move(open);
    open_.erase(leaf);
  }
  AddLeaves(whole.data.data(), leaf, 1);
}

size_t ParityTally::SizeOf(uint64_t leaf) const {
  return static_cast<size_t>(std::min<uint64_t>(kLeafSize, plan_.size - leaf * kLeafSize));
}

void ParityTally::Finish() {
  const std::lock_guard<std::mutex> lock(open_lock_);
  for (const auto& [leaf, open] : open_) AddLeaves(open.data.data(), leaf, 1);
  open_.clear();
}

}  // namespace fastckpt

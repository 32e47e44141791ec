#include "slot_filler.h"

#include <algorithm>
#include <new>

namespace fastckpt {

TransferRequest Turns::Part(const TransferRequest& whole, size_t turn) const {
  const uint64_t begin = turn == 0 ? 0 : ends[turn - 1];
  TransferRequest part = whole;
  part.extents += begin;
  part.extent_count = static_cast<size_t>(ends[turn] - begin);
  if (part.crcs != nullptr) part.crcs += begin;
  if (hashed != nullptr && hashed[turn] == 0) part.leaves = nullptr;
  if (sources != nullptr) {
    part.source_fd = sources[2 * turn];
    part.source_direct_fd = sources[2 * turn + 1];
  }
  return part;
}

SlotFiller::SlotFiller(const TransferRequest& request, const Turns& turns)
    : request_(request), turns_(turns), window_(turns.slots) {}

Status SlotFiller::Check(const TransferRequest& request, const Turns& turns) {
  if (turns.slots == 0) return Status::InvalidArgument("no slot to fill");
  uint64_t end = 0;
  for (size_t turn = 0; turn < turns.count; ++turn) {
    if (turns.ends[turn] < end || turns.ends[turn] > request.extent_count)
      return Status::InvalidArgument("a turn ends out of order", turns.ends[turn]);
    uint64_t total = 0;
    const Status status = turns.Part(request, turn).Check(&total);
    if (!status.ok()) return status;
    end = turns.ends[turn];
  }
  if (end != request.extent_count) return Status::InvalidArgument("extents in no turn", end);
  return Status::Ok();
}

void SlotFiller::Work() {
  size_t turn = 0;
  while (Transfer* const transfer = Enter(&turn)) {
    transfer->Work();
    Leave(turn++);
  }
}

void SlotFiller::WorkOn(size_t turn) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (turn < released_ || turn - released_ >= window_.size()) return;
  }
  size_t entered = turn;
  Transfer* const transfer = Enter(&entered);
  if (transfer == nullptr) return;
  transfer->Work();
  Leave(entered);
}

// The transfer of the first turn from `*turn` on that may still have something to take.
Transfer* SlotFiller::Enter(size_t* turn) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    *turn = std::max(*turn, released_);
    if (cancelled() || !status_.ok() || *turn >= turns_.count) return nullptr;
    if (*turn - released_ >= window_.size()) {
      opened_.wait(lock);
      continue;
    }
    Turn& slot = window_[*turn % window_.size()];
    if (slot.full) {
      ++*turn;
      continue;
    }
    if (slot.transfer == nullptr) {
      slot.transfer.reset(new (std::nothrow) Transfer(turns_.Part(request_, *turn)));
      if (slot.transfer == nullptr) {
        status_ = Status::NoMemory();
        filled_.notify_all();
        return nullptr;
      }
    }
    ++slot.working;
    return slot.transfer.get();
  }
}

// A thread only returns from a transfer when nothing is left to take: the last one out fills it.
void SlotFiller::Leave(size_t turn) {
  std::lock_guard<std::mutex> lock(mutex_);
  Turn& slot = window_[turn % window_.size()];
  if (--slot.working != 0) return;
  slot.full = true;
  filled_.notify_all();
}

bool SlotFiller::WaitFor(size_t turn, std::chrono::milliseconds timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  return filled_.wait_for(lock, timeout, [&] {
    return cancelled() || !status_.ok() || turn < released_ ||
           (turn - released_ < window_.size() && window_[turn % window_.size()].full);
  });
}

Status SlotFiller::Take(size_t turn, std::vector<ReadFault>* faults) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!status_.ok()) return status_;
  if (turn < released_ || turn - released_ >= window_.size() ||
      !window_[turn % window_.size()].full)
    return Status::InvalidArgument("this turn has no full slot", turn);
  const Status status = window_[turn % window_.size()].transfer->Finish(faults);
  for (ReadFault& fault : *faults) fault.extent += turn == 0 ? 0 : turns_.ends[turn - 1];
  return status;
}

bool SlotFiller::Release() {
  std::lock_guard<std::mutex> lock(mutex_);
  Turn& slot = window_[released_ % window_.size()];
  if (released_ == turns_.count || !slot.full) return false;
  moved_ += slot.transfer->progress();
  slot = Turn();
  ++released_;
  opened_.notify_all();
  return true;
}

uint64_t SlotFiller::Moved() {
  std::lock_guard<std::mutex> lock(mutex_);
  uint64_t moved = moved_;
  for (const Turn& slot : window_)
    if (slot.transfer != nullptr) moved += slot.transfer->progress();
  return moved;
}

void SlotFiller::Close() {
  std::lock_guard<std::mutex> lock(mutex_);
  Cancel();
  for (Turn& slot : window_)
    if (slot.transfer != nullptr) slot.transfer->Cancel();
  opened_.notify_all();
  filled_.notify_all();
}

}  // namespace fastckpt

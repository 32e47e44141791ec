#include "slot_filler.h"

#include <algorithm>
#include <new>

namespace fastckpt {

SlotFiller::SlotFiller(const TransferRequest& request, const uint64_t* ends, size_t turns,
                       size_t slots)
    : request_(request), ends_(ends), turns_(turns), window_(slots) {}

Status SlotFiller::Check(const TransferRequest& request, const uint64_t* ends, size_t turns,
                         size_t slots) {
  if (slots == 0) return Status::InvalidArgument("no slot to fill");
  uint64_t end = 0;
  for (size_t turn = 0; turn < turns; ++turn) {
    if (ends[turn] < end || ends[turn] > request.extent_count)
      return Status::InvalidArgument("a turn ends out of order", ends[turn]);
    end = ends[turn];
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
    if (cancelled() || !status_.ok() || *turn >= turns_) return nullptr;
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
      slot.transfer.reset(new (std::nothrow) Transfer(Part(*turn)));
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

TransferRequest SlotFiller::Part(size_t turn) const {
  const uint64_t begin = turn == 0 ? 0 : ends_[turn - 1];
  TransferRequest part = request_;
  part.extents += begin;
  part.extent_count = static_cast<size_t>(ends_[turn] - begin);
  if (part.crcs != nullptr) part.crcs += begin;
  return part;
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
  for (ReadFault& fault : *faults) fault.extent += turn == 0 ? 0 : ends_[turn - 1];
  return status;
}

bool SlotFiller::Release() {
  std::lock_guard<std::mutex> lock(mutex_);
  Turn& slot = window_[released_ % window_.size()];
  if (released_ == turns_ || !slot.full) return false;
  slot = Turn();
  ++released_;
  opened_.notify_all();
  return true;
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

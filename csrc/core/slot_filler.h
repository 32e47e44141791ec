// Fills slots of memory with the bytes of a file, turn after turn, on threads that stay.
//
// A plan is a list of turns, each some extents that go into one slot; turn t uses slot t % slots.
// The threads work on the first turn that has something left to take and move on to the next one
// while others still finish: no thread is started, and none waits, between two turns. A turn is
// open as soon as the slot it needs has been released.

#ifndef FASTCKPT_CORE_SLOT_FILLER_H_
#define FASTCKPT_CORE_SLOT_FILLER_H_

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "status.h"
#include "transfer.h"
#include "workers.h"

namespace fastckpt {

class SlotFiller : public Job {
 public:
  // The request holds the extents of all turns, one turn after the other, with addresses in the
  // slots as sinks; it must have passed Check(). `ends` says, for each turn, which extent is the
  // first that no longer belongs to it: Check() tells whether it does so properly.
  SlotFiller(const TransferRequest& request, const uint64_t* ends, size_t turns, size_t slots);

  static Status Check(const TransferRequest& request, const uint64_t* ends, size_t turns,
                      size_t slots);

  // Fills turns as slots become free, until the last turn is filled or the filler is closed.
  void Work() override;

  // Fills what is left of one open turn, for a caller that could start no thread.
  void WorkOn(size_t turn);

  // Waits until a turn is full, at most for `timeout`. True when it is, and when the filler has
  // been closed.
  bool WaitFor(size_t turn, std::chrono::milliseconds timeout);

  // What became of a full turn. The extents of the faults are counted over all turns.
  Status Take(size_t turn, std::vector<ReadFault>* faults);

  // The slot of the oldest turn that still has one may be filled again. False when there is none
  // that is full.
  bool Release();

  // Stops the threads: they return from Work() within one piece of I/O.
  void Close();

 private:
  struct Turn {
    std::unique_ptr<Transfer> transfer;  // made by the first thread that comes to it
    int working = 0;                     // threads in it
    bool full = false;
  };

  Transfer* Enter(size_t* turn);
  void Leave(size_t turn);
  TransferRequest Part(size_t turn) const;

  const TransferRequest request_;
  const uint64_t* const ends_;
  const size_t turns_;

  std::mutex mutex_;
  std::condition_variable opened_;
  std::condition_variable filled_;
  std::vector<Turn> window_;  // guarded by mutex_: the turns that have a slot now
  size_t released_ = 0;       // guarded by mutex_: the turns that no longer have one
  Status status_;             // guarded by mutex_: why no turn can be worked on
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_SLOT_FILLER_H_

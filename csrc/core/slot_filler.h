// Fills slots of memory with the bytes of a file, or a file from memory or another file, turn after
// turn, on threads that stay.
//
// A plan is a list of turns, each some extents that go into one slot, or that have their bytes there;
// turn t uses slot t % slots.
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

// The turns of a plan. `ends` says, for each, which extent is the first that no longer belongs to it.
struct Turns {
  const uint64_t* ends = nullptr;
  const int32_t* sources = nullptr;  // two for each turn, if they differ: source_fd, source_direct_fd
  const uint8_t* hashed = nullptr;   // one for each turn: 0 where no leaf is hashed. Whoever holds it
                                     // may change what belongs to a turn that is not open yet
  size_t count = 0;
  size_t slots = 0;

  // What a turn moves.
  TransferRequest Part(const TransferRequest& whole, size_t turn) const;
};

class SlotFiller : public Job {
 public:
  // The request holds the extents of all turns, one turn after the other. It must have passed
  // Check(), which also tells whether every extent belongs to a turn.
  SlotFiller(const TransferRequest& request, const Turns& turns);

  static Status Check(const TransferRequest& request, const Turns& turns);

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

  // Bytes moved so far in all turns.
  uint64_t Moved();

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

  const TransferRequest request_;
  const Turns turns_;

  std::mutex mutex_;
  std::condition_variable opened_;
  std::condition_variable filled_;
  std::vector<Turn> window_;  // guarded by mutex_: the turns that have a slot now
  size_t released_ = 0;       // guarded by mutex_: the turns that no longer have one
  uint64_t moved_ = 0;        // guarded by mutex_: the bytes of these
  Status status_;             // guarded by mutex_: why no turn can be worked on
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_SLOT_FILLER_H_

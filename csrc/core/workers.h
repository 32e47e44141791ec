// Threads for the length of one job.
//
// Threads are started per job and joined at its end. Starting one costs some 20 us, far less than
// the jobs they are started for, and a process that forks finds no threads to lose.

#ifndef FASTCKPT_CORE_WORKERS_H_
#define FASTCKPT_CORE_WORKERS_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "status.h"

namespace fastckpt {

// Work that any number of threads can share in.
class Job {
 public:
  virtual ~Job() = default;

  // Called once per thread; returns when nothing is left to take, or soon after Cancel(). Must not
  // throw.
  virtual void Work() = 0;

  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  // Bytes dealt with so far.
  uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }

 protected:
  void AddProgress(uint64_t bytes) { progress_.fetch_add(bytes, std::memory_order_relaxed); }

 private:
  std::atomic<bool> cancelled_{false};
  std::atomic<uint64_t> progress_{0};
};

class Workers {
 public:
  Workers() = default;
  // Cancels what still runs and waits for it.
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // Starts up to `count` threads on `job`, which must outlive this object. Fewer threads than asked
  // for are accepted; it is an error only when not one could be started.
  Status Start(Job* job, int count);

  // Waits until all threads have ended, at most for `timeout`. True when they have.
  bool WaitFor(std::chrono::milliseconds timeout);

  // Waits for the threads to end and gives them back.
  void Join();

 private:
  void Run();

  Job* job_ = nullptr;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable ended_;
  size_t running_ = 0;  // guarded by mutex_
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_WORKERS_H_

#include "workers.h"

#include <pthread.h>
#include <signal.h>

#include <cerrno>
#include <new>
#include <system_error>

namespace fastckpt {

namespace {

// Threads inherit the mask of their creator. With the signals blocked in the workers, the program's
// handlers keep running on its own threads, and no I/O call of a worker is cut short. The signals
// of a thread's own faults stay open: blocked, they would end the process past any handler.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT})
      sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace

Workers::~Workers() {
  if (!threads_.empty()) job_->Cancel();
  Join();
}

Status Workers::Start(Job* job, int count) {
  job_ = job;
  int error = 0;
  try {
    threads_.reserve(static_cast<size_t>(count));
    BlockSignals block;
    for (int i = 0; i < count; ++i) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        ++running_;
      }
      try {
        threads_.emplace_back(&Workers::Run, this);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        --running_;
        throw;
      }
    }
  } catch (const std::system_error& failure) {
    error = failure.code().value();
  } catch (const std::bad_alloc&) {
    error = ENOMEM;
  }
  if (!threads_.empty()) return Status::Ok();
  return error == ENOMEM ? Status::NoMemory() : Status::ThreadError(error != 0 ? error : EAGAIN);
}

void Workers::Run() {
  job_->Work();
  std::lock_guard<std::mutex> lock(mutex_);
  if (--running_ == 0) ended_.notify_all();
}

bool Workers::WaitFor(std::chrono::milliseconds timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  return ended_.wait_for(lock, timeout, [this] { return running_ == 0; });
}

void Workers::Join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace fastckpt

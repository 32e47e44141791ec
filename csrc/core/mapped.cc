#include "mapped.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

#include "bytes.h"

namespace fastckpt {

namespace {

thread_local MappedRange* reading = nullptr;
thread_local bool passing_on = false;

std::mutex mutex;
int users = 0;              // guarded by mutex
struct sigaction previous;  // written under the mutex, while the handler is not in place

void PassOn(int signal, siginfo_t* info, void* context) {
  const bool is_default = (previous.sa_flags & SA_SIGINFO) == 0 && previous.sa_handler == SIG_DFL;
  const bool is_ignored = (previous.sa_flags & SA_SIGINFO) == 0 && previous.sa_handler == SIG_IGN;
  if (is_ignored && info->si_code <= 0) return;  // sent by somebody, and not a fault of ours
  // A handler that was installed over this one passes on to it, and would be passed back to for ever.
  if (is_default || is_ignored || passing_on) {
    ::signal(signal, SIG_DFL);
    raise(signal);
    return;
  }
  passing_on = true;
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, context);
  } else {
    previous.sa_handler(signal);
  }
  passing_on = false;
}

void OnBusError(int signal, siginfo_t* info, void* context) {
  MappedRange* const range = reading;
  const uint64_t at = AddressOf(info->si_addr);
  if (range != nullptr && info->si_code > 0 && at >= range->begin && at < range->end)
    siglongjmp(range->back, 1);
  PassOn(signal, info, context);
}

}  // namespace

BusErrorsCaught::BusErrorsCaught() {
  std::lock_guard<std::mutex> lock(mutex);
  if (users++ != 0) return;
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  // Not blocked while the handler runs: it is left by a jump, which does not restore the mask.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, nullptr, &previous);
  sigaction(SIGBUS, &action, nullptr);
}

BusErrorsCaught::~BusErrorsCaught() {
  std::lock_guard<std::mutex> lock(mutex);
  if (--users != 0) return;
  struct sigaction now;
  sigaction(SIGBUS, nullptr, &now);
  // One that was installed meanwhile stays.
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == OnBusError)
    sigaction(SIGBUS, &previous, nullptr);
}

void SetMappedRange(MappedRange* range) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  reading = range;
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

void ReleaseMapped(uint64_t address, size_t size) {
#if defined(__linux__)
  static const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  uint64_t start = 0;
  if (!AlignUp(address, page, &start)) return;
  const uint64_t end = AlignDown(address + size, page);
  if (start < end)
    madvise(reinterpret_cast<void*>(static_cast<uintptr_t>(start)),
            static_cast<size_t>(end - start), MADV_DONTNEED);  // a hint: failure changes nothing
#else
  (void)address, (void)size;
#endif
}

}  // namespace fastckpt

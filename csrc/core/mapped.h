// Reading mapped files whose pages may turn out not to be there.
//
// Touching a page of a mapped file that the file no longer has, or that the disk cannot read, raises
// SIGBUS, and that ends the process. To ask the kernel for the pages first costs nearly as much as
// hashing them, and a file can be cut between the question and the reading. So the signal is caught,
// for as long as somebody reads, and only where somebody does.

#ifndef FASTCKPT_CORE_MAPPED_H_
#define FASTCKPT_CORE_MAPPED_H_

#include <setjmp.h>

#include <cstddef>
#include <cstdint>

namespace fastckpt {

// While one lives, a thread inside TryMapped() survives SIGBUS. Other SIGBUS go where they went
// before; the program's own handler is put back at the end.
class BusErrorsCaught {
 public:
  BusErrorsCaught();
  ~BusErrorsCaught();
  BusErrorsCaught(const BusErrorsCaught&) = delete;
  BusErrorsCaught& operator=(const BusErrorsCaught&) = delete;
};

// What a thread reads now, and where it goes on when that is not there.
struct MappedRange {
  uint64_t begin;
  uint64_t end;
  sigjmp_buf back;
};

// Null: this thread reads nothing that may not be there.
void SetMappedRange(MappedRange* range);

// Calls `work`, which reads [address, address + size). False when a page of it was not there: then
// `work` was left where it stood, without destructors, and must not own anything.
template <typename Work>
bool TryMapped(uint64_t address, size_t size, const Work& work) {
  MappedRange range;
  range.begin = address;
  range.end = address + size;
  const bool there = sigsetjmp(range.back, 0) == 0;
  if (there) {
    SetMappedRange(&range);
    work();
  }
  SetMappedRange(nullptr);
  return there;
}

// Gives back the whole pages within [address, address + size) of a shared map of a file: they stay
// in the page cache, and no longer count as this process's memory. Taken away a piece at a time, by
// the threads at work, they need not be taken away by one thread at the end. Only for such maps:
// from other memory this would take its content.
void ReleaseMapped(uint64_t address, size_t size);

// How much to give back at a time.
inline constexpr size_t kReleaseStep = 2 * 1024 * 1024;

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_MAPPED_H_

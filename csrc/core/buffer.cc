#include "buffer.h"

#include <sys/mman.h>

#include "bytes.h"

namespace fastckpt {

namespace {

constexpr size_t kHugePage = 2 * 1024 * 1024;

}  // namespace

AlignedBuffer::~AlignedBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
}

bool AlignedBuffer::Reserve(size_t size) {
  if (size <= size_) return true;
  // From 2 MiB on, whole huge pages: the faults of 4 KiB pages cost more than the copy into them.
  const size_t unit = size >= kHugePage ? kHugePage : kAlignment;
  uint64_t rounded = 0;
  if (!AlignUp(size, unit, &rounded) || rounded > SIZE_MAX - kHugePage) return false;
  const size_t usable = static_cast<size_t>(rounded);
  const size_t total = unit == kHugePage ? usable + kHugePage : usable;
  void* mapping = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return false;
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
  mapping_ = mapping;
  mapping_size_ = total;
  const uint64_t address = AddressOf(mapping);
  uint64_t aligned = address;
  if (unit == kHugePage && !AlignUp(address, kHugePage, &aligned)) aligned = address;
  data_ = static_cast<uint8_t*>(mapping) + (aligned - address);
  size_ = usable;
#if defined(MADV_HUGEPAGE)
  if (unit == kHugePage) madvise(data_, size_, MADV_HUGEPAGE);  // a hint: failure changes nothing
#endif
  return true;
}

}  // namespace fastckpt

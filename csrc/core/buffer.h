// Page-aligned scratch memory for direct I/O and for staging.

#ifndef FASTCKPT_CORE_BUFFER_H_
#define FASTCKPT_CORE_BUFFER_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  ~AlignedBuffer();
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  // Makes at least `size` bytes available, aligned to 4096; the old contents are lost when it has
  // to grow. False when there is no memory.
  bool Reserve(size_t size);

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  void* mapping_ = nullptr;
  size_t mapping_size_ = 0;
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_BUFFER_H_

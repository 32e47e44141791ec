#include "span_writer.h"

#include <cerrno>
#include <cstring>

#include "bytes.h"
#include "constants.h"
#include "file_io.h"

namespace fastckpt {

Status SpanWriter::Write(const uint8_t* from, size_t size, uint64_t offset) {
  size_t done = 0;
  if (direct_fd_ >= 0 && direct_works_->load(std::memory_order_relaxed) &&
      IsAligned(offset, kAlignment)) {
    Status status;
    done = WriteDirect(from, size, offset, &status);
    if (!status.ok()) return status;
  }
  if (done == size) return Status::Ok();
  const IoResult written = WriteAt(fd_, from + done, size - done, offset + done);
  if (written.error == 0) return Status::Ok();
  return Status::IoError(written.error, "writing", offset + done + written.done);
}

Status SpanWriter::WritePadded(const uint8_t* from, size_t size, size_t zeros, uint64_t offset) {
  if (!bounce_.Reserve(size + zeros)) return Status::NoMemory();
  std::memcpy(bounce_.data(), from, size);
  std::memset(bounce_.data() + size, 0, zeros);
  return Write(bounce_.data(), size + zeros, offset);
}

// Returns how many bytes are written; the caller writes the others through the page cache.
size_t SpanWriter::WriteDirect(const uint8_t* from, size_t size, uint64_t offset,
                               Status* status) {
  const size_t whole = static_cast<size_t>(AlignDown(size, kAlignment));
  if (whole == 0) return 0;
  if (!IsAligned(AddressOf(from), kAlignment)) {
    if (!bounce_.Reserve(whole)) return 0;
    std::memcpy(bounce_.data(), from, whole);
    from = bounce_.data();
  }
  const IoResult written = WriteAt(direct_fd_, from, whole, offset);
  if (written.error == EINVAL || written.error == EOPNOTSUPP) {
    direct_works_->store(false, std::memory_order_relaxed);
  } else if (written.error != 0) {
    *status = Status::IoError(written.error, "writing", offset + written.done);
  }
  return written.done;
}

}  // namespace fastckpt

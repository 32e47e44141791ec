// Errors as values. A Status never allocates, so that it can report a lack of memory.

#ifndef FASTCKPT_CORE_STATUS_H_
#define FASTCKPT_CORE_STATUS_H_

#include <cstdint>

namespace fastckpt {

class Status {
 public:
  enum class Code { kOk, kInvalidArgument, kNoMemory, kIoError, kThreadError };

  Status() = default;

  static Status Ok() { return Status(); }
  static constexpr uint64_t kNowhere = UINT64_MAX;

  // `message` must be a string literal: it is not copied. `where` is the number of the extent.
  static Status InvalidArgument(const char* message, uint64_t where = kNowhere) {
    return Status(Code::kInvalidArgument, 0, where, message);
  }
  static Status NoMemory() { return Status(Code::kNoMemory, 0, 0, "out of memory"); }
  // `error` is an errno value, `doing` what failed, `offset` where in the file.
  static Status IoError(int error, const char* doing, uint64_t offset) {
    return Status(Code::kIoError, error, offset, doing);
  }
  static Status ThreadError(int error) {
    return Status(Code::kThreadError, error, 0, "cannot start a thread");
  }

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  int error() const { return error_; }
  uint64_t where() const { return where_; }  // file offset, or the number of the bad extent
  const char* message() const { return message_; }

 private:
  Status(Code code, int error, uint64_t where, const char* message)
      : code_(code), error_(error), where_(where), message_(message) {}

  Code code_ = Code::kOk;
  int error_ = 0;
  uint64_t where_ = 0;
  const char* message_ = "";
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_STATUS_H_

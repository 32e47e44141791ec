// What the fuzz targets share. A target is a file fuzz_*.cc with one LLVMFuzzerTestOneInput, linked
// with the core alone: by libFuzzer (clang -fsanitize=fuzzer), by AFL++ (the same entry), or by
// fuzz_main.cc, which replays files and changes them at random where neither is at hand. From the
// repository's root:
//
//   make -C csrc/tests fuzz                     replay the corpus, then FUZZ_SECONDS=5 per target

#ifndef FASTCKPT_TESTS_FUZZ_H_
#define FASTCKPT_TESTS_FUZZ_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#define REQUIRE(condition)                                                 \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                        \
    }                                                                      \
  } while (false)

namespace fastckpt {

// Takes numbers from the input; zeros when it has ended.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint64_t Take(size_t bytes) {
    uint64_t value = 0;
    const size_t there = bytes < size_ ? bytes : size_;
    if (there != 0) std::memcpy(&value, data_, there);
    data_ += there;
    size_ -= there;
    return value;
  }

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_;
  size_t size_;
};

// A file in memory.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", 0)) { REQUIRE(fd_ >= 0); }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  int fd() const { return fd_; }
  void Resize(uint64_t size) { REQUIRE(ftruncate(fd_, static_cast<off_t>(size)) == 0); }
  void Write(const void* data, size_t size, uint64_t offset) {
    REQUIRE(pwrite(fd_, data, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size));
  }

 private:
  const int fd_;
};

}  // namespace fastckpt

#endif  // FASTCKPT_TESTS_FUZZ_H_

#include "file_io.h"

#include <fcntl.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "bytes.h"

namespace fastckpt {

namespace {

// Linux moves at most 2^31 - 4096 bytes per call, macOS fails above 2^31 - 1.
constexpr size_t kMaxCall = size_t{1} << 30;

#if defined(RWF_NOWAIT)
// musl has preadv2 since 1.2.5 only, and a wheel for musl has to load with any 1.2.
ssize_t ReadNow(int fd, const iovec* vector, off_t offset) {
#if defined(__GLIBC__)
  return preadv2(fd, vector, 1, offset, RWF_NOWAIT);
#else
  return syscall(SYS_preadv2, fd, vector, 1, static_cast<long>(offset),
                 static_cast<long>(offset >> 32), RWF_NOWAIT);
#endif
}
#endif

}  // namespace

IoResult ReadAt(int fd, uint8_t* to, size_t size, uint64_t offset) {
  IoResult result;
  while (result.done < size) {
    const ssize_t got = pread(fd, to + result.done, std::min(size - result.done, kMaxCall),
                              static_cast<off_t>(offset + result.done));
    if (got > 0) {
      result.done += static_cast<size_t>(got);
    } else if (got == 0) {
      break;
    } else if (errno != EINTR) {
      result.error = errno;
      break;
    }
  }
  return result;
}

IoResult WriteAt(int fd, const uint8_t* from, size_t size, uint64_t offset) {
  IoResult result;
  while (result.done < size) {
    const ssize_t put = pwrite(fd, from + result.done, std::min(size - result.done, kMaxCall),
                               static_cast<off_t>(offset + result.done));
    if (put > 0) {
      result.done += static_cast<size_t>(put);
    } else if (put == 0) {
      result.error = EIO;  // no progress and no reason given: going on would loop for ever
      break;
    } else if (errno != EINTR) {
      result.error = errno;
      break;
    }
  }
  return result;
}

bool ConcernsPlace(int error) {
  return error != EBADF && error != EINVAL && error != EISDIR && error != ESPIPE &&
         error != ENXIO && error != EFAULT && error != EOVERFLOW;
}

IoResult ReadCachedAt(int fd, uint8_t* to, size_t size, uint64_t offset) {
  IoResult result;
#if defined(RWF_NOWAIT)
  while (result.done < size) {
    iovec vector;
    vector.iov_base = to + result.done;
    vector.iov_len = std::min(size - result.done, kMaxCall);
    const ssize_t got = ReadNow(fd, &vector, static_cast<off_t>(offset + result.done));
    if (got > 0) {
      result.done += static_cast<size_t>(got);
    } else if (got == 0) {
      break;
    } else if (errno != EINTR) {
      result.error = errno == EINVAL || errno == ENOSYS ? EOPNOTSUPP : errno;
      break;
    }
  }
#else
  (void)fd, (void)to, (void)size, (void)offset;
  result.error = EOPNOTSUPP;
#endif
  return result;
}

IoResult ReadDirectAt(int fd, const iovec* parts, int count, uint64_t offset) {
  IoResult result;
  ssize_t got = 0;
  do {
    got = preadv(fd, parts, count, static_cast<off_t>(offset));
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    result.error = errno;
  } else {
    result.done = static_cast<size_t>(got);
  }
  return result;
}

}  // namespace fastckpt

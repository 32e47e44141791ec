// Makes pages of one file unreadable (LD_PRELOAD), as bad sectors do: a read gives what stands before the first bad
// page, and EIO where it begins in one; to touch a bad page of a map is a bus error. Every way to read is covered that
// fastckpt uses: read, pread, preadv, preadv2, mmap.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, MOST = 64 };
static dev_t device;
static ino_t inode;
static long pages[MOST];
static int count;

// From now on these pages of the file cannot be read; none are bad where n is 0.
void bad_pages(const char *path, int n, const long *bad) {
  struct stat facts;
  count = 0;
  if (n > MOST || stat(path, &facts)) return;
  device = facts.st_dev;
  inode = facts.st_ino;
  memcpy(pages, bad, n * sizeof *bad);
  count = n;
}

// How many bytes can be read from an offset; -1 (and errno) if not even the first.
static ssize_t readable(int fd, off_t offset, size_t size) {
  struct stat facts;
  if (!count || fstat(fd, &facts) || facts.st_dev != device || facts.st_ino != inode) return size;
  for (int i = 0; i < count; i++) {
    off_t start = pages[i] * PAGE, end = start + PAGE;
    if (offset < end && start < offset + (off_t)size) size = start > offset ? start - offset : 0;
  }
  if (size) return size;
  errno = EIO;
  return -1;
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset) {
  static ssize_t (*real)(int, void *, size_t, off64_t);
  if (!real) real = dlsym(RTLD_NEXT, "pread64");
  ssize_t there = size ? readable(fd, offset, size) : 0;
  return there < 0 ? -1 : real(fd, data, there, offset);
}
ssize_t pread(int fd, void *data, size_t size, off_t offset) { return pread64(fd, data, size, offset); }

ssize_t preadv64(int fd, const struct iovec *parts, int n, off64_t offset) {
  // Short reads are legal: the first part is enough.
  return n ? pread64(fd, parts->iov_base, parts->iov_len, offset) : 0;
}
ssize_t preadv(int fd, const struct iovec *parts, int n, off_t offset) { return preadv64(fd, parts, n, offset); }

ssize_t preadv64v2(int fd, const struct iovec *parts, int n, off64_t offset, int flags) {
  static ssize_t (*real)(int, const struct iovec *, int, off64_t, int);
  if (!real) real = dlsym(RTLD_NEXT, "preadv64v2");
  struct iovec part = *parts;
  ssize_t there = n && part.iov_len ? readable(fd, offset, part.iov_len) : 0;
  part.iov_len = there;
  return there < 0 ? -1 : real(fd, &part, 1, offset, flags);
}
ssize_t preadv2(int fd, const struct iovec *parts, int n, off_t offset, int flags) {
  return preadv64v2(fd, parts, n, offset, flags);
}

ssize_t read(int fd, void *data, size_t size) {
  static ssize_t (*real)(int, void *, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "read");
  if (!count || !size) return real(fd, data, size);
  off_t at = lseek(fd, 0, SEEK_CUR);
  ssize_t there = at < 0 ? (ssize_t)size : readable(fd, at, size);
  return there < 0 ? -1 : real(fd, data, there);
}

static int is_bad_file(int fd) {
  struct stat facts;
  return count && fd >= 0 && !fstat(fd, &facts) && facts.st_dev == device && facts.st_ino == inode;
}

void *mmap64(void *wish, size_t size, int protection, int flags, int fd, off64_t offset) {
  static void *(*real)(void *, size_t, int, int, int, off64_t);
  if (!real) real = dlsym(RTLD_NEXT, "mmap64");
  void *at = real(wish, size, protection, flags, fd, offset);
  if (at == MAP_FAILED || !is_bad_file(fd)) return at;
  int nothing = memfd_create("nothing", MFD_CLOEXEC);  // to touch what lies behind the end of a file is a bus error
  for (int i = 0; i < count; i++) {
    off64_t page = pages[i] * PAGE - offset;
    if (page >= 0 && page < (off64_t)size) real((char *)at + page, PAGE, protection, MAP_SHARED | MAP_FIXED, nothing, 0);
  }
  close(nothing);
  return at;
}
void *mmap(void *wish, size_t size, int protection, int flags, int fd, off_t offset) {
  return mmap64(wish, size, protection, flags, fd, offset);
}

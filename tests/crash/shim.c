// Stands between a program and the file system (LD_PRELOAD): counts the calls that touch files
// below $SHIM_ROOT and, once armed, logs them all or makes something happen at the Nth. With $SHIM_READS it counts the
// calls that only look or read as well.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <dirent.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, LOG, KILL, TEAR, INTERRUPT, FAIL, FAIL_FROM, SHORT };
static int action = OFF, error_number, log_fd = -1;
static long at_call;
static atomic_long calls;
static char hit[32], armed[64];

// From now on: do `what` at the Nth call. TEAR is KILL in the middle of a write. FAIL_FROM also fails every later
// call that needs space. SHORT makes every write a short one. LOG writes a line per call to log_path.
void shim_arm(int what, long n, int error, const char *log_path) {
  if (log_path) log_fd = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  calls = 0;
  at_call = n;
  error_number = error;
  snprintf(armed, sizeof armed, "%d %ld", what, n);
  action = what;
}
const char *shim_armed(void) { return armed; }  // What $SHIM_ARM has to be to arm a process in the same way.
// A process that is started, and not forked, arms itself at once: $SHIM_ARM is `what` and N.
__attribute__((constructor)) static void arm_at_start(void) {
  const char *arm = getenv("SHIM_ARM");
  int what;
  long n;
  if (arm && sscanf(arm, "%d %ld", &what, &n) == 2) shim_arm(what, n, 0, NULL);
}
const char *shim_hit(void) { return hit; }  // Which call it was, "" if none yet.

static const char *file_of(int fd, char *place) {
  char link[32];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, place, PATH_MAX - 1);
  place[n < 0 ? 0 : n] = 0;
  return place;
}
static const char *file_at(int directory, const char *path, char *place) {
  if (!strncmp(path, "/proc/self/fd/", 14)) return file_of(atoi(path + 14), place);
  if (*path == '/' || directory == AT_FDCWD) return strncpy(place, path, PATH_MAX - 1);
  file_of(directory, place);
  return strncat(strncat(place, "/", 2), path, PATH_MAX - 1 - strlen(place));
}
static int counts(const char *place) {
  const char *root = getenv("SHIM_ROOT");
  return action != OFF && root && !strncmp(place, root, strlen(root));
}
// Returns whether the call must fail (errno is set then), or TEAR.
static int enter(const char *name, const char *place, int needs_space) {
  if (!counts(place)) return 0;
  long n = ++calls;
  int later = action == FAIL_FROM && n > at_call && needs_space;
  if (n != at_call && !later) return 0;
  if (!later) strncpy(hit, name, sizeof hit - 1);
  if (action == TEAR && strstr(name, "write")) return TEAR;
  if (action == KILL || action == TEAR) kill(getpid(), SIGKILL);
  if (action == INTERRUPT) kill(getpid(), SIGINT);
  if (action != FAIL && action != FAIL_FROM) return 0;
  errno = error_number;
  return FAIL;
}
static void done(const char *name, const char *place, long long offset, long long size, const char *second) {
  if (action != LOG || !counts(place)) return;
  char line[2 * PATH_MAX + 100];
  int saved = errno, n = snprintf(line, sizeof line, "%s\t%s\t%lld\t%lld\t%s\n", name, place, offset, size, second);
  syscall(SYS_write, log_fd, line, n), errno = saved;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(name, place, offset, size, second, space, ...)      \
  int failed = enter(#name, place, space);                       \
  long long result = failed ? -1 : (long long)REAL(name)(__VA_ARGS__); \
  if (result >= 0) done(#name, place, offset, size, second);     \
  return result
#define ON_FD char place[PATH_MAX] = ""; const char *at = file_of(fd, place)

#define OPEN(name, directory, parameters, ...)                   \
  int name parameters {                                          \
    va_list rest;                                                \
    va_start(rest, flags);                                       \
    int mode = flags & O_CREAT ? va_arg(rest, int) : 0;          \
    va_end(rest);                                                \
    char place[PATH_MAX] = ""; const char *at = file_at(directory, path, place); \
    CALL(name, at, flags, mode, "", 0, __VA_ARGS__, mode);       \
  }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), path, flags)
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), path, flags)
OPEN(openat, d, (int d, const char *path, int flags, ...), d, path, flags)
OPEN(openat64, d, (int d, const char *path, int flags, ...), d, path, flags)

#define WRITE(name, offset, parameters, ...)                     \
  ssize_t name parameters {                                      \
    ON_FD;                                                       \
    int failed = enter(#name, at, 1);                            \
    if (failed == FAIL) return -1;                               \
    int halve = failed == TEAR || (action == SHORT && counts(at)); \
    if (halve && size > 1) size = size < 8192 ? size / 2 : size / 2 & ~(size_t)4095; \
    ssize_t result = REAL(name)(__VA_ARGS__);                    \
    if (failed == TEAR) kill(getpid(), SIGKILL);                 \
    if (result >= 0) done(#name, at, offset, result, "");        \
    return result;                                               \
  }
WRITE(write, -1LL, (int fd, const void *data, size_t size), fd, data, size)
WRITE(pwrite, offset, (int fd, const void *data, size_t size, off_t offset), fd, data, size, offset)
WRITE(pwrite64, offset, (int fd, const void *data, size_t size, off64_t offset), fd, data, size, offset)

int fallocate(int fd, int mode, off_t start, off_t size) { ON_FD; CALL(fallocate, at, start, size, "", 1, fd, mode, start, size); }
int fallocate64(int fd, int mode, off64_t start, off64_t size) { ON_FD; CALL(fallocate64, at, start, size, "", 1, fd, mode, start, size); }
int ftruncate(int fd, off_t size) { ON_FD; CALL(ftruncate, at, 0LL, size, "", 1, fd, size); }
int ftruncate64(int fd, off64_t size) { ON_FD; CALL(ftruncate64, at, 0LL, size, "", 1, fd, size); }
int fsync(int fd) { ON_FD; CALL(fsync, at, 0LL, 0LL, "", 1, fd); }
int fdatasync(int fd) { ON_FD; CALL(fdatasync, at, 0LL, 0LL, "", 1, fd); }
int flock(int fd, int how) { ON_FD; CALL(flock, at, 0LL, how, "", 0, fd, how); }
int fchmod(int fd, mode_t mode) { ON_FD; CALL(fchmod, at, 0LL, mode, "", 0, fd, mode); }
int fchown(int fd, uid_t user, gid_t group) { ON_FD; CALL(fchown, at, user, group, "", 0, fd, user, group); }
int unlink(const char *path) { CALL(unlink, path, 0LL, 0LL, "", 0, path); }
int unlinkat(int d, const char *path, int flags) {
  char place[PATH_MAX] = ""; const char *at = file_at(d, path, place);
  CALL(unlinkat, at, 0LL, 0LL, "", 0, d, path, flags);
}
int mkdir(const char *path, mode_t mode) { CALL(mkdir, path, 0LL, mode, "", 1, path, mode); }
int rmdir(const char *path) { CALL(rmdir, path, 0LL, 0LL, "", 0, path); }
int link(const char *from, const char *to) { CALL(link, from, 0LL, 0LL, to, 0, from, to); }
int rename(const char *from, const char *to) { CALL(rename, from, 0LL, 0LL, to, 0, from, to); }
int renameat(int d, const char *from, int e, const char *to) {
  char place[PATH_MAX] = "", target[PATH_MAX] = "";
  CALL(renameat, file_at(d, from, place), 0LL, 0LL, file_at(e, to, target), 0, d, from, e, to);
}
// What only looks or reads. Failing once, it must never look like a file that is damaged or not there.
#define LOOK(type, bad, name, where, parameters, ...)            \
  type name parameters {                                         \
    if (!getenv("SHIM_READS")) return REAL(name)(__VA_ARGS__);   \
    char place[PATH_MAX];                                        \
    return *place = 0, enter(#name, where, 0) ? bad : REAL(name)(__VA_ARGS__); \
  }
LOOK(ssize_t, -1, read, file_of(fd, place), (int fd, void *data, size_t size), fd, data, size)
LOOK(ssize_t, -1, pread, file_of(fd, place), (int fd, void *data, size_t size, off_t at), fd, data, size, at)
LOOK(ssize_t, -1, pread64, file_of(fd, place), (int fd, void *data, size_t size, off64_t at), fd, data, size, at)
LOOK(ssize_t, -1, preadv, file_of(fd, place), (int fd, const struct iovec *v, int n, off_t at), fd, v, n, at)
LOOK(ssize_t, -1, preadv64, file_of(fd, place), (int fd, const struct iovec *v, int n, off64_t at), fd, v, n, at)
LOOK(ssize_t, -1, preadv2, file_of(fd, place), (int fd, const struct iovec *v, int n, off_t at, int how), fd, v, n, at, how)
LOOK(ssize_t, -1, preadv64v2, file_of(fd, place), (int fd, const struct iovec *v, int n, off64_t at, int how), fd, v, n, at, how)
LOOK(int, -1, stat, path, (const char *path, struct stat *to), path, to)
LOOK(int, -1, stat64, path, (const char *path, struct stat64 *to), path, to)
LOOK(int, -1, lstat, path, (const char *path, struct stat *to), path, to)
LOOK(int, -1, lstat64, path, (const char *path, struct stat64 *to), path, to)
LOOK(int, -1, fstat, file_of(fd, place), (int fd, struct stat *to), fd, to)
LOOK(int, -1, fstat64, file_of(fd, place), (int fd, struct stat64 *to), fd, to)
LOOK(int, -1, fstatat, file_at(d, path, place), (int d, const char *path, struct stat *to, int how), d, path, to, how)
LOOK(int, -1, fstatat64, file_at(d, path, place), (int d, const char *path, struct stat64 *to, int how), d, path, to, how)
LOOK(DIR *, NULL, opendir, path, (const char *path), path)
LOOK(void *, MAP_FAILED, mmap, file_of(fd, place), (void *to, size_t size, int p, int flags, int fd, off_t at), to, size, p, flags, fd, at)
LOOK(void *, MAP_FAILED, mmap64, file_of(fd, place), (void *to, size_t size, int p, int flags, int fd, off64_t at), to, size, p, flags, fd, at)
int close(int fd) {
  ON_FD;
  int failed = enter("close", at, 0), saved = errno, result = REAL(close)(fd);  // Even a failing close closes.
  if (failed) errno = saved;
  else done("close", at, 0, 0, "");
  return failed ? -1 : result;
}

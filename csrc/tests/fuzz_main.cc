// Runs a fuzz target without libFuzzer: replays files, then changes them at random for a while.
//
//   fuzz_scan [-seconds=N] [-seed=N] FILE_OR_DIRECTORY...
//
// An input that crashes stands in ./crash-input; give it as the only file to see it again.

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "fuzz.h"

namespace {

using Bytes = std::vector<uint8_t>;

constexpr size_t kMaxInput = 8192;
const char kCrashFile[] = "crash-input";

Bytes current;  // what runs now, for the handler

void Run(const Bytes& input) {
  current = input;
  // Of exactly this size, so that a byte read beyond its end is noticed.
  const Bytes exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

void Save() {
  const int fd = open(kCrashFile, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd < 0) return;
  if (write(fd, current.data(), current.size()) < 0) std::perror(kCrashFile);
  close(fd);
}

Bytes ReadFile(const std::string& path) {
  Bytes bytes;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    std::perror(path.c_str());
    std::exit(2);
  }
  uint8_t buffer[4096];
  for (size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, file)) != 0;)
    bytes.insert(bytes.end(), buffer, buffer + n);
  std::fclose(file);
  return bytes;
}

std::vector<std::string> Files(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) {
    std::perror(path.c_str());
    std::exit(2);
  }
  if (!S_ISDIR(status.st_mode)) return {path};
  std::vector<std::string> files;
  DIR* directory = opendir(path.c_str());
  while (const dirent* entry = readdir(directory))
    if (entry->d_name[0] != '.') files.push_back(path + "/" + entry->d_name);
  closedir(directory);
  std::sort(files.begin(), files.end());
  return files;
}

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  Bytes Change(const std::vector<Bytes>& corpus) {
    Bytes bytes = corpus.empty() ? Bytes() : corpus[Below(corpus.size())];
    for (size_t edits = 1 + Below(6); edits != 0; --edits) Edit(&bytes, corpus);
    if (bytes.size() > kMaxInput) bytes.resize(kMaxInput);
    return bytes;
  }

 private:
  size_t Below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void Edit(Bytes* bytes, const std::vector<Bytes>& corpus) {
    static constexpr uint64_t kNumbers[] = {0,     1,     7,       8,         255,      4095, 4096,
                                            16383, 16384, 1048576, INT64_MAX, UINT64_MAX};
    const size_t at = Below(bytes->size() + 1);
    const auto place = bytes->begin() + static_cast<std::ptrdiff_t>(at);
    const size_t rest = bytes->size() - at;
    switch (Below(6)) {
      case 0:
        if (rest != 0) *place = static_cast<uint8_t>(*place ^ (1U << Below(8)));
        break;
      case 1:
        if (rest != 0) *place = static_cast<uint8_t>(random_());
        break;
      case 2: {
        const uint64_t number = kNumbers[Below(std::size(kNumbers))] + Below(3) - 1;
        const size_t width = std::min<size_t>(rest, size_t{1} << Below(4));
        if (width != 0) std::memcpy(&*place, &number, width);
        break;
      }
      case 3:
        bytes->erase(place, place + static_cast<std::ptrdiff_t>(Below(std::min<size_t>(rest, 64))));
        break;
      case 4: {
        Bytes piece(1 + Below(64));
        for (uint8_t& byte : piece) byte = static_cast<uint8_t>(random_());
        bytes->insert(place, piece.begin(), piece.end());
        break;
      }
      default:
        if (!corpus.empty()) {
          const Bytes& other = corpus[Below(corpus.size())];
          const auto from = other.begin() + static_cast<std::ptrdiff_t>(Below(other.size() + 1));
          const Bytes piece(from, other.end());
          bytes->insert(place, piece.begin(), piece.end());
        }
    }
  }

  std::mt19937 random_;
};

}  // namespace

// What the sanitizers call before they end the process.
extern "C" void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));
extern "C" const char* __asan_default_options() { return "handle_abort=1:detect_leaks=0"; }

int main(int argc, char** argv) {
  double seconds = 0;
  uint32_t seed = 1;
  std::vector<Bytes> corpus;
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(Save);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("-seconds=", 0) == 0) {
      seconds = std::atof(argument.c_str() + 9);
    } else if (argument.rfind("-seed=", 0) == 0) {
      seed = static_cast<uint32_t>(std::atol(argument.c_str() + 6));
    } else {
      for (const std::string& file : Files(argument)) corpus.push_back(ReadFile(file));
    }
  }
  for (const Bytes& input : corpus) Run(input);
  Run({});
  using Clock = std::chrono::steady_clock;
  const auto length = std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6));
  const Clock::time_point end = Clock::now() + length;
  Mutator mutator(seed);
  uint64_t runs = 0;
  while (Clock::now() < end) {
    for (int i = 0; i < 16; ++i) Run(mutator.Change(corpus));
    runs += 16;
  }
  std::printf("%zu files replayed, %llu inputs made\n", corpus.size(),
              static_cast<unsigned long long>(runs));
  return 0;
}

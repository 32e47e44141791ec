// The search for blocks: any file, any range, against a search byte by byte.
//
// Input: flags (1 byte), start and stop (4 or 8 each), size of the file in units of 32 bytes (2),
// then pieces: page (1), distance from its beginning (1), how many bytes of the magic (1).

#include <vector>

#include "../core/constants.h"
#include "../core/scan.h"
#include "../core/workers.h"
#include "fuzz.h"

namespace fastckpt {
namespace {

std::vector<uint64_t> Naive(const std::vector<uint8_t>& file, uint64_t start, uint64_t stop) {
  std::vector<uint64_t> found;
  for (uint64_t at = 0; at + kMagicSize <= file.size(); at += kAlignment) {
    if (at >= start && at < stop && std::memcmp(&file[at], kMagicRecord, kMagicSize) == 0)
      found.push_back(at);
  }
  return found;
}

}  // namespace
}  // namespace fastckpt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fastckpt;
  Input input(data, size);
  const uint32_t flags = static_cast<uint32_t>(input.Take(1));
  // Offsets in the file for the most part, and any others.
  const uint64_t start = (flags & 1) != 0 ? input.Take(8) : input.Take(4) % (3 << 20);
  const uint64_t stop = (flags & 2) != 0 ? input.Take(8) : input.Take(4) % (3 << 20);
  std::vector<uint8_t> content(input.Take(2) * 32);
  while (input.size() != 0) {
    const uint64_t page = input.Take(1) * ((flags & 4) != 0 ? 2 : 1);
    const uint64_t at = page * kAlignment + input.Take(1) % 16;
    const uint64_t count = input.Take(1) % (kMagicSize + 1);
    if (count != 0 && at + count <= content.size())
      std::memcpy(content.data() + at, kMagicRecord, count);
  }
  MemoryFile file;
  if (!content.empty()) file.Write(content.data(), content.size(), 0);
  BlockScan scan(file.fd(), reinterpret_cast<const uint8_t*>(kMagicRecord), start, stop);
  if ((flags & 8) != 0) {
    Workers workers;
    REQUIRE(workers.Start(&scan, 2).ok());
    workers.Join();
  } else {
    scan.Work();
  }
  std::vector<uint64_t> offsets;
  REQUIRE(scan.Finish(&offsets).ok());
  REQUIRE(offsets == Naive(content, start, stop));
  return 0;
}

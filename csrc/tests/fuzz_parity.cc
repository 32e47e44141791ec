// Parity: any size, number of groups and rows, at every instruction set, against sums made byte by
// byte; and lost leaves back from it, where there is enough of it and only there.
//
// Input: flags (1 byte), size (3), leaves of a group (1), rows (1), seed of the content (1), then
// lost leaves (1 each; in groups of parity that is lost, too, by flag).

#include <algorithm>
#include <vector>

#include "../core/bytes.h"
#include "../core/constants.h"
#include "../core/cpu.h"
#include "../core/gf256.h"
#include "../core/hash.h"
#include "../core/parity.h"
#include "../core/workers.h"
#include "fuzz.h"

namespace fastckpt {
namespace {

constexpr uint64_t kMaxSize = 1200 * 1024;

uint8_t Product(uint8_t a, uint8_t b) {
  unsigned product = 0;
  for (int bit = 0; bit < 8; ++bit)
    if ((b >> bit & 1) != 0) product ^= static_cast<unsigned>(a) << bit;
  for (int bit = 14; bit >= 8; --bit)
    if ((product >> bit & 1) != 0) product ^= 0x11DU << (bit - 8);
  return static_cast<uint8_t>(product);
}

struct Case {
  std::vector<uint8_t> content;
  ParityRequest request;
  std::vector<uint64_t> picked;
  size_t parity_size() const { return request.rows * picked.size() * kLeafSize; }
};

// One byte of each leaf is enough: the kernels are compared with each other over all of them.
void CompareWithSums(const Case& made, const std::vector<uint8_t>& parity, size_t byte) {
  const ParityRequest& request = made.request;
  for (size_t j = 0; j < request.rows; ++j) {
    const uint8_t base = static_cast<uint8_t>(1 << j);
    for (size_t q = 0; q < made.picked.size(); ++q) {
      uint8_t sum = 0, power = 1;
      for (uint64_t leaf = made.picked[q]; leaf < request.leaf_count(); leaf += request.groups) {
        const uint64_t at = leaf * kLeafSize + byte;
        sum ^= Product(power, at < made.content.size() ? made.content[at] : 0);
        power = Product(power, base);
      }
      REQUIRE(parity[(j * made.picked.size() + q) * kLeafSize + byte] == sum);
    }
  }
}

void RunJob(const ParityRequest& request, bool threads) {
  uint64_t total = 0;
  REQUIRE(request.Check(&total).ok());
  ParityJob job(request);
  if (threads) {
    Workers workers;
    REQUIRE(workers.Start(&job, 3).ok());
    workers.Join();
  } else {
    job.Work();
  }
  std::vector<ReadFault> faults;
  REQUIRE(job.Finish(&faults).ok() && faults.empty());
  REQUIRE(job.progress() == total);
}

void Recover(const Case& made, const std::vector<uint8_t>& parity,
             const std::vector<uint64_t>& lost, const std::vector<uint8_t>& known, bool threads) {
  ParityRequest request = made.request;
  // What is lost holds anything, parity that is not known as well.
  std::vector<uint8_t> damaged = made.content;
  for (const uint64_t leaf : lost) {
    const uint64_t end = std::min<uint64_t>((leaf + 1) * kLeafSize, damaged.size());
    for (uint64_t at = leaf * kLeafSize; at < end; at += 7) damaged[at] ^= 0x5A;
  }
  std::vector<uint8_t> hurt = parity;
  for (size_t i = 0; i < known.size(); ++i)
    if (known[i] == 0) hurt[i * kLeafSize + i % kLeafSize] ^= 0xFF;
  std::vector<uint8_t> recovered(lost.size() * kLeafSize, 0xA5), solved(lost.size());
  std::vector<uint8_t> nothing(1);
  request.leaves = nullptr;
  request.memory = damaged.data();
  MemoryFile file;
  if (request.source_fd >= 0) {
    if (!damaged.empty()) file.Write(damaged.data(), damaged.size(), 0);
    request.source_fd = file.fd();
  }
  request.parity = hurt.data();
  request.lost = lost.data();
  request.lost_count = lost.size();
  request.known = known.data();
  request.recovered = lost.empty() ? nothing.data() : recovered.data();
  request.solved = solved.data();
  RunJob(request, threads);
  for (size_t i = 0; i < lost.size(); ++i) {
    const uint64_t group = lost[i] % request.groups;
    size_t gone = 0, there = 0;
    for (const uint64_t leaf : lost) gone += leaf % request.groups == group;
    const auto at = std::find(made.picked.begin(), made.picked.end(), group);
    for (size_t j = 0; j < request.rows && at != made.picked.end(); ++j)
      there += known[j * made.picked.size() + static_cast<size_t>(at - made.picked.begin())];
    REQUIRE(solved[i] == (gone <= there ? 1 : 0));
    for (size_t byte = 0; byte < kLeafSize; ++byte) {
      const uint64_t place = lost[i] * kLeafSize + byte;
      const uint8_t was = place < made.content.size() ? made.content[place] : 0;
      REQUIRE(recovered[i * kLeafSize + byte] == (solved[i] != 0 ? was : 0xA5));
    }
  }
}

}  // namespace
}  // namespace fastckpt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fastckpt;
  Input input(data, size);
  const uint64_t flags = input.Take(1);
  Case made;
  made.content.resize(input.Take(3) % kMaxSize);
  ParityRequest& request = made.request;
  request.size = made.content.size();
  const uint64_t depth = input.Take(1);
  request.groups = (flags & 16) != 0 ? depth
                   : depth == 0      ? request.leaf_count()
                                     : (request.leaf_count() + depth - 1) / depth;
  request.rows = static_cast<size_t>(input.Take(1)) % 5;
  uint64_t seed = input.Take(1) + 1;
  for (uint8_t& byte : made.content) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    byte = static_cast<uint8_t>(seed >> 56);
  }
  // All groups, or some.
  for (uint64_t group = 0; group < request.groups; ++group)
    if ((flags & 2) == 0 || group % 5 < 2) made.picked.push_back(group);
  request.picked = made.picked.data();
  request.picked_count = made.picked.size();
  const bool fits = request.rows >= 1 && request.rows <= 3 &&
                    (request.groups == 0 ? request.size == 0
                                         : request.groups <= request.leaf_count() &&
                                               request.depth() <= 255);
  uint64_t total = 0;
  REQUIRE(request.Check(&total).ok() == fits);
  if (!fits) return 0;

  MemoryFile file;
  request.memory = made.content.data();
  if ((flags & 1) != 0) {
    request.source_fd = file.fd();
    if (!made.content.empty()) file.Write(made.content.data(), made.content.size(), 0);
  }
  const bool threads = (flags & 4) != 0;
  std::vector<uint8_t> first, parity(made.parity_size());
  std::vector<uint64_t> leaves(request.leaf_count()), want(request.leaf_count());
  HashLeaves(made.content.data(), made.content.size(), want.data());
  for (const SimdLevel level : kSimdLevels) {
    if (!SimdLevelSupported(level)) continue;
    SetSimdLevel(level);
    std::fill(parity.begin(), parity.end(), uint8_t{0xA5});
    std::fill(leaves.begin(), leaves.end(), uint64_t{0});
    request.parity = parity.data();
    request.leaves = leaves.data();
    RunJob(request, threads);
    if (first.empty()) first = parity;
    REQUIRE(parity == first);
    for (size_t leaf = 0; leaf < leaves.size(); ++leaf) {
      const bool wanted = std::binary_search(made.picked.begin(), made.picked.end(),
                                             leaf % request.groups);
      REQUIRE(leaves[leaf] == (wanted ? want[leaf] : 0));
    }
  }
  CompareWithSums(made, parity, static_cast<size_t>(seed) % kLeafSize);

  std::vector<uint64_t> lost;
  std::vector<uint8_t> known(request.rows * made.picked.size(), 1);
  while (input.size() != 0 && lost.size() < 100 && request.size != 0) {
    const uint64_t at = input.Take(1);
    lost.push_back(at % request.leaf_count());
    if ((flags & 8) != 0 && !known.empty() && at % 3 == 0) known[at % known.size()] = 0;
  }
  std::sort(lost.begin(), lost.end());
  lost.erase(std::unique(lost.begin(), lost.end()), lost.end());
  Recover(made, parity, lost, known, threads);
  return 0;
}

// Requests to the engine: each is accepted exactly if all its ranges fit, and then moves exactly
// those bytes.
//
// Input: flags (1), size of the source in bytes (3), slots for leaves in fours (1), then extents.

#include <algorithm>
#include <vector>

#include "../core/bytes.h"
#include "../core/constants.h"
#include "../core/crc32.h"
#include "../core/hash.h"
#include "../core/transfer.h"
#include "../core/workers.h"
#include "fuzz.h"

namespace fastckpt {
namespace {

constexpr uint64_t kMaxSource = 3 << 20;
constexpr uint64_t kMaxSink = 4 << 20;
constexpr size_t kMaxExtents = 300;

using Wide = unsigned __int128;

bool Fits(bool is_file, uint64_t start, uint64_t size) {
  const Wide end = static_cast<Wide>(start) + size;
  if (is_file) return start <= INT64_MAX && end <= INT64_MAX;
  return end <= UINT64_MAX && (start != 0 || size == 0);
}

// What Check() has to say.
bool Acceptable(const TransferRequest& request) {
  if (request.source_fd < TransferRequest::kMemory || request.sink_fd < TransferRequest::kNoSink)
    return false;
  Wide total = 0;
  for (size_t i = 0; i < request.extent_count; ++i) {
    const Extent& extent = request.extents[i];
    if (!Fits(request.source_fd >= 0, extent.source, extent.size)) return false;
    if (request.sink_fd != TransferRequest::kNoSink &&
        !Fits(request.sink_fd >= 0, extent.sink, extent.size))
      return false;
    const Wide leaf_count = (static_cast<Wide>(extent.size) + kLeafSize - 1) / kLeafSize;
    const Wide last_leaf = extent.first_leaf + leaf_count;
    if (request.leaves != nullptr && last_leaf > request.leaf_count) return false;
    total += extent.size;
  }
  return total <= UINT64_MAX;
}

bool Overlap(const std::vector<Extent>& extents, bool leaves) {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const Extent& extent : extents) {
    const uint64_t start = leaves ? extent.first_leaf : extent.sink;
    const uint64_t size = leaves ? LeafCount(extent.size) : extent.size;
    if (size != 0) ranges.emplace_back(start, start + size);
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second) return true;
  return false;
}

struct Run {
  std::vector<uint8_t> source;
  std::vector<uint8_t> sink;
  std::vector<Extent> extents;
  std::vector<uint64_t> leaves;
  std::vector<uint32_t> crcs;
};

// Whether bytes of the extent are beyond the end of the source.
bool Short(const Run& run, const Extent& extent) {
  return extent.size != 0 && extent.source + extent.size > run.source.size();
}

void Compare(const Run& run, const TransferRequest& request,
             const std::vector<ReadFault>& faults) {
  for (size_t i = 0; i < run.extents.size(); ++i) {
    const Extent& extent = run.extents[i];
    const bool faulty = std::any_of(faults.begin(), faults.end(),
                                    [i](const ReadFault& fault) { return fault.extent == i; });
    REQUIRE(faulty == Short(run, extent));
    if (faulty || extent.size == 0) continue;
    const uint8_t* from = run.source.data() + extent.source;
    const size_t size = static_cast<size_t>(extent.size);
    if (request.sink_fd != TransferRequest::kNoSink)
      REQUIRE(std::memcmp(run.sink.data() + extent.sink, from, size) == 0);
    if (request.crcs != nullptr) REQUIRE(run.crcs[i] == Crc32(0, from, size));
    if (request.leaves != nullptr) {
      std::vector<uint64_t> want(LeafCount(size));
      HashLeaves(from, size, want.data());
      REQUIRE(std::memcmp(want.data(), &run.leaves[extent.first_leaf], want.size() * 8) == 0);
    }
  }
  for (const ReadFault& fault : faults) {
    REQUIRE(fault.extent < run.extents.size());
    const Extent& extent = run.extents[fault.extent];
    REQUIRE(fault.size != 0 && fault.offset + fault.size <= extent.size && fault.error == 0);
    REQUIRE(extent.source + fault.offset >= run.source.size());
  }
}

}  // namespace
}  // namespace fastckpt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fastckpt;
  Input input(data, size);
  const uint64_t flags = input.Take(1);
  Run run;
  run.source.resize(input.Take(3) % kMaxSource);
  for (size_t i = 0; i < run.source.size(); ++i)
    run.source[i] = static_cast<uint8_t>((i * 2654435761U) >> 13);
  run.leaves.resize(input.Take(1) * 4);
  const bool from_file = (flags & 1) != 0;
  const bool to_file = (flags & 2) != 0;
  const bool no_sink = (flags & 4) != 0;
  // Small extents inside of the buffers for the most part; with this flag, any numbers.
  const bool wild = (flags & 64) != 0;
  while (input.size() != 0 && run.extents.size() < kMaxExtents) {
    Extent extent{};
    if (wild) {
      extent = {input.Take(8), input.Take(8), input.Take(8), input.Take(8)};
    } else {
      extent.size = input.Take(3) % kMaxSource;
      extent.source = input.Take(3) % kMaxSource;
      extent.sink = input.Take(3) % (kMaxSink - kMaxSource);
      extent.first_leaf = input.Take(1);
    }
    run.extents.push_back(extent);
  }
  run.crcs.resize(run.extents.size());
  uint64_t sink_size = 1;
  if (!wild)
    for (const Extent& extent : run.extents)
      sink_size = std::max(sink_size, extent.sink + extent.size);
  run.sink.resize(sink_size);

  MemoryFile source_file, sink_file;
  TransferRequest request;
  request.source_fd = from_file ? source_file.fd() : TransferRequest::kMemory;
  request.sink_fd = no_sink   ? TransferRequest::kNoSink
                    : to_file ? sink_file.fd()
                              : TransferRequest::kMemory;
  request.extents = run.extents.data();
  request.extent_count = run.extents.size();
  if ((flags & 8) != 0) {
    request.leaves = run.leaves.data();
    request.leaf_count = run.leaves.size();
  }
  if ((flags & 16) != 0) request.crcs = run.crcs.data();
  uint64_t total = 0;
  const Status status = request.Check(&total);
  REQUIRE(status.ok() == Acceptable(request));
  if (!status.ok() || wild) return 0;

  // What the check cannot know is up to the caller: the size of memory, and that nothing overlaps.
  const auto is_short = [&run](const Extent& extent) { return Short(run, extent); };
  if (!from_file && std::any_of(run.extents.begin(), run.extents.end(), is_short)) return 0;
  if (Overlap(run.extents, false)) return 0;
  if (request.leaves != nullptr && Overlap(run.extents, true)) return 0;
  if (from_file && !run.source.empty()) source_file.Write(run.source.data(), run.source.size(), 0);
  std::vector<Extent> placed = run.extents;
  for (Extent& extent : placed) {
    if (!from_file) extent.source += AddressOf(run.source.data());
    if (!to_file && !no_sink) extent.sink += AddressOf(run.sink.data());
  }
  request.extents = placed.data();
  REQUIRE(request.Check(&total).ok());
  request.mapped = !from_file && (flags & 128) != 0;
  Transfer transfer(request);
  if ((flags & 32) != 0) {
    Workers workers;
    REQUIRE(workers.Start(&transfer, 2).ok());
    workers.Join();
  } else {
    transfer.Work();
  }
  std::vector<ReadFault> faults;
  REQUIRE(transfer.Finish(&faults).ok());
  REQUIRE(transfer.progress() == total);
  if (to_file && !no_sink) {
    sink_file.Resize(run.sink.size());
    REQUIRE(pread(sink_file.fd(), run.sink.data(), run.sink.size(), 0) ==
            static_cast<ssize_t>(run.sink.size()));
  }
  Compare(run, request, faults);
  return 0;
}

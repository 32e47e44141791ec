// Tests of the core alone, without Python: for the sanitizers, and for machines that have none of
// the Python packages. From the repository's root:
//
//   make -C csrc/tests                   build and run
//   make -C csrc/tests SANITIZE=address,undefined
//   make -C csrc/tests SANITIZE=thread
//   make -C csrc/tests clean

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../core/buffer.h"
#include "../core/bytes.h"
#include "../core/constants.h"
#include "../core/cpu.h"
#include "../core/crc32.h"
#include "../core/file_io.h"
#include "../core/hash.h"
#include "../core/planes_reader.h"
#include "../core/planes_writer.h"
#include "../core/scan.h"
#include "../core/slot_filler.h"
#include "../core/transfer.h"
#include "../core/workers.h"

namespace fastckpt {
namespace {

int failures = 0;

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);     \
      ++failures;                                                              \
    }                                                                          \
  } while (false)

std::vector<uint8_t> RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// A file without a name, so that nothing is left however the test ends.
class TempFile {
 public:
  explicit TempFile(const std::vector<uint8_t>& content) {
    char path[] = "fastckpt_core_test_XXXXXX";
    fd_ = mkstemp(path);
    CHECK(WriteAt(fd_, content.data(), content.size(), 0).error == 0);
    fsync(fd_);
    posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
    direct_fd_ = open(path, O_RDWR | O_DIRECT);  // -1 where the file system has none
    unlink(path);
  }
  ~TempFile() {
    if (direct_fd_ >= 0) close(direct_fd_);
    close(fd_);
  }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  int fd() const { return fd_; }
  int direct_fd() const { return direct_fd_; }

  std::vector<uint8_t> Read(size_t size) const {
    std::vector<uint8_t> content(size);
    CHECK(ReadAt(fd_, content.data(), size, 0).done == size);
    return content;
  }

 private:
  int fd_ = -1;
  int direct_fd_ = -1;
};

Status Run(const TransferRequest& request, int threads, std::vector<ReadFault>* faults) {
  uint64_t total = 0;
  const Status status = request.Check(&total);
  if (!status.ok()) return status;
  Transfer transfer(request);
  Workers workers;
  CHECK(workers.Start(&transfer, threads).ok());
  while (!workers.WaitFor(std::chrono::milliseconds(20))) CHECK(transfer.progress() <= total);
  workers.Join();
  const Status end = transfer.Finish(faults);
  if (end.ok()) CHECK(transfer.progress() == total);
  return end;
}

void TestLevelsAgree() {
  const std::vector<uint8_t> data = RandomBytes(5 * kLeafSize + 777, 1);
  // XXH3-64 of 16 KiB of zeros, as the reference implementation has it.
  const std::vector<uint8_t> zeros(kLeafSize);
  for (const SimdLevel level : kSimdLevels) {
    if (!SimdLevelSupported(level)) continue;
    SetSimdLevel(level);
    uint64_t digest = 0;
    HashLeaves(zeros.data(), zeros.size(), &digest);
    CHECK(digest == 0xB7CE04B81707A4D0);
    CHECK(Crc32(0, reinterpret_cast<const uint8_t*>("123456789"), 9) == 0xCBF43926);
    for (size_t shift = 0; shift < 65; ++shift) {
      std::vector<uint64_t> got(6), want(6);
      HashLeaves(data.data() + shift, data.size() - shift, got.data());
      const uint32_t crc = Crc32(0, data.data() + shift, data.size() - shift);
      SetSimdLevel(SimdLevel::kPortable);
      HashLeaves(data.data() + shift, data.size() - shift, want.data());
      CHECK(got == want);
      CHECK(crc == Crc32(0, data.data() + shift, data.size() - shift));
      SetSimdLevel(level);
    }
  }
}

void TestCombine() {
  const std::vector<uint8_t> data = RandomBytes(3000, 2);
  const uint32_t all = Crc32(0, data.data(), data.size());
  for (size_t cut = 0; cut <= data.size(); cut += 37)
    CHECK(Crc32Combine(Crc32(0, data.data(), cut), Crc32(0, data.data() + cut, data.size() - cut),
                       data.size() - cut) == all);
}

// Every kind of source and sink, at odd places, between guards.
void TestTransfers() {
  const std::vector<uint8_t> data = RandomBytes(20 * 1024 * 1024 + 99, 3);
  const size_t kGuard = 5000;
  const std::vector<uint8_t> poison(data.size() + 2 * kGuard, 0xA5);
  std::vector<uint64_t> want(static_cast<size_t>(LeafCount(data.size())));
  HashLeaves(data.data(), data.size(), want.data());
  const uint32_t crc = Crc32(0, data.data(), data.size());
  const TempFile source(data);
  for (const bool from_file : {false, true})
    for (const int to : {0, 1, 2})
      for (const bool direct : {false, true})
        for (const size_t shift : {size_t{0}, size_t{904}}) {  // kGuard - 904 = 4096
          const TempFile sink(poison);
          std::vector<uint8_t> memory(poison);
          std::vector<uint64_t> leaves(want.size());
          uint32_t got_crc = 0;
          const size_t place = kGuard - shift;
          Extent extent = {0, 0, data.size(), 0};
          TransferRequest request;
          if (from_file) {
            request.source_fd = source.fd();
            if (direct) request.source_direct_fd = source.direct_fd();
          } else {
            extent.source = AddressOf(data.data());
          }
          if (to == 1) {
            request.sink_fd = TransferRequest::kMemory;
            extent.sink = AddressOf(memory.data()) + place;
          } else if (to == 2) {
            request.sink_fd = sink.fd();
            if (direct) request.sink_direct_fd = sink.direct_fd();
            extent.sink = place;
          }
          request.extents = &extent;
          request.extent_count = 1;
          request.leaves = leaves.data();
          request.leaf_count = leaves.size();
          request.crcs = &got_crc;
          request.mapped = true;
          std::vector<ReadFault> faults;
          CHECK(Run(request, 3, &faults).ok());
          CHECK(faults.empty());
          CHECK(leaves == want);
          CHECK(got_crc == crc);
          std::vector<uint8_t> expected(poison);
          std::copy(data.begin(), data.end(), expected.begin() + static_cast<ptrdiff_t>(place));
          if (to == 1) CHECK(memory == expected);
          if (to == 2) CHECK(sink.Read(poison.size()) == expected);
        }
}

void TestFaultsAndErrors() {
  const std::vector<uint8_t> data = RandomBytes(3 * 1024 * 1024 + 5, 4);
  const TempFile file(data);
  std::vector<uint64_t> leaves(1024, 1);
  const Extent extents[] = {{0, 0, 6 * 1024 * 1024, 0}, {100, 0, 0, 0}, {5, 0, 1000, 400}};
  TransferRequest request;
  request.source_fd = file.fd();
  request.source_direct_fd = file.direct_fd();
  request.extents = extents;
  request.extent_count = 3;
  request.leaves = leaves.data();
  request.leaf_count = leaves.size();
  std::vector<ReadFault> faults;
  CHECK(Run(request, 2, &faults).ok());
  CHECK(faults.size() == 1 && faults[0].offset == data.size() && faults[0].error == 0);
  CHECK(leaves[191] != 0 && leaves[192] == 0 && leaves[383] == 0 && leaves[384] == 1);

  request.leaf_count = 400;
  CHECK(Run(request, 2, &faults).code() == Status::Code::kInvalidArgument);

  const int full = open("/dev/full", O_WRONLY);
  const Extent write = {AddressOf(data.data()), 0, data.size(), 0};
  TransferRequest save;
  save.sink_fd = full;
  save.extents = &write;
  save.extent_count = 1;
  if (full >= 0) {
    const Status status = Run(save, 4, &faults);
    CHECK(status.code() == Status::Code::kIoError && status.error() == ENOSPC);
    close(full);
  }
}

void TestCancel() {
  std::vector<uint8_t> data(32 * 1024 * 1024);
  const std::vector<Extent> extents(500, Extent{AddressOf(data.data()), 0, data.size(), 0});
  uint32_t crcs[500];
  TransferRequest request;
  request.extents = extents.data();
  request.extent_count = extents.size();
  request.crcs = crcs;
  Transfer transfer(request);
  {
    Workers workers;
    CHECK(workers.Start(&transfer, 3).ok());
    workers.WaitFor(std::chrono::milliseconds(20));
  }  // cancels and joins
  CHECK(transfer.cancelled());
}

// A file through a few slots: every turn in its slot, digests and faults as of one transfer.
void TestSlotFiller(int threads, size_t slots, size_t slot_size, bool direct) {
  const std::vector<uint8_t> data = RandomBytes(5 * 1024 * 1024 + 321, 6);
  const TempFile file(data);
  std::vector<uint8_t> memory(slots * slot_size + kAlignment);
  uint8_t* const base = memory.data() + kAlignment - AddressOf(memory.data()) % kAlignment;
  // The last turn reaches beyond the end of the file; an empty one is in between.
  std::vector<Extent> extents;
  std::vector<uint64_t> ends;
  uint64_t leaf = 0;
  for (size_t at = 0; at <= data.size(); at += slot_size) {
    const uint64_t sink = AddressOf(base) + (ends.size() % slots) * slot_size;
    extents.push_back({at, sink, slot_size / 2, leaf});
    leaf += LeafCount(slot_size / 2);
    extents.push_back({at + slot_size / 2, sink + slot_size / 2, slot_size / 2, leaf});
    leaf += LeafCount(slot_size / 2);
    ends.push_back(extents.size());
    if (ends.size() == 3) ends.push_back(extents.size());
  }
  std::vector<uint64_t> leaves(static_cast<size_t>(leaf));
  std::vector<uint32_t> crcs(extents.size());
  TransferRequest request;
  request.source_fd = file.fd();
  request.source_direct_fd = direct ? file.direct_fd() : -1;
  request.sink_fd = TransferRequest::kMemory;
  request.extents = extents.data();
  request.extent_count = extents.size();
  request.leaves = leaves.data();
  request.leaf_count = leaves.size();
  request.crcs = crcs.data();
  CHECK(SlotFiller::Check(request, {ends.data(), nullptr, nullptr, ends.size(), slots}).ok());
  CHECK(!SlotFiller::Check(request, {ends.data(), nullptr, nullptr, ends.size() - 1, slots}).ok());
  CHECK(!SlotFiller::Check(request, {ends.data(), nullptr, nullptr, ends.size(), 0}).ok());
  SlotFiller filler(request, {ends.data(), nullptr, nullptr, ends.size(), slots});
  Workers workers;
  if (threads != 0) CHECK(workers.Start(&filler, threads).ok());
  std::vector<ReadFault> faults;
  CHECK(!filler.Take(slots, &faults).ok());  // its slot is not free yet
  size_t lost = 0;
  for (size_t turn = 0; turn < ends.size(); ++turn) {
    if (threads == 0) filler.WorkOn(turn);
    while (!filler.WaitFor(turn, std::chrono::milliseconds(20))) {
    }
    CHECK(filler.Take(turn, &faults).ok());
    for (uint64_t i = turn == 0 ? 0 : ends[turn - 1]; i < ends[turn]; ++i) {
      const Extent& extent = extents[i];
      const uint64_t left = data.size() > extent.source ? data.size() - extent.source : 0;
      const size_t there = static_cast<size_t>(std::min(extent.size, left));
      const size_t whole = there == extent.size ? there : there / kLeafSize * kLeafSize;
      const uint8_t* const got = base + (extent.sink - AddressOf(base));
      CHECK(std::equal(got, got + whole, data.data() + extent.source));
      uint64_t digest = 0;
      if (whole != 0) {
        HashLeaves(got, std::min(whole, kLeafSize), &digest);
        CHECK(leaves[extent.first_leaf] == digest);
      }
      CHECK(crcs[i] == (there == extent.size ? Crc32(0, got, there) : 0));
      lost += extent.size - there;
    }
    for (const ReadFault& fault : faults) {
      CHECK(fault.error == 0 && fault.extent >= (turn == 0 ? 0 : ends[turn - 1]) &&
            fault.extent < ends[turn]);
      lost -= fault.size;
    }
    CHECK(filler.Release());
  }
  CHECK(lost == 0);
  CHECK(!filler.Release());
  filler.Close();
  workers.Join();
}

// Closed at any moment, also with threads that wait for a slot.
void TestSlotFillerCloses() {
  const std::vector<uint8_t> data = RandomBytes(4 * 1024 * 1024, 7);
  const TempFile file(data);
  std::vector<uint8_t> memory(2 * kLeafSize);
  std::vector<Extent> extents;
  std::vector<uint64_t> ends;
  for (size_t at = 0; at < data.size(); at += kLeafSize) {
    extents.push_back({at, AddressOf(memory.data()) + (ends.size() % 2) * kLeafSize, kLeafSize, 0});
    ends.push_back(extents.size());
  }
  TransferRequest request;
  request.source_fd = file.fd();
  request.sink_fd = TransferRequest::kMemory;
  request.extents = extents.data();
  request.extent_count = extents.size();
  for (size_t seen = 0; seen < 40; ++seen) {
    SlotFiller filler(request, {ends.data(), nullptr, nullptr, ends.size(), 2});
    Workers workers;
    CHECK(workers.Start(&filler, 3).ok());
    std::vector<ReadFault> faults;
    for (size_t turn = 0; turn < seen; ++turn) {
      while (!filler.WaitFor(turn, std::chrono::milliseconds(20))) {
      }
      CHECK(filler.Take(turn, &faults).ok() && faults.empty() && filler.Release());
    }
    filler.Close();
    workers.Join();
    CHECK(filler.WaitFor(seen + 1, std::chrono::milliseconds(1000)));
  }
}

// Records of some chunks each, appended while others are written; and back, with one chunk damaged.
void TestPlanesFiles(int threads, bool direct, bool from_file) {
  constexpr size_t kRecords = 7;
  std::vector<uint8_t> data = RandomBytes(kRecords * 3 * kChunkSize, 8);
  for (size_t i = 1; i < data.size(); i += 2) data[i] &= 3;  // so that most of it is smaller
  for (size_t i = 0; i < kChunkSize; ++i) data[i] = 0;
  std::mt19937 random(9);
  for (size_t i = 4 * kChunkSize; i < 5 * kChunkSize; ++i) data[i] = static_cast<uint8_t>(random());
  const TempFile source(data);
  const TempFile sink({});
  PlanesWriter::Sink to = {sink.fd(), direct ? sink.direct_fd() : -1, kAlignment};
  PlanesWriter writer(to, true);
  CHECK(writer.Reserve());
  Workers workers;
  if (threads != 0) CHECK(workers.Start(&writer, threads).ok());
  const auto wait = [&](auto until) {
    do {
      if (threads == 0) writer.WorkOff();
    } while (!until(std::chrono::milliseconds(20)));
  };
  constexpr size_t kSizes[3] = {kChunkSize, kChunkSize, kChunkSize - 12345};
  const std::vector<uint8_t> kinds(3 * PlanesWriter::kBlocks, kPlanesKindWords);
  for (size_t record = 0; record < kRecords; ++record) {
    const size_t at = record * 3 * kChunkSize;
    RawChunk chunks[3];
    for (size_t i = 0; i < 3; ++i) {
      const uint64_t begin = at + i * kChunkSize;
      chunks[i] = {from_file ? begin : AddressOf(data.data()) + begin, kSizes[i], 0, 0,
                   i == 0 ? 2 * kAlignment : 0};
    }
    CHECK(PlanesWriter::Check(chunks, 3, from_file).ok());
    writer.Append(from_file ? source.fd() : -1, chunks, kinds.data(), 3);
    if (record % 3 == 0) wait([&](auto time) { return writer.WaitUntilRead(time); });
  }
  std::vector<StoredChunk> stored;
  std::vector<uint64_t> want;
  std::vector<uint8_t> back(data.size());
  uint64_t end = kAlignment;
  for (size_t record = 0; record < kRecords; ++record) {
    wait([&](auto time) { return writer.WaitUntilWritten(3, time); });
    std::vector<WrittenChunk> written;
    CHECK(writer.Take(3, &written, &want).ok());
    CHECK(written.size() == 3);
    for (size_t i = 0; i < 3; ++i) {
      const size_t at = (record * 3 + i) * kChunkSize;
      if (i == 0) end = AlignDown(end + kAlignment - 1, kAlignment) + 2 * kAlignment;
      CHECK(written[i].offset == end);
      end += written[i].stored_size;
      CHECK(written[i].read == kSizes[i]);
      CHECK(written[i].crc == Crc32(0, data.data() + at, kSizes[i]));
      CHECK((written[i].encoded == 0) == (record == 1 && i == 1));
      if (written[i].encoded != 0)
        stored.push_back({written[i].offset, written[i].stored_size, written[i].digest,
                          AddressOf(back.data()) + at, kSizes[i]});
      else
        std::memcpy(back.data() + at, data.data() + at, kSizes[i]);
    }
  }
  std::vector<WrittenChunk> none;
  CHECK(!writer.Take(1, &none, &want).ok() && !writer.Take(SIZE_MAX / 2, &none, &want).ok());
  writer.Close();
  workers.Join();
  fsync(sink.fd());

  const uint8_t wrong = 0xA5;
  CHECK(WriteAt(sink.fd(), &wrong, 1, stored[9].offset + 100).error == 0);
  stored.push_back({end + kChunkSize, 100, 0, AddressOf(back.data()), 100});  // behind the end of the file
  PlanesReadRequest request;
  request.fd = sink.fd();
  request.direct_fd = to.direct_fd;
  request.chunks = stored.data();
  request.count = stored.size();
  size_t leaf_count = 0;
  uint64_t total = 0;
  CHECK(request.Check(&leaf_count, &total).ok());
  std::vector<uint64_t> leaves(leaf_count);
  std::vector<uint8_t> good(stored.size());
  request.leaves = leaves.data();
  request.good = good.data();
  PlanesReader reader(request);
  if (threads == 0) {
    reader.Work();
  } else {
    Workers readers;
    CHECK(readers.Start(&reader, threads).ok());
    readers.Join();
  }
  for (size_t i = 0; i < good.size(); ++i) CHECK(good[i] == (i == 9 || i + 1 == good.size() ? 0 : 1));
  const size_t bad = static_cast<size_t>(stored[9].raw - AddressOf(back.data()));
  for (size_t at = 0; at < data.size(); at += kChunkSize) {
    const size_t size = kSizes[at / kChunkSize % 3];
    if (at != bad) CHECK(std::equal(back.data() + at, back.data() + at + size, data.data() + at));
  }
  CHECK(std::equal(leaves.begin(), leaves.begin() + PlanesWriter::kLeaves, want.begin()));
}

// Closed at any moment, also with threads that wait for their turn.
void TestPlanesWriterCloses() {
  const std::vector<uint8_t> data(kChunkSize, 1);
  const TempFile sink({});
  const std::vector<uint8_t> kinds(PlanesWriter::kBlocks, 0);
  for (int chunks = 0; chunks < 30; ++chunks) {
    PlanesWriter writer({sink.fd(), -1, 0}, false);
    CHECK(writer.Reserve());
    Workers workers;
    CHECK(workers.Start(&writer, 3).ok());
    const RawChunk chunk = {AddressOf(data.data()), kChunkSize, 0, 0, kAlignment};
    for (int i = 0; i < chunks; ++i) writer.Append(-1, &chunk, kinds.data(), 1);
    writer.Close();
    workers.Join();
    CHECK(writer.WaitUntilRead(std::chrono::milliseconds(1000)));
  }
}

void TestPlanesWriterFails() {
  const int full = open("/dev/full", O_WRONLY);
  if (full < 0) return;
  const std::vector<uint8_t> data(kChunkSize, 1);
  const std::vector<uint8_t> kinds(PlanesWriter::kBlocks, 0);
  PlanesWriter writer({full, -1, 0}, false);
  CHECK(writer.Reserve());
  Workers workers;
  CHECK(workers.Start(&writer, 2).ok());
  const RawChunk chunk = {AddressOf(data.data()), kChunkSize, 0, 0, 0};
  writer.Append(-1, &chunk, kinds.data(), 1);
  while (!writer.WaitUntilWritten(1, std::chrono::milliseconds(20))) {
  }
  std::vector<WrittenChunk> written;
  std::vector<uint64_t> leaves;
  const Status status = writer.Take(1, &written, &leaves);
  CHECK(status.code() == Status::Code::kIoError && status.error() == ENOSPC);
  workers.Join();
  close(full);
}

void TestScan() {
  std::vector<uint8_t> data(3 * kChunkSize + 8);
  const std::vector<uint64_t> places = {0, kAlignment, kChunkSize, 3 * kChunkSize};
  for (const uint64_t at : places) std::memcpy(data.data() + at, kMagicRecord, kMagicSize);
  std::memcpy(data.data() + 100, kMagicRecord, kMagicSize);
  const TempFile file(data);
  BlockScan scan(file.fd(), reinterpret_cast<const uint8_t*>(kMagicRecord), 0, UINT64_MAX);
  Workers workers;
  CHECK(workers.Start(&scan, 3).ok());
  workers.Join();
  std::vector<uint64_t> offsets;
  CHECK(scan.Finish(&offsets).ok());
  CHECK(offsets == places);
}

void TestArithmetic() {
  uint64_t out = 0;
  CHECK(!AlignUp(UINT64_MAX, 4096, &out) && !AlignUp(UINT64_MAX - 4094, 4096, &out));
  CHECK(AlignUp(UINT64_MAX - 4095, 4096, &out) && out == UINT64_MAX - 4095);
  CHECK(AlignUp(0, 4096, &out) && out == 0);
  CHECK(LeafCount(UINT64_MAX) == (UINT64_MAX >> 14) + 1);
  CHECK(AddOverflows(UINT64_MAX, 1) && !AddOverflows(UINT64_MAX, 0));
  AlignedBuffer buffer;
  CHECK(!buffer.Reserve(SIZE_MAX) && !buffer.Reserve(SIZE_MAX / 2));
  CHECK(buffer.Reserve(1) && IsAligned(AddressOf(buffer.data()), kAlignment));
  CHECK(buffer.Reserve(3 * 1024 * 1024) && buffer.size() >= 3 * 1024 * 1024);
}

}  // namespace
}  // namespace fastckpt

int main() {
  fastckpt::TestArithmetic();
  fastckpt::TestLevelsAgree();
  fastckpt::TestCombine();
  fastckpt::TestTransfers();
  fastckpt::TestFaultsAndErrors();
  fastckpt::TestCancel();
  for (const int threads : {0, 1, 3, 9})
    for (const size_t slots : {size_t{1}, size_t{2}, size_t{5}})
      for (const size_t slot_size : {2 * fastckpt::kLeafSize, size_t{3} << 20, size_t{32} << 20})
        for (const bool direct : {false, true})
          fastckpt::TestSlotFiller(threads, slots, slot_size, direct);
  fastckpt::TestSlotFillerCloses();
  for (const int threads : {0, 1, 3, 9})
    for (const bool direct : {false, true})
      for (const bool from_file : {false, true}) fastckpt::TestPlanesFiles(threads, direct, from_file);
  fastckpt::TestPlanesWriterCloses();
  fastckpt::TestPlanesWriterFails();
  fastckpt::TestScan();
  std::printf("%s\n", fastckpt::failures == 0 ? "all passed" : "FAILED");
  return fastckpt::failures == 0 ? 0 : 1;
}

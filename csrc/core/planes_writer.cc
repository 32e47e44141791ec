#include "planes_writer.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "bytes.h"
#include "crc32.h"
#include "file_io.h"
#include "hash.h"
#include "planes.h"

namespace fastckpt {

PlanesWriter::PlanesWriter(const Sink& sink, bool want_crcs)
    : sink_(sink), want_crcs_(want_crcs), position_(sink.offset) {}

bool PlanesWriter::Reserve() {
  for (Segment& segment : segments_)
    if (!segment.memory.Reserve(kSegmentSize)) return false;
  return true;
}

Status PlanesWriter::Check(const RawChunk* chunks, size_t count, bool from_file) {
  for (size_t i = 0; i < count; ++i) {
    const RawChunk& chunk = chunks[i];
    if (chunk.size == 0 || chunk.size > kChunkSize)
      return Status::InvalidArgument("not the size of a chunk", i);
    if (from_file ? chunk.source > INT64_MAX - kChunkSize : chunk.source == 0)
      return Status::InvalidArgument("source out of range", i);
    if (chunk.row_length > UINT32_MAX || chunk.phase > UINT32_MAX ||
        !IsAligned(chunk.skip, kAlignment) || chunk.skip > INT64_MAX / 2)
      return Status::InvalidArgument("row or skip out of range", i);
  }
  return Status::Ok();
}

void PlanesWriter::Append(int source_fd, const RawChunk* chunks, const uint8_t* kinds,
                          size_t count) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < count; ++i) {
    Chunk& chunk = chunks_.emplace_back();
    chunk.source_fd = source_fd;
    chunk.raw = chunks[i];
    std::memcpy(chunk.kinds, kinds + i * kBlocks, kBlocks);
  }
  appended_.notify_all();
}

void PlanesWriter::Work() { Run(true); }
void PlanesWriter::WorkOff() { Run(false); }

void PlanesWriter::Run(bool stay) {
  SpanWriter writer(sink_.fd, sink_.direct_fd, &direct_works_);
  Room room;
  if (!room.raw.Reserve(kChunkSize) || !room.out.Reserve(PlanesRoom(kChunkSize)))
    return Fail(Status::NoMemory());
  uint64_t number = 0;
  while (Chunk* const chunk = Next(stay, &number)) {
    const uint8_t* stored = nullptr;
    if (!Encode(chunk, &room, &stored)) return;
    Part parts[kMostParts];
    const size_t count = PlaceInOrder(chunk, number, parts);
    AddProgress(chunk->raw.size);
    // Once it is written, the chunk may be taken, and is no more.
    for (size_t i = 0; i < count; stored += parts[i++].size) Fill(parts[i], stored, &writer);
  }
}

PlanesWriter::Chunk* PlanesWriter::Next(bool stay, uint64_t* number) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (stay && !stopped() && begun_ == taken_ + chunks_.size()) appended_.wait(lock);
  if (stopped() || begun_ == taken_ + chunks_.size()) return nullptr;
  *number = begun_++;
  return &chunks_[static_cast<size_t>(*number - taken_)];
}

// Reads, hashes and encodes a chunk; `stored` is what to write.
bool PlanesWriter::Encode(Chunk* chunk, Room* room, const uint8_t** stored) {
  WrittenChunk& written = chunk->written;
  const size_t size = static_cast<size_t>(chunk->raw.size);
  uint8_t* const raw = room->raw.data();
  // A copy: what is still being changed would not be what its digests say.
  if (chunk->source_fd < 0) {
    std::memcpy(raw, ToPointer(chunk->raw.source), size);
    written.read = size;
  } else {
    const IoResult read = ReadAt(chunk->source_fd, raw, size, chunk->raw.source);
    written.read = read.done;
    written.error = static_cast<uint64_t>(read.error);
    std::memset(raw + read.done, 0, size - read.done);
  }
  HashLeaves(raw, size, chunk->leaves);
  if (want_crcs_) written.crc = Crc32(0, raw, size);
  const PlanesChunk planes = {raw, size, chunk->kinds,
                              static_cast<uint32_t>(chunk->raw.row_length),
                              static_cast<uint32_t>(chunk->raw.phase)};
  size_t stored_size = 0;
  const Status status = EncodePlanes(planes, room->out.data(), &stored_size);
  if (!status.ok()) {
    Fail(status);
    return false;
  }
  written.encoded = stored_size != 0 ? 1 : 0;
  *stored = written.encoded != 0 ? room->out.data() : raw;
  written.stored_size = written.encoded != 0 ? stored_size : size;
  if (written.encoded != 0) written.digest = HashBytes(*stored, stored_size);
  return true;
}

// Waits for the chunks before this one, and gives it its parts of the segments. None when the writer
// has stopped.
size_t PlanesWriter::PlaceInOrder(Chunk* chunk, uint64_t number, Part* parts) {
  std::unique_lock<std::mutex> lock(mutex_);
  ++read_;
  done_.notify_all();
  while (!stopped() && in_place_ != number) placed_.wait(lock);
  size_t count = 0;
  if (chunk->raw.skip != 0) {
    if (HasOpenSegment()) parts[count++] = CloseSegment();
    position_ = AlignDown(position_ + kAlignment - 1, kAlignment) + chunk->raw.skip;
  }
  chunk->written.offset = position_;
  for (size_t left = static_cast<size_t>(chunk->written.stored_size); left != 0;) {
    while (!stopped() && !HasOpenSegment() && opened_ - written_ == kSegments) placed_.wait(lock);
    if (stopped()) return 0;
    if (!HasOpenSegment()) {
      Segment& fresh = At(opened_++);
      fresh.offset = position_;
      fresh.filled = fresh.copying = 0;
      fresh.closed = fresh.written = false;
    }
    Segment& segment = At(opened_ - 1);
    const size_t size = std::min(left, kSegmentSize - segment.filled);
    parts[count++] = {&segment, segment.filled, size};
    segment.filled += size;
    ++segment.copying;
    segment.closed = segment.filled == kSegmentSize;
    position_ += size;
    left -= size;
  }
  chunk->last_segment = opened_ - 1;
  ++in_place_;
  placed_.notify_all();
  done_.notify_all();
  return count;
}

// The lock is held. Fills the segment up with zeros; what is returned is a part of no bytes, to be
// filled like others.
PlanesWriter::Part PlanesWriter::CloseSegment() {
  Segment& last = At(opened_ - 1);
  const size_t whole = static_cast<size_t>(AlignDown(last.filled + kAlignment - 1, kAlignment));
  std::memset(last.memory.data() + last.filled, 0, whole - last.filled);
  last.filled = whole;
  last.closed = true;
  ++last.copying;
  return {&last, whole, 0};
}

// Whoever fills the last part of a closed segment writes it.
void PlanesWriter::Fill(const Part& part, const uint8_t* from, SpanWriter* writer) {
  Segment& segment = *part.segment;
  if (part.size != 0) std::memcpy(segment.memory.data() + part.at, from, part.size);
  std::unique_lock<std::mutex> lock(mutex_);
  if (--segment.copying != 0 || !segment.closed) return;
  lock.unlock();
  const Status status = writer->Write(segment.memory.data(), segment.filled, segment.offset);
  if (!status.ok()) return Fail(status);
  lock.lock();
  segment.written = true;
  while (written_ != opened_ && At(written_).written) ++written_;
  placed_.notify_all();
  done_.notify_all();
}

bool PlanesWriter::WaitUntilRead(std::chrono::milliseconds timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  return done_.wait_for(lock, timeout,
                        [&] { return stopped() || read_ == taken_ + chunks_.size(); });
}

bool PlanesWriter::WaitUntilWritten(size_t count, std::chrono::milliseconds timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (count == 0 || count > chunks_.size()) return true;
  const uint64_t end = taken_ + count;
  if (!done_.wait_for(lock, timeout, [&] { return stopped() || in_place_ >= end; })) return false;
  if (stopped()) return true;
  const uint64_t last = chunks_[count - 1].last_segment;
  if (last + 1 == opened_ && HasOpenSegment()) {
    const Part part = CloseSegment();
    lock.unlock();
    SpanWriter writer(sink_.fd, sink_.direct_fd, &direct_works_);
    Fill(part, nullptr, &writer);
    lock.lock();
  }
  return done_.wait_for(lock, timeout, [&] { return stopped() || written_ > last; });
}

Status PlanesWriter::Take(size_t count, std::vector<WrittenChunk>* chunks,
                          std::vector<uint64_t>* leaves) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!status_.ok()) return status_;
  if (count > chunks_.size() || (count != 0 && (in_place_ < taken_ + count ||
                                                written_ <= chunks_[count - 1].last_segment)))
    return Status::InvalidArgument("so many chunks are not written");
  for (size_t i = 0; i < count; ++i) {
    const Chunk& chunk = chunks_[i];
    chunks->push_back(chunk.written);
    leaves->insert(leaves->end(), chunk.leaves, chunk.leaves + LeafCount(chunk.raw.size));
  }
  for (size_t i = 0; i < count; ++i, ++taken_) chunks_.pop_front();
  return Status::Ok();
}

void PlanesWriter::Fail(const Status& status) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (status_.ok()) status_ = status;
  WakeAll();
}

void PlanesWriter::Close() {
  std::lock_guard<std::mutex> lock(mutex_);
  Cancel();
  WakeAll();
}

void PlanesWriter::WakeAll() {
  appended_.notify_all();
  placed_.notify_all();
  done_.notify_all();
}

}  // namespace fastckpt

#include "span_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "bytes.h"
#include "constants.h"
#include "file_io.h"
#include "residency.h"

namespace fastckpt {

namespace {

// Hands over [begin, end) piece by piece.
void Deliver(size_t begin, size_t end, SpanObserver* observer) {
  for (size_t at = begin; at < end; at += kPiece)
    observer->OnData(at, std::min(at + kPiece, end));
}

}  // namespace

void SpanReader::Read(uint64_t offset, uint8_t* to, size_t size, SpanObserver* observer) {
  // Direct reads only speed things up: whatever they do not bring, for whatever reason, the plain
  // reads are asked for, and these alone decide what is a fault.
  const size_t begin = DirectWorks() ? ReadPastCache(offset, to, size, observer) : 0;
  ReadPlain(offset, to, begin, size, observer);
}

size_t SpanReader::ReadPastCache(uint64_t offset, uint8_t* to, size_t size,
                                 SpanObserver* observer) {
  // One question for the whole span; only where the answer is mixed, one for each piece.
  Residency whole = QueryResidency(fd_, offset, size);
  const auto residency_of = [&](size_t begin, size_t piece) {
    return whole == Residency::kSome ? QueryResidency(fd_, offset + begin, piece) : whole;
  };
  size_t at = 0;
  while (at < size && !job_->cancelled()) {
    const size_t piece = std::min(kPiece, size - at);
    const Residency residency = residency_of(at, piece);
    if (residency == Residency::kAll || residency == Residency::kUnknown) {
      const IoResult read = ReadCachedAt(fd_, to + at, piece, offset + at);
      if (read.done == piece) {
        observer->OnData(at, at + piece);
        at += piece;
        continue;
      }
      if (whole == Residency::kAll) whole = Residency::kSome;  // evicted since it was asked
    }
    // Everything up to the next piece that is cached goes into one large direct read.
    size_t end = at + piece;
    while (end < size) {
      const size_t next = std::min(kPiece, size - end);
      if (residency_of(end, next) == Residency::kAll) break;
      end += next;
    }
    const size_t reached = ReadDirect(offset, to, at, end, observer);
    at = reached;
    if (reached < end) break;
  }
  return at;
}

size_t SpanReader::ReadDirect(uint64_t offset, uint8_t* to, size_t begin, size_t end,
                              SpanObserver* observer) {
  if (!IsAligned(offset + begin, kAlignment) || !IsAligned(AddressOf(to + begin), kAlignment))
    return ReadBounced(offset, to, begin, end, observer);
  const size_t whole = static_cast<size_t>(AlignDown(end - begin, kAlignment));
  const IoResult read = ReadDirectAt(direct_fd_, to + begin, whole, offset + begin);
  if (read.done < whole) {
    NoteDirectError(read.error);
    const size_t leaves = static_cast<size_t>(AlignDown(read.done, kLeafSize));
    Deliver(begin, begin + leaves, observer);
    return begin + leaves;
  }
  // The bytes of the last, partial sector cannot be read in place.
  const size_t tail = end - begin - whole;
  if (tail != 0) {
    const size_t whole_leaves = static_cast<size_t>(AlignDown(whole, kLeafSize));
    Deliver(begin, begin + whole_leaves, observer);
    if (!bounce_.Reserve(kAlignment)) return begin + whole_leaves;
    const IoResult last =
        ReadDirectAt(direct_fd_, bounce_.data(), kAlignment, offset + begin + whole);
    if (last.done < tail) return begin + whole_leaves;
    std::memcpy(to + begin + whole, bounce_.data(), tail);
    Deliver(begin + whole_leaves, end, observer);
  } else {
    Deliver(begin, end, observer);
  }
  return end;
}

size_t SpanReader::ReadBounced(uint64_t offset, uint8_t* to, size_t begin, size_t end,
                               SpanObserver* observer) {
  const uint64_t first = AlignDown(offset + begin, kAlignment);
  uint64_t last = 0;
  if (!AlignUp(offset + end, kAlignment, &last)) return begin;
  const size_t skip = static_cast<size_t>(offset + begin - first);
  if (!bounce_.Reserve(static_cast<size_t>(last - first))) return begin;
  const IoResult read =
      ReadDirectAt(direct_fd_, bounce_.data(), static_cast<size_t>(last - first), first);
  size_t got = read.done > skip ? std::min(read.done - skip, end - begin) : 0;
  if (got < end - begin) {
    NoteDirectError(read.error);
    got = static_cast<size_t>(AlignDown(got, kLeafSize));
  }
  for (size_t at = 0; at < got; at += kPiece) {
    const size_t piece = std::min(kPiece, got - at);
    std::memcpy(to + begin + at, bounce_.data() + skip + at, piece);
    observer->OnData(begin + at, begin + at + piece);
  }
  return begin + got;
}

void SpanReader::ReadPlain(uint64_t offset, uint8_t* to, size_t begin, size_t size,
                           SpanObserver* observer) {
  for (size_t at = begin; at < size && !job_->cancelled();) {
    const size_t piece = std::min(kPiece, size - at);
    const IoResult read = ReadAt(fd_, to + at, piece, offset + at);
    if (read.done == piece) {
      observer->OnData(at, at + piece);
    } else if (read.error != 0 && !ConcernsPlace(read.error)) {
      return observer->OnFault(at, size, read.error);
    } else if (!ReadLeaves(offset, to, at, at + piece, size, observer)) {
      return;
    }
    at += piece;
  }
}

// Goes over a piece that could not be read whole, leaf by leaf, to lose no more than must be.
// False when the file ended, and with it the span.
bool SpanReader::ReadLeaves(uint64_t offset, uint8_t* to, size_t begin, size_t end, size_t size,
                            SpanObserver* observer) {
  for (size_t at = begin; at < end && !job_->cancelled();) {
    const size_t leaf = std::min(kLeafSize, end - at);
    const IoResult read = ReadAt(fd_, to + at, leaf, offset + at);
    if (read.done == leaf) {
      observer->OnData(at, at + leaf);
    } else if (read.error == 0) {
      observer->OnFault(at + read.done, size, 0);
      return false;
    } else {
      observer->OnFault(at, at + leaf, read.error);
    }
    at += leaf;
  }
  return true;
}

void SpanReader::NoteDirectError(int error) {
  if (error == EINVAL || error == EOPNOTSUPP)
    direct_works_->store(false, std::memory_order_relaxed);
}

}  // namespace fastckpt

#include "span_reader.h"

#include <algorithm>

#include "bytes.h"
#include "constants.h"
#include "file_io.h"
#include "residency.h"

namespace fastckpt {

void SpanReader::Read(uint64_t offset, uint8_t* to, size_t size, SpanObserver* observer) {
  // Direct reads only speed things up: whatever they do not bring, for whatever reason, the plain
  // reads are asked for, and these alone decide what is a fault.
  const size_t begin = direct_.works() ? ReadPastCache(offset, to, size, observer) : 0;
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

// Returns how far it got, in whole leaves unless that is all.
size_t SpanReader::ReadDirect(uint64_t offset, uint8_t* to, size_t begin, size_t end,
                              SpanObserver* observer) {
  const FileSpan span = {offset + begin, end - begin, to + begin};
  const uint64_t got = direct_.Read(&span, 1);
  const size_t reached =
      got < span.size ? static_cast<size_t>(AlignDown(got, kLeafSize)) : span.size;
  Settle(span, begin, reached, observer);
  return begin + reached;
}

bool SpanReader::ReadTogether(const FileSpan* spans, size_t count) {
  const FileSpan& last = spans[count - 1];
  const uint64_t size = last.offset + last.size - spans[0].offset;
  return direct_.works() &&
         QueryResidency(fd_, spans[0].offset, static_cast<size_t>(size)) == Residency::kNone &&
         direct_.Read(spans, count) >= size;
}

void SpanReader::Deliver(const FileSpan& span, SpanObserver* observer) {
  Settle(span, 0, span.size, observer);
}

// Hands over [0, size) of a span piece by piece; `begin` is where that is for the observer.
void SpanReader::Settle(const FileSpan& span, size_t begin, size_t size, SpanObserver* observer) {
  for (size_t at = 0; at < size; at += kPiece) {
    const size_t end = std::min(at + kPiece, size);
    direct_.Settle(span, at, end);
    observer->OnData(begin + at, begin + end);
  }
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

}  // namespace fastckpt

#include "direct_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "bytes.h"
#include "constants.h"
#include "file_io.h"

namespace fastckpt {

namespace {

// Less than this is copied: a copy costs less than one more part of a request.
constexpr size_t kLeastInPlace = 64 * 1024;

// The part of the file that a span takes in place: whole pages, and only where the bytes shall lie
// within their pages as they do in the file. Empty at the end of the span where there is none.
struct Inner {
  explicit Inner(const FileSpan& span) : begin(span.offset + span.size), end(begin) {
    uint64_t first = 0;
    if (span.size < kLeastInPlace || !IsAligned(span.offset - AddressOf(span.to), kAlignment) ||
        !AlignUp(span.offset, kAlignment, &first))
      return;
    begin = first;
    end = AlignDown(span.offset + span.size, kAlignment);
  }
  uint64_t begin;
  uint64_t end;
};

}  // namespace

uint64_t DirectReader::Read(const FileSpan* spans, size_t count) {
  const uint64_t begin = spans[0].offset;
  uint64_t last = 0;
  if (!AlignUp(spans[count - 1].offset + spans[count - 1].size, kAlignment, &last)) return 0;
  first_ = AlignDown(begin, kAlignment);
  if (!other_.Reserve(static_cast<size_t>(last - first_))) return 0;
  parts_.clear();
  uint64_t at = first_;
  const auto add_other = [&](uint64_t to) {
    if (at < to) parts_.push_back({other_.data() + (at - first_), static_cast<size_t>(to - at)});
    at = to;
  };
  for (size_t i = 0; i < count; ++i) {
    const Inner inner(spans[i]);
    if (inner.begin == inner.end) continue;
    add_other(inner.begin);
    parts_.push_back({spans[i].to + (inner.begin - spans[i].offset),
                      static_cast<size_t>(inner.end - inner.begin)});
    at = inner.end;
  }
  add_other(last);
  const IoResult read = ReadDirectAt(fd_, parts_.data(), static_cast<int>(parts_.size()), first_);
  if (read.error == EINVAL || read.error == EOPNOTSUPP)
    works_->store(false, std::memory_order_relaxed);
  return first_ + read.done > begin ? first_ + read.done - begin : 0;
}

void DirectReader::Settle(const FileSpan& span, size_t begin, size_t end) const {
  const Inner inner(span);
  const uint64_t from = span.offset + begin;
  const uint64_t to = span.offset + end;
  const auto copy = [&](uint64_t at, uint64_t until) {
    if (at < until)
      std::memcpy(span.to + (at - span.offset), other_.data() + (at - first_),
                  static_cast<size_t>(until - at));
  };
  copy(from, std::min(to, inner.begin));
  copy(std::max(from, inner.end), to);
}

}  // namespace fastckpt

#include "planes_plan.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace fastckpt {
namespace planes {

namespace {

struct Shape {
  uint8_t levels = 0;
  uint8_t widths[kPlanesMaxLevels] = {};
};

// The widths that are tried, those of fewer levels first: they decode faster. Digits of one or two
// bits follow a steep slope of frequencies, wider ones serve where values are nearly even.
const std::vector<Shape>& Shapes() {
  static const std::vector<Shape> shapes = [] {
    static constexpr uint8_t kWidest[kPlanesMaxLevels][kPlanesMaxLevels] = {
        {7}, {5, 5}, {3, 3, 4}, {2, 3, 3, 3}, {2, 2, 2, 2, 2}, {2, 2, 2, 2, 2, 2}};
    std::vector<Shape> found;
    for (uint8_t levels = 1; levels <= kPlanesMaxLevels; ++levels) {
      Shape shape;
      shape.levels = levels;
      std::fill_n(shape.widths, levels, uint8_t{1});
      for (bool more = true; more;) {
        found.push_back(shape);
        more = false;
        for (size_t level = 0; level < levels && !more; ++level) {
          more = shape.widths[level] < kWidest[levels - 1][level];
          shape.widths[level] = more ? static_cast<uint8_t>(shape.widths[level] + 1) : uint8_t{1};
        }
      }
    }
    return found;
  }();
  return shapes;
}

struct Cost {
  uint64_t bits = UINT64_MAX;
  const Shape* shape = nullptr;
};

// `below[k]` is how many values have a rank below k. Bits of all values in this shape, the last
// level closed or not.
uint64_t BitsOf(const Shape& shape, const uint32_t* below, bool closed) {
  const uint64_t total = below[256];
  uint64_t left = total;
  uint64_t bits = 0;
  size_t rank = 0;
  for (size_t level = 0; level < shape.levels; ++level) {
    bits += left * shape.widths[level];
    rank = std::min<size_t>(256, rank + (size_t{1} << shape.widths[level]) - 1);
    left = total - below[rank];
  }
  return closed ? bits : bits + 8 * left;
}

// Values in the order of how often they occur, equal ones in rising order.
struct Ranking {
  explicit Ranking(const uint32_t* counts) {
    for (size_t i = 0; i < 256; ++i)
      if (counts[i] != 0) order[seen++] = (uint64_t{UINT32_MAX - counts[i]} << 8) | i;
    std::sort(order, order + seen);
    below[0] = 0;
    for (size_t rank = 0; rank < 256; ++rank)
      below[rank + 1] = below[rank] + (rank < seen ? counts[Symbol(rank)] : 0);
  }
  uint8_t Symbol(size_t rank) const { return static_cast<uint8_t>(order[rank] & 255); }

  uint64_t order[256];
  uint32_t below[257];
  size_t seen = 0;
};

// Ranks that the levels of a shape reach.
size_t Reach(const uint8_t* widths, size_t levels, bool closed) {
  size_t rank = closed ? 1 : 0;
  for (size_t level = 0; level < levels; ++level) rank += (size_t{1} << widths[level]) - 1;
  return std::min<size_t>(256, rank);
}

// So near to even that nesting cannot save a twentieth: a bound on the entropy by the chance that
// two values are equal.
bool IsFlat(const uint32_t* counts, uint64_t total) {
  uint64_t squares = 0;
  for (size_t i = 0; i < 256; ++i) squares += uint64_t{counts[i]} * counts[i];
  return squares < total + total * total * 3 / 512;
}

uint8_t BestWindow(const uint32_t* counts) {
  uint64_t sum = 0;
  for (size_t i = 0; i < 32; ++i) sum += counts[i];
  uint64_t most = sum;
  size_t best = 0;
  for (size_t start = 1; start + 32 <= 256; ++start) {
    sum += counts[start + 31];
    sum -= counts[start - 1];
    if (sum > most) {
      most = sum;
      best = start;
    }
  }
  return static_cast<uint8_t>(best);
}

}  // namespace

bool CompleteSymbols(size_t listed, Nesting* nesting) {
  bool used[256] = {};
  for (size_t i = 0; i < listed; ++i) {
    if (used[nesting->symbols[i]]) return false;
    used[nesting->symbols[i]] = true;
  }
  size_t next = listed;
  for (size_t symbol = 0; symbol < 256; ++symbol)
    if (!used[symbol]) nesting->symbols[next++] = static_cast<uint8_t>(symbol);
  nesting->covered = Reach(nesting->widths, nesting->levels, nesting->closed);
  return true;
}

void Histogram::Clear() { std::memset(parts_, 0, sizeof parts_); }

void Histogram::Add(const uint8_t* values, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const uint64_t eight = Load64(values + i);
    for (size_t k = 0; k < 8; ++k) ++parts_[k % 4][(eight >> (8 * k)) & 255];
  }
  for (; i < n; ++i) ++parts_[0][values[i]];
}

void Histogram::Sum(uint32_t* counts) const {
  for (size_t i = 0; i < 256; ++i)
    counts[i] = parts_[0][i] + parts_[1][i] + parts_[2][i] + parts_[3][i];
}

uint64_t NestedBits(const Histogram& sample) {
  uint32_t counts[256];
  sample.Sum(counts);
  const Ranking ranking(counts);
  uint64_t best = 8 * uint64_t{ranking.below[256]};
  for (const Shape& shape : Shapes()) best = std::min(best, BitsOf(shape, ranking.below, false));
  return best;
}

Verdict ChooseNesting(const PlaneFacts& facts, PlanePlan* plan) {
  uint64_t total = 0;
  for (size_t i = 0; i < 256; ++i) total += facts.counts[i];
  if (total == 0 || (facts.flat_bits == 8 && IsFlat(facts.counts, total))) return Verdict::kFlat;

  const Ranking ranking(facts.counts);
  const size_t seen = ranking.seen;
  Cost open;
  Cost closed;
  for (const Shape& shape : Shapes()) {
    const uint64_t bits = BitsOf(shape, ranking.below, false);
    if (bits < open.bits) open = {bits, &shape};
    if (Reach(shape.widths, shape.levels, true) < seen) continue;
    const uint64_t closed_bits = BitsOf(shape, ranking.below, true);
    if (closed_bits < closed.bits) closed = {closed_bits, &shape};
  }
  const bool close = closed.bits < open.bits - open.bits / 128;
  const Cost& best = close ? closed : open;
  const size_t listed = std::min(seen, Reach(best.shape->widths, best.shape->levels, close));
  // The table counts, too; of a sample it is the same part as of the whole.
  const uint64_t table = facts.values == 0 ? 0 : 8 * listed * total / facts.values;
  if ((best.bits + table) * 64 >= total * facts.flat_bits * 61) return Verdict::kFlat;
  if (close && !facts.exact) return Verdict::kNeedsAll;

  Nesting& nesting = plan->nesting;
  nesting.levels = best.shape->levels;
  std::memcpy(nesting.widths, best.shape->widths, sizeof nesting.widths);
  nesting.closed = close;
  plan->mode = kPlanesModeNested;
  plan->listed = listed;
  for (size_t rank = 0; rank < listed; ++rank)
    nesting.symbols[rank] = ranking.Symbol(rank);
  CompleteSymbols(listed, &nesting);
  for (size_t rank = 0; rank < 256; ++rank)
    nesting.ranks[nesting.symbols[rank]] = static_cast<uint8_t>(rank);
  nesting.window = BestWindow(facts.counts);
  return Verdict::kNested;
}

}  // namespace planes
}  // namespace fastckpt

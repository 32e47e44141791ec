// How the planes of one block are stored: what an encoder chooses, and a decoder reads back.
// Internal to planes*.cc.

#ifndef FASTCKPT_CORE_PLANES_PLAN_H_
#define FASTCKPT_CORE_PLANES_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "constants.h"
#include "planes_kernels.h"

namespace fastckpt {
namespace planes {

struct PlanePlan {
  uint8_t mode = kPlanesModeRaw;
  uint8_t count = 0;      // packed: bits of a value
  uint8_t base = 0;       // packed: added to each
  size_t listed = 0;      // nested: symbols in the table
  Nesting nesting;        // nested

  bool nested() const { return mode == kPlanesModeNested; }
  bool constant() const { return mode == kPlanesModePacked && count == 0; }
  // Bytes of m values, unless it is nested.
  size_t FlatSize(size_t m) const { return mode == kPlanesModeRaw ? m : count * RowSize(m); }
};

// Fills up the symbols behind the first `listed` in rising order, and finds `covered`. False if two
// of those listed are equal.
bool CompleteSymbols(size_t listed, Nesting* nesting);

// How often each of the 256 values occurs in a sample, or in all of a plane.
class Histogram {
 public:
  void Clear();
  void Add(const uint8_t* values, size_t n);
  // Of all that were added since Clear().
  void Sum(uint32_t* counts) const;

 private:
  // Several, so that equal values that follow one another do not wait for each other.
  uint32_t parts_[4][256];
};

// What is known of a plane: its values and how often, in a sample or in all of it.
struct PlaneFacts {
  uint32_t counts[256];
  bool exact = false;      // every value was counted
  unsigned flat_bits = 8;  // what a value takes otherwise
  size_t values = 0;       // in the whole block
};

enum class Verdict { kFlat, kNested, kNeedsAll };

// Whether nesting pays, and how; `kNeedsAll`: that depends on all values being counted.
Verdict ChooseNesting(const PlaneFacts& facts, PlanePlan* plan);

// Bits that the values of a sample take when they are nested as well as possible, at most 8 each.
uint64_t NestedBits(const Histogram& sample);

}  // namespace planes
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_PLAN_H_

// Shifts of rows and columns: what an encoder finds out about the exponents of a matrix. Internal
// to planes*.cc.

#ifndef FASTCKPT_CORE_PLANES_SHIFT_H_
#define FASTCKPT_CORE_PLANES_SHIFT_H_

#include <cstddef>
#include <cstdint>

#include "planes.h"
#include "planes_kernels.h"
#include "planes_tile.h"

namespace fastckpt {
namespace planes {

// Second moments of an optimizer have rows and columns of their own magnitude: their exponents,
// less what the row and the column have in common, take about a bit less each. Weights mostly do
// not.
class ShiftFinder {
 public:
  // Shifts that save more than they take, or none. They stay valid as long as this object.
  Shifts Find(const Kernels& kernels, const PlanesChunk& chunk);

 private:
  static constexpr size_t kMostElements = kChunkSize;
  // Tables take at most a byte for so many elements.
  static constexpr size_t kElementsPerByte = 32;
  static constexpr size_t kMostShifts = kMostElements / kElementsPerByte;

  size_t RowStart(size_t row) const { return row * row_length_ - (row == 0 ? 0 : phase_); }
  const uint8_t* Exponents(size_t first, size_t n);
  bool LooksWorthwhile();
  void FindColumns();
  void FindRows();
  bool Saves();

  const Kernels* kernels_ = nullptr;
  const uint8_t* raw_ = nullptr;
  unsigned kind_ = 0;
  size_t word_ = 0;
  size_t elements_ = 0;
  size_t row_length_ = 0;
  size_t phase_ = 0;
  size_t row_count_ = 0;
  size_t first_whole_ = 0;  // row
  size_t whole_rows_ = 0;
  Shifts shifts_;

  uint8_t tables_[kMostShifts];
  int32_t sums_[kMostShifts];
  uint32_t counts_[kMostShifts];
  Lane lanes_[kMaxPlanes];
};

}  // namespace planes
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_SHIFT_H_

#include "planes_shift.h"

#include <algorithm>

#include "planes_plan.h"

namespace fastckpt {
namespace planes {

namespace {

// Only these have an exponent that says more than the bits below it.
bool HasExponent(unsigned kind) {
  return kind == kPlanesKindFloat16 || kind == kPlanesKindBfloat16 || kind == kPlanesKindFloat32 ||
         kind == kPlanesKindFloat64;
}

// To the nearest; `by` is positive.
int32_t DivideRounded(int64_t value, int64_t by) {
  const int64_t twice = 2 * value + by;
  const int64_t quotient = twice / (2 * by);
  return static_cast<int32_t>(quotient - (twice % (2 * by) < 0 ? 1 : 0));
}

constexpr int32_t kFine = 16;  // parts of one step of an exponent that means are kept in

}  // namespace

// Plane 0 of elements [first, first + n), at most a tile of them.
const uint8_t* ShiftFinder::Exponents(size_t first, size_t n) {
  uint8_t* planes[kMaxPlanes];
  for (size_t p = 0; p < kMaxPlanes; ++p) planes[p] = lanes_[p].values;
  kernels_->split(kind_, raw_ + first * word_, n, planes);
  return lanes_[0].values;
}

// A first look at a few thousand elements: how much of the spread of the exponents is that of rows
// and of columns.
bool ShiftFinder::LooksWorthwhile() {
  constexpr size_t kRows = 16;
  constexpr size_t kColumns = 256;
  const size_t rows = std::min(kRows, whole_rows_);
  const size_t columns = std::min(kColumns, row_length_);
  int64_t of_columns[kColumns] = {};
  int64_t sum = 0;
  int64_t squares = 0;
  int64_t between_rows = 0;
  for (size_t i = 0; i < rows; ++i) {
    const size_t row = first_whole_ + i * whole_rows_ / rows;
    const uint8_t* exponents = Exponents(RowStart(row), columns);
    int64_t of_row = 0;
    for (size_t c = 0; c < columns; ++c) {
      const int64_t value = exponents[c];
      of_columns[c] += value;
      of_row += value;
      squares += value * value;
    }
    sum += of_row;
    between_rows += of_row * of_row;
  }
  const int64_t n = static_cast<int64_t>(rows * columns);
  int64_t between_columns = 0;
  for (size_t c = 0; c < columns; ++c) between_columns += of_columns[c] * of_columns[c];
  // Sums of squares, times n: of all, and of what rows and columns leave.
  const int64_t all = squares * n - sum * sum;
  const int64_t left = all - (between_rows * static_cast<int64_t>(rows) - sum * sum) -
                       (between_columns * static_cast<int64_t>(columns) - sum * sum);
  // Means of so few rows always take a sixteenth or more: that proves nothing.
  const int64_t chance = static_cast<int64_t>(rows - 1);
  return rows >= 4 && left * 10 < all * 8 * chance / static_cast<int64_t>(rows);
}

// The shift of a column: the mean of what its exponents are above those of their rows.
void ShiftFinder::FindColumns() {
  constexpr size_t kRows = 32;
  const size_t rows = std::min(kRows, whole_rows_);
  std::fill_n(sums_, row_length_, 0);
  std::fill_n(counts_, row_length_, 0U);
  for (size_t i = 0; i < rows; ++i) {
    const size_t start = RowStart(first_whole_ + i * whole_rows_ / rows);
    for (size_t c = 0; c < row_length_; c += kPlanesTile) {
      const size_t n = std::min(kPlanesTile, row_length_ - c);
      const uint8_t* exponents = Exponents(start + c, n);
      // Zeros have no magnitude.
      int32_t sum = 0;
      int32_t count = 0;
      for (size_t k = 0; k < n; ++k) {
        sum += exponents[k];
        count += exponents[k] != 0 ? 1 : 0;
      }
      if (count == 0) continue;
      const int32_t mean = sum * kFine / count;
      for (size_t k = 0; k < n; ++k) {
        const int32_t above = exponents[k] * kFine - mean;
        sums_[c + k] += exponents[k] != 0 ? above : 0;
        counts_[c + k] += exponents[k] != 0 ? 1 : 0;
      }
    }
  }
  uint8_t* columns = tables_ + row_count_;
  for (size_t c = 0; c < row_length_; ++c)
    columns[c] = static_cast<uint8_t>(
        counts_[c] == 0 ? 0 : DivideRounded(sums_[c], int64_t{counts_[c]} * kFine));
}

// The shift of a row: the mean of what is left of a part of its exponents.
void ShiftFinder::FindRows() {
  constexpr size_t kRun = 128;
  const uint8_t* columns = tables_ + row_count_;
  for (size_t row = 0; row < row_count_; ++row) {
    const size_t start = RowStart(row);
    const size_t end = std::min(elements_, RowStart(row + 1));
    const size_t size = end - start;
    const size_t n = std::min(kRun, size);
    // Not the same columns in all rows.
    const size_t from = start + (size > n ? row * 64 % (size - n) : 0);
    const uint8_t* exponents = Exponents(from, n);
    const size_t column = (phase_ + from) % row_length_;
    int32_t sum = 0;
    int32_t count = 0;
    for (size_t k = 0; k < n; ++k) {
      const int32_t above = exponents[k] - static_cast<int8_t>(columns[column + k]);
      sum += exponents[k] != 0 ? above : 0;
      count += exponents[k] != 0 ? 1 : 0;
    }
    tables_[row] = static_cast<uint8_t>(count == 0 ? 0 : DivideRounded(sum, count));
  }
}

// Compares one run of 64 elements in 32, with and without the shifts.
bool ShiftFinder::Saves() {
  constexpr size_t kRun = 64;
  constexpr size_t kOneIn = 32;
  Histogram plain;
  Histogram shifted;
  plain.Clear();
  shifted.Clear();
  size_t samples = 0;
  for (size_t at = 0; at + kRun <= elements_; at += kRun * kOneIn) {
    Exponents(at, kRun);
    uint8_t* values = lanes_[0].values;
    // As where groups of zeros are left out.
    size_t kept = 0;
    uint8_t moved[kRun];
    std::memcpy(moved, values, kRun);
    ApplyShifts<false>(shifts_, at, kRun, moved);
    for (size_t group = 0; group < kRun; group += 8) {
      if (Load64(values + group) == 0) continue;
      std::memmove(values + kept, values + group, 8);
      std::memmove(moved + kept, moved + group, 8);
      kept += 8;
    }
    plain.Add(values, kept);
    shifted.Add(moved, kept);
    samples += kept;
  }
  if (samples == 0) return false;
  const uint64_t before = NestedBits(plain);
  const uint64_t after = NestedBits(shifted);
  const uint64_t tables = 8 * (row_count_ + row_length_);
  return after < before && (before - after) * elements_ / samples > tables + tables / 4;
}

Shifts ShiftFinder::Find(const Kernels& kernels, const PlanesChunk& chunk) {
  shifts_ = Shifts();
  kind_ = chunk.kinds[0];
  if (chunk.row_length < 16 || !HasExponent(kind_)) return Shifts();
  for (size_t block = 1; block < PlanesBlockCount(chunk.size); ++block)
    if (chunk.kinds[block] != kind_) return Shifts();
  kernels_ = &kernels;
  raw_ = chunk.raw;
  word_ = WordSize(kind_);
  elements_ = chunk.size / word_;
  row_length_ = chunk.row_length;
  phase_ = chunk.phase % row_length_;
  row_count_ = (phase_ + elements_ + row_length_ - 1) / row_length_;
  if ((row_count_ + row_length_) * kElementsPerByte > elements_) return Shifts();
  first_whole_ = phase_ == 0 ? 0 : 1;
  whole_rows_ = (phase_ + elements_) / row_length_ - first_whole_;
  if (!LooksWorthwhile()) return Shifts();
  FindColumns();
  FindRows();
  shifts_.row_length = static_cast<uint32_t>(row_length_);
  shifts_.phase = static_cast<uint32_t>(phase_);
  shifts_.row_count = static_cast<uint32_t>(row_count_);
  shifts_.rows = tables_;
  shifts_.columns = tables_ + row_count_;
  return Saves() ? shifts_ : Shifts();
}

}  // namespace planes
}  // namespace fastckpt

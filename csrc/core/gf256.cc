#include "gf256.h"

#include <cstring>
#include <utility>

#include "constants.h"
#include "cpu.h"
#include "parity_kernels.h"

namespace fastckpt {
namespace gf256 {

namespace {

constexpr uint8_t kBases[kMaxRows] = {1, 2, 4};

constexpr uint8_t Twice(uint8_t value) {
  return static_cast<uint8_t>((value << 1) ^ ((value >> 7) * 0x1D));
}

Multiples MultiplesOf(uint8_t number) {
  Multiples multiples;
  for (uint8_t& multiple : multiples.of_bit) {
    multiple = number;
    number = Twice(number);
  }
  return multiples;
}

// What leaf `place` of a group is multiplied by in row `row`.
uint8_t Factor(size_t row, uint64_t place) {
  return Power(kBases[row], static_cast<size_t>(place));
}

// `to` += `factor` * `from`, both kLeafSize long.
void AddMultiple(uint8_t factor, const uint8_t* from, uint8_t* to) {
  const Multiples multiples = MultiplesOf(factor);
#if defined(__x86_64__)
  if (CurrentSimdLevel() >= SimdLevel::kAvx2) return AddMultipleAvx2(multiples, from, kLeafSize, to);
#endif
  AddMultiplePortable(multiples, from, kLeafSize, to);
}

struct Matrix {
  uint8_t at[kMaxRows][kMaxRows] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
};

// By Gauss and Jordan, of a matrix that has an inverse.
Matrix Inverted(Matrix matrix) {
  Matrix inverse;
  for (size_t column = 0; column < kMaxRows; ++column) {
    size_t pivot = column;
    while (matrix.at[pivot][column] == 0) ++pivot;
    std::swap(matrix.at[pivot], matrix.at[column]);
    std::swap(inverse.at[pivot], inverse.at[column]);
    const uint8_t scale = Inverse(matrix.at[column][column]);
    for (size_t j = 0; j < kMaxRows; ++j) {
      matrix.at[column][j] = Multiply(matrix.at[column][j], scale);
      inverse.at[column][j] = Multiply(inverse.at[column][j], scale);
    }
    for (size_t i = 0; i < kMaxRows; ++i) {
      const uint8_t factor = i == column ? uint8_t{0} : matrix.at[i][column];
      for (size_t j = 0; j < kMaxRows; ++j) {
        matrix.at[i][j] ^= Multiply(matrix.at[column][j], factor);
        inverse.at[i][j] ^= Multiply(inverse.at[column][j], factor);
      }
    }
  }
  return inverse;
}

}  // namespace

void Fold(const uint8_t* const* sources, uint8_t* const* rows, size_t count) {
  [[maybe_unused]] const SimdLevel level = CurrentSimdLevel();
#if defined(__x86_64__)
  if (level >= SimdLevel::kAvx512 && HasAvx512Bw()) return FoldAvx512(sources, rows, count);
  if (level >= SimdLevel::kAvx2) return FoldAvx2(sources, rows, count);
#elif defined(__aarch64__)
  if (level == SimdLevel::kNeon) return FoldNeon(sources, rows, count);
#endif
  FoldPortable(sources, rows, count);
}

void AddToRows(uint64_t place, const uint8_t* from, size_t size, uint8_t* const* rows,
               size_t count) {
  Multiples multiples[kMaxRows];
  for (size_t j = 0; j < count; ++j) multiples[j] = MultiplesOf(Factor(j, place));
#if defined(__x86_64__)
  if (CurrentSimdLevel() >= SimdLevel::kAvx2)
    return AddToRowsAvx2(multiples, from, size, rows, count);
#endif
  for (size_t j = 0; j < count; ++j) AddMultiplePortable(multiples[j], from, size, rows[j]);
}

uint8_t Multiply(uint8_t a, uint8_t b) {
  uint8_t product = 0;
  for (; b != 0; b = static_cast<uint8_t>(b >> 1), a = Twice(a))
    if ((b & 1) != 0) product ^= a;
  return product;
}

uint8_t Power(uint8_t base, size_t exponent) {
  uint8_t power = 1;
  for (size_t rest = exponent % 255; rest != 0; rest /= 2, base = Multiply(base, base))
    if (rest % 2 != 0) power = Multiply(power, base);
  return power;
}

uint8_t Inverse(uint8_t a) { return Power(a, 254); }

void Subtract(const uint8_t* a, const uint8_t* b, uint8_t* to) {
  for (size_t at = 0; at < kLeafSize; ++at) to[at] = a[at] ^ b[at];
}

void Solve(const size_t* places, const size_t* rows, size_t count, uint8_t* const* data) {
  Matrix matrix;
  for (size_t q = 0; q < count; ++q)
    for (size_t i = 0; i < count; ++i) matrix.at[q][i] = Factor(rows[q], places[i]);
  const Matrix inverse = Inverted(matrix);
  uint8_t known[kMaxRows][kLeafSize];
  for (size_t q = 0; q < count; ++q) std::memcpy(known[q], data[q], kLeafSize);
  for (size_t i = 0; i < count; ++i) {
    std::memset(data[i], 0, kLeafSize);
    for (size_t q = 0; q < count; ++q) AddMultiple(inverse.at[i][q], known[q], data[i]);
  }
}

}  // namespace gf256
}  // namespace fastckpt

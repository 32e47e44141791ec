// Numbers of GF(2^8) modulo 0x11D, and the rows of parity that are made of them.
//
// Row j of a group is the sum over its leaves i of (2^j)^i * leaf i. Any `n` of the three rows have,
// for any `n` different leaves out of 255, one solution: 1, 2 and 4 each generate all 255 numbers
// that are not zero, and the columns are those of a Vandermonde matrix with some rows left out.

#ifndef FASTCKPT_CORE_GF256_H_
#define FASTCKPT_CORE_GF256_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {
namespace gf256 {

inline constexpr size_t kMaxRows = 3;
inline constexpr size_t kMaxDepth = 255;  // leaves of a group

// Adds kFold leaves to the rows, see parity_kernels.h. Uses the current SIMD level.
void Fold(const uint8_t* const* sources, uint8_t* const* rows, size_t count);

// Adds leaves, each number `place` of its group, that lie one behind the other in `size` bytes, to the `count` rows of
// these groups. Uses the current SIMD level.
void AddToRows(uint64_t place, const uint8_t* from, size_t size, uint8_t* const* rows,
               size_t count);

uint8_t Multiply(uint8_t a, uint8_t b);
uint8_t Inverse(uint8_t a);  // of a number that is not 0
uint8_t Power(uint8_t base, size_t exponent);

// `to` = `a` - `b`, all kLeafSize long.
void Subtract(const uint8_t* a, const uint8_t* b, uint8_t* to);

// Finds `count` (1 to kMaxRows) leaves of a group that were lost. `places` are their numbers in the
// group, different and below kMaxDepth; `rows` are as many different rows that are known. `data[q]`
// holds, on entry, row `rows[q]` less all leaves that are not lost; in the end, the leaf at
// `places[q]`. Each is kLeafSize long.
void Solve(const size_t* places, const size_t* rows, size_t count, uint8_t* const* data);

}  // namespace gf256
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_GF256_H_

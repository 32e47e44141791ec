// What the parity kernels of the several instruction sets share. Internal to parity*.cc.
//
// All of it is arithmetic in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11D), byte by byte. To add
// is to take the exclusive or; to multiply by x, which is 2, is to shift left by one bit and, where
// a bit falls out, to take the exclusive or with 0x1D. A row of parity is a polynomial in 1, 2 or 4
// whose coefficients are the leaves, so Horner's rule has it without a multiplication by anything
// else: row = row * 2 + leaf, from the last leaf to the first.

#ifndef FASTCKPT_CORE_PARITY_KERNELS_H_
#define FASTCKPT_CORE_PARITY_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {
namespace gf256 {

// How many leaves a kernel takes at a time: the rows are loaded and stored once for all of them.
inline constexpr size_t kFold = 8;

// The hardware prefetcher stops at page boundaries, and here are eight streams: asking this far ahead
// gains a tenth to a fifth from memory. Further ahead is slower: all streams lie in the same few sets
// of the first cache, and what comes early is gone again. What is asked for behind a leaf is never read.
inline constexpr size_t kAhead = 256;

// Folds kFold leaves into the `count` rows (1 to 3): row j becomes row j * (2^j)^kFold + ..., the
// leaves in Horner's order, sources[0] first. All are kLeafSize long and need no alignment.
void FoldPortable(const uint8_t* const* sources, uint8_t* const* rows, size_t count);
#if defined(__x86_64__)
void FoldAvx2(const uint8_t* const* sources, uint8_t* const* rows, size_t count);
// Needs AVX-512BW besides AVX-512F.
void FoldAvx512(const uint8_t* const* sources, uint8_t* const* rows, size_t count);
#elif defined(__aarch64__)
void FoldNeon(const uint8_t* const* sources, uint8_t* const* rows, size_t count);
#endif

// The multiples of a number: of_bit[b] is it times 2^b. Any other is a sum of these.
struct Multiples {
  uint8_t of_bit[8];
};

// Adds to each of `size` bytes at `to` the multiple by the one at `from`.
void AddMultiplePortable(const Multiples& multiples, const uint8_t* from, size_t size,
                         uint8_t* to);
#if defined(__x86_64__)
void AddMultipleAvx2(const Multiples& multiples, const uint8_t* from, size_t size, uint8_t* to);

// The same of `count` rows (1 to 3) at once, which come from memory: multiples[j] are those of row j, and of row 0 the
// number is 1. `size` is a multiple of kLeafSize.
void AddToRowsAvx2(const Multiples* multiples, const uint8_t* from, size_t size,
                   uint8_t* const* rows, size_t count);
#endif

}  // namespace gf256
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PARITY_KERNELS_H_

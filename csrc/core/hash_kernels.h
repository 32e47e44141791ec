// What the hash kernels of the several instruction sets share. Internal to hash*.cc.
//
// XXH3-64 of a 16 KiB leaf, as the XXH3 specification defines it for inputs over 240 bytes:
//
//   eight 64-bit accumulators start from constants;
//   the input is 256 stripes of 64 bytes; 16 stripes make a block of 1 KiB;
//   stripe s of a block, lane i:   key = data[i] ^ secret[8 s + 8 i ..]
//                                  acc[i]     += low32(key) * high32(key)
//                                  acc[i ^ 1] += data[i]
//   after each block but the last: acc[i] = (acc[i] ^ (acc[i] >> 47) ^ secret[128 + 8 i ..]) * P
//   the very last stripe uses the secret from byte 121, not 120;
//   at the end the accumulators are folded in pairs into 64 bits and avalanched.
//
// Inside a block both sums are free of order. The kernels therefore add up the products and the
// plain data apart and swap the lanes of the data once per block, not once per stripe.
//
// Compilers use that freedom, too: they make a tree of the sixteen additions, run out of registers
// and keep half of it in memory. FASTCKPT_IN_ORDER holds them to one addition after the other; with
// it the kernels are a quarter faster.
//
// The kernels ask for no data ahead of its use: the hardware does. Five lines ahead, or a few lines
// over the next page's start, were a sixth slower from DRAM in pages of 4 KiB or of 2 MiB.

#ifndef FASTCKPT_CORE_HASH_KERNELS_H_
#define FASTCKPT_CORE_HASH_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "bytes.h"
#include "constants.h"
#include "hash.h"

#if defined(__aarch64__)
#define FASTCKPT_IN_ORDER(products, sums) __asm__("" : "+w"(products), "+w"(sums))
#else
#define FASTCKPT_IN_ORDER(products, sums) __asm__("" : "+v"(products), "+v"(sums))
#endif

namespace fastckpt {

// Each hashes `count` whole leaves.
void HashWholeLeavesPortable(const uint8_t* data, size_t count, uint64_t* digests);
#if defined(__x86_64__)
void HashWholeLeavesSse2(const uint8_t* data, size_t count, uint64_t* digests);
void HashWholeLeavesAvx2(const uint8_t* data, size_t count, uint64_t* digests);
void HashWholeLeavesAvx512(const uint8_t* data, size_t count, uint64_t* digests);
#elif defined(__aarch64__)
void HashWholeLeavesNeon(const uint8_t* data, size_t count, uint64_t* digests);
#endif

// Each adds `count` blocks of 1 KiB, none of them the last, to the eight accumulators.
void HashBlocksPortable(const uint8_t* data, size_t count, uint64_t* lanes);
#if defined(__x86_64__)
void HashBlocksAvx2(const uint8_t* data, size_t count, uint64_t* lanes);
void HashBlocksAvx512(const uint8_t* data, size_t count, uint64_t* lanes);
#endif

namespace xxh3 {

inline constexpr size_t kLanes = 8;
inline constexpr size_t kStripe = 64;
inline constexpr size_t kStripesPerBlock = 16;
inline constexpr size_t kBlock = kStripe * kStripesPerBlock;
inline constexpr size_t kBlocksPerLeaf = kLeafSize / kBlock;
inline constexpr size_t kScrambleSecret = 128;   // 192 - 64
inline constexpr size_t kLastStripeSecret = 121;  // 192 - 64 - 7
inline constexpr size_t kMergeSecret = 11;

inline constexpr uint32_t kPrime32_1 = 0x9E3779B1;
inline constexpr uint32_t kPrime32_2 = 0x85EBCA77;
inline constexpr uint32_t kPrime32_3 = 0xC2B2AE3D;
inline constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87;
inline constexpr uint64_t kPrime64_2 = 0xC2B2AE3D27D4EB4F;
inline constexpr uint64_t kPrime64_3 = 0x165667B19E3779F9;
inline constexpr uint64_t kPrime64_4 = 0x85EBCA77C2B2AE63;
inline constexpr uint64_t kPrime64_5 = 0x27D4EB2F165667C5;
inline constexpr uint64_t kPrimeAvalanche = 0x165667919E3779F9;

alignas(64) inline constexpr uint64_t kInitialAccumulators[kLanes] = {
    kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
    kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};

// The default secret: 192 bytes that the XXH3 specification fixes (github.com/Cyan4973/xxHash,
// doc/xxhash_spec.md). They are a constant of the algorithm, as an S-box is of a cipher.
alignas(64) inline constexpr uint8_t kSecret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

inline uint64_t Avalanche(uint64_t hash) {
  hash ^= hash >> 37;
  hash *= kPrimeAvalanche;
  return hash ^ (hash >> 32);
}

// The product of two words, its halves folded into one.
inline uint64_t FoldedProduct(uint64_t left, uint64_t right) {
  __extension__ using Uint128 = unsigned __int128;
  const Uint128 product = static_cast<Uint128>(left) * right;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// Folds the eight accumulators of `size` bytes into their digest.
inline uint64_t Merge(const uint64_t* accumulators, uint64_t size) {
  uint64_t hash = size * kPrime64_1;
  for (size_t i = 0; i < kLanes; i += 2)
    hash += FoldedProduct(accumulators[i] ^ Load64(kSecret + kMergeSecret + 8 * i),
                          accumulators[i + 1] ^ Load64(kSecret + kMergeSecret + 8 * i + 8));
  return Avalanche(hash);
}

}  // namespace xxh3
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_HASH_KERNELS_H_

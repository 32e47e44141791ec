// Leaf digests: XXH3-64 (seed 0, default secret) of exactly 16 KiB.
//
// Leaves have one fixed length, so of the algorithm's many length classes only the long one is
// needed, with a fixed number of rounds. Leaves are independent of each other: any number of
// threads, or a GPU, may hash them in any order.

#ifndef FASTCKPT_CORE_HASH_H_
#define FASTCKPT_CORE_HASH_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {

// Hashes `size` bytes, leaf by leaf, into `digests` (LeafCount(size) of them). A shorter last leaf
// is hashed as if zero bytes followed it. `data` needs no alignment. Uses the current SIMD level.
void HashLeaves(const uint8_t* data, size_t size, uint64_t* digests);

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_HASH_H_

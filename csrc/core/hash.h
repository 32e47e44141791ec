// XXH3-64 (seed 0, default secret): of leaves of exactly 16 KiB, and of the stored bytes of chunks.
//
// Leaves have one fixed length, so of the algorithm's many length classes only the long one is
// needed for them, with a fixed number of rounds. Leaves are independent of each other: any number of
// threads, or a GPU, may hash them in any order.

#ifndef FASTCKPT_CORE_HASH_H_
#define FASTCKPT_CORE_HASH_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {

// Hashes `size` bytes, leaf by leaf, into `digests` (LeafCount(size) of them). A shorter last leaf
// is hashed as if zero bytes followed it. `data` needs no alignment. Uses the current SIMD level.
void HashLeaves(const uint8_t* data, size_t size, uint64_t* digests);

// The hash of kLeastHashed bytes or more. (Fewer are classes of their own, which nothing here needs.)
inline constexpr size_t kLeastHashed = 17;
uint64_t HashBytes(const uint8_t* data, size_t size);

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_HASH_H_

// What an encoder sees of a block before it chooses how to store its planes. Internal to
// planes*.cc.

#ifndef FASTCKPT_CORE_PLANES_BLOCK_H_
#define FASTCKPT_CORE_PLANES_BLOCK_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "constants.h"
#include "planes_kernels.h"
#include "planes_tile.h"

namespace fastckpt {
namespace planes {

struct Block {
  const uint8_t* raw = nullptr;
  size_t size = 0;
  size_t first = 0;  // element of the chunk
  unsigned kind = 0;
  size_t word = 1;  // bytes of an element
  size_t elements = 0;
  size_t tiles = 0;

  size_t ElementsIn(size_t tile) const {
    return std::min(kPlanesTile, elements - tile * kPlanesTile);
  }
  const uint8_t* Tile(size_t tile) const { return raw + tile * kPlanesTile * word; }
};

// A block of kind `kind` that is `size` bytes from byte `first_byte` of a chunk on.
Block MakeBlock(const uint8_t* chunk, size_t first_byte, size_t size, unsigned kind);

bool AllZero(const Kernels& kernels, const uint8_t* bytes, size_t size);

// The groups of a tile that are not zero.
void MakeMask(const Block& block, size_t tile, Mask* mask);

class BlockSurvey {
 public:
  void Look(const Kernels& kernels, const Block& block);

  bool zero(size_t tile) const { return tiles_[tile].zero; }
  bool masked(size_t tile) const { return tiles_[tile].masked; }
  size_t stored() const { return stored_; }  // elements in groups that will be stored
  uint64_t any() const { return any_; }      // bits that are set in some element
  uint64_t all() const { return all_; }      // and in all of them, zero tiles aside

 private:
  struct TileFacts {
    bool zero = false;
    bool masked = false;
  };

  void LookAtTile(const Kernels& kernels, const Block& block, size_t tile);

  TileFacts tiles_[kChunkSize / kPlanesTile];
  size_t stored_ = 0;
  uint64_t any_ = 0;
  uint64_t all_ = 0;
};

}  // namespace planes
}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PLANES_BLOCK_H_

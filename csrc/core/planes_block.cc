#include "planes_block.h"

#include <cstring>

namespace fastckpt {
namespace planes {

namespace {

// Folds `any` and `all`, of words of 64 bits, to the element's own width.
void Fold(size_t word, uint64_t* any, uint64_t* all) {
  for (size_t bits = 32; bits >= 8 * word; bits /= 2) {
    *any |= *any >> bits;
    *all &= *all >> bits;
  }
  if (word < 8) {
    const uint64_t lowest = (uint64_t{1} << (8 * word)) - 1;
    *any &= lowest;
    *all &= lowest;
  }
}

}  // namespace

Block MakeBlock(const uint8_t* chunk, size_t first_byte, size_t size, unsigned kind) {
  Block block;
  block.raw = chunk + first_byte;
  block.size = size;
  block.kind = kind;
  block.word = WordSize(kind);
  block.first = first_byte / block.word;
  block.elements = size / block.word;
  block.tiles = (block.elements + kPlanesTile - 1) / kPlanesTile;
  return block;
}

bool AllZero(const Kernels& kernels, const uint8_t* bytes, size_t size) {
  uint64_t any = 0;
  uint64_t all = 0;
  size_t zeros = 0;
  // In steps, so that the first number ends it.
  constexpr size_t kStep = 64;
  size_t at = 0;
  for (; any == 0 && at + kStep <= size; at += kStep)
    kernels.survey(bytes + at, kStep / 8, &any, &all, &zeros);
  for (; any == 0 && at < size; ++at) any |= bytes[at];
  return any == 0;
}

void MakeMask(const Block& block, size_t tile, Mask* mask) {
  const uint8_t* raw = block.Tile(tile);
  const size_t bytes = block.ElementsIn(tile) * block.word;
  const size_t group_bytes = kPlanesGroup * block.word;
  std::memset(mask->bits, 0, sizeof mask->bits);
  for (size_t group = 0, at = 0; at < bytes; ++group, at += group_bytes) {
    const size_t size = std::min(group_bytes, bytes - at);
    uint64_t any = 0;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) any |= Load64(raw + at + i);
    any |= LoadSome(raw + at + i, size - i);
    const unsigned bit = any != 0 ? 1U << (group % 8) : 0U;
    mask->bits[group / 8] = static_cast<uint8_t>(mask->bits[group / 8] | bit);
  }
}

void BlockSurvey::LookAtTile(const Kernels& kernels, const Block& block, size_t tile) {
  const size_t n = block.ElementsIn(tile);
  const uint8_t* raw = block.Tile(tile);
  const size_t words = n * block.word / 8;
  uint64_t any = 0;
  uint64_t all = 0;
  size_t zeros = 0;
  kernels.survey(raw, words, &any, &all, &zeros);
  Fold(block.word, &any, &all);
  for (size_t at = words * 8; at < n * block.word; at += block.word) {
    const uint64_t element = LoadSome(raw + at, block.word);
    any |= element;
    all &= element;
    zeros += element == 0 ? 1 : 0;
  }
  TileFacts& facts = tiles_[tile];
  facts = TileFacts();
  facts.zero = any == 0;
  if (facts.zero) return;
  any_ |= any;
  all_ &= all;
  stored_ += n;
  // A mask has to save what it takes, and there must be groups that it leaves out.
  const size_t worthwhile = MaskSize(n) / 4;
  if (zeros < worthwhile) return;
  Mask mask;
  MakeMask(block, tile, &mask);
  const size_t kept = mask.Stored(n);
  facts.masked = n - kept >= worthwhile * kPlanesGroup;
  if (facts.masked) stored_ -= n - kept;
}

void BlockSurvey::Look(const Kernels& kernels, const Block& block) {
  any_ = 0;
  all_ = ~uint64_t{0};
  stored_ = 0;
  for (size_t tile = 0; tile < block.tiles; ++tile) LookAtTile(kernels, block, tile);
}

}  // namespace planes
}  // namespace fastckpt

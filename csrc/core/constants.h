// The numbers of the file format that the native core needs.
//
// fastckpt/constants.py and SPEC.md state the same numbers; a test compares them through the
// module's attributes, so that none of the three can drift alone.

#ifndef FASTCKPT_CORE_CONSTANTS_H_
#define FASTCKPT_CORE_CONSTANTS_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {

inline constexpr size_t kLeafSize = 16 * 1024;     // raw bytes under one leaf digest
inline constexpr size_t kChunkSize = 1024 * 1024;  // unit of encoding and of parallel I/O
inline constexpr size_t kAlignment = 4096;         // of every block and payload in a file
inline constexpr size_t kPackAlignment = 64;       // of a storage inside a pack record
inline constexpr size_t kDigestSize = 16;          // XXH3-128, seals every block
inline constexpr size_t kLeafDigestSize = 8;       // XXH3-64, little-endian
inline constexpr size_t kMagicSize = 8;
inline constexpr uint16_t kFormatVersion = 2;

// Codec planes.
inline constexpr size_t kPlanesLayout = 1;
inline constexpr size_t kPlanesTile = 4096;  // elements of a tile, which decodes alone
inline constexpr size_t kPlanesGroup = 8;  // elements under one bit of a mask
inline constexpr size_t kPlanesBlockLog2 = 17;  // raw bytes of a block, as a power of two
inline constexpr size_t kPlanesBlockLog2Max = 20;
inline constexpr size_t kPlanesHeadSize = 24;
inline constexpr size_t kPlanesBlockHeadSize = 8;
inline constexpr size_t kPlanesPlaneRowSize = 8;
inline constexpr size_t kPlanesMasked = 32768;  // bit of a tile's row: groups of zeros are left out
inline constexpr size_t kPlanesMaxLevels = 6;
inline constexpr size_t kPlanesMaxWidth = 7;  // bits of a digit, and of a packed value
inline constexpr size_t kPlanesModeRaw = 0;
inline constexpr size_t kPlanesModePacked = 1;
inline constexpr size_t kPlanesModeNested = 2;
inline constexpr size_t kPlanesKindBytes = 0;
inline constexpr size_t kPlanesKindWords = 1;
inline constexpr size_t kPlanesKindDoubleWords = 2;
inline constexpr size_t kPlanesKindQuadWords = 3;
inline constexpr size_t kPlanesKindFloat16 = 4;
inline constexpr size_t kPlanesKindBfloat16 = 5;
inline constexpr size_t kPlanesKindFloat32 = 6;
inline constexpr size_t kPlanesKindFloat64 = 7;
inline constexpr size_t kPlanesKindFloat8E4 = 8;
inline constexpr size_t kPlanesKindFloat8E5 = 9;
inline constexpr size_t kPlanesKindNibbles = 10;

inline constexpr char kMagicSuperblock[] = "\x89" "FCKPT\r\n";
inline constexpr char kMagicManifest[] = "FCKPTMAN";
inline constexpr char kMagicRecord[] = "FCKPTREC";
inline constexpr char kMagicIndex[] = "FCKPTIDX";
inline constexpr char kMagicFooter[] = "FCKPTEND";
inline constexpr char kMagicSource[] = "FCKPTSRC";

static_assert(kChunkSize % kLeafSize == 0);
static_assert(kLeafSize % kAlignment == 0);
static_assert(sizeof(kMagicSuperblock) == kMagicSize + 1);

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_CONSTANTS_H_

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

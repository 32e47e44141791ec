// CRC-32 as zip and zlib define it (polynomial 0x04C11DB7, bits reflected), which is what the
// records of a .pt file carry.

#ifndef FASTCKPT_CORE_CRC32_H_
#define FASTCKPT_CORE_CRC32_H_

#include <cstddef>
#include <cstdint>

namespace fastckpt {

// The CRC of some bytes whose CRC is `crc` followed by `data`. Start with 0.
uint32_t Crc32(uint32_t crc, const uint8_t* data, size_t size);

// The CRC of A followed by B, from the CRCs of the two and the size of B.
uint32_t Crc32Combine(uint32_t crc_a, uint32_t crc_b, uint64_t size_b);

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_CRC32_H_

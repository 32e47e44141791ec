// The codec planes: any bytes decode or fail alike on every instruction set, and what was encoded
// comes back, changed bytes of it included.

#include <string>
#include <vector>

#include "../core/cpu.h"
#include "../core/planes.h"
#include "fuzz.h"

namespace fastckpt {
namespace {

using Bytes = std::vector<uint8_t>;

// What all levels make of stored bytes: the raw bytes, or the text of the error.
struct Outcome {
  std::string error;
  Bytes raw;
};

Outcome DecodeOnAllLevels(const Bytes& stored, size_t size) {
  Outcome first;
  for (const SimdLevel level : kSimdLevels) {
    if (!SimdLevelSupported(level)) continue;
    SetSimdLevel(level);
    // Exactly as large as it has to be: one byte written beyond the end is noticed.
    Outcome outcome;
    outcome.raw.resize(size);
    const Status status = DecodePlanes(stored.data(), stored.size(), outcome.raw.data(), size);
    if (!status.ok()) outcome = {status.message(), {}};
    if (level == SimdLevel::kPortable) first = outcome;
    REQUIRE(outcome.error == first.error);
    REQUIRE(outcome.raw == first.raw);
  }
  return first;
}

Bytes EncodeOnAllLevels(const PlanesChunk& chunk) {
  Bytes first;
  for (const SimdLevel level : kSimdLevels) {
    if (!SimdLevelSupported(level)) continue;
    SetSimdLevel(level);
    Bytes out(PlanesRoom(chunk.size));
    size_t stored = 0;
    REQUIRE(EncodePlanes(chunk, out.data(), &stored).ok());
    REQUIRE(stored == 0 || stored < chunk.size);
    out.resize(stored);
    if (level == SimdLevel::kPortable) first = out;
    REQUIRE(out == first);
  }
  return first;
}

// Input: repetitions (1), kind of each block (4), row length (2), phase (2), then the piece.
void RoundTrip(Input input) {
  const size_t repeats = 1 + input.Take(1) % 64;
  const uint64_t kinds_seed = input.Take(4);
  const uint32_t row_length = static_cast<uint32_t>(input.Take(2));
  const uint32_t phase = static_cast<uint32_t>(input.Take(2));
  Bytes raw;
  for (size_t i = 0; i < repeats && raw.size() + input.size() <= kChunkSize; ++i)
    raw.insert(raw.end(), input.data(), input.data() + input.size());
  Bytes kinds(PlanesBlockCount(raw.size()));
  for (size_t i = 0; i < kinds.size(); ++i)
    kinds[i] = static_cast<uint8_t>((kinds_seed >> (8 * (i % 4))) % kPlanesKinds);
  const PlanesChunk chunk = {raw.data(), raw.size(), kinds.data(), row_length, phase};
  Bytes stored = EncodeOnAllLevels(chunk);
  if (stored.empty()) return;
  const Outcome outcome = DecodeOnAllLevels(stored, raw.size());
  REQUIRE(outcome.error.empty() && outcome.raw == raw);
  // The piece says what is damaged, too.
  for (size_t i = 0; i + 3 <= input.size() && i < 24; i += 3) {
    const size_t at = (input.data()[i] | size_t{input.data()[i + 1]} << 8) % stored.size();
    stored[at] = static_cast<uint8_t>(stored[at] ^ input.data()[i + 2]);
    DecodeOnAllLevels(stored, raw.size());
  }
}

}  // namespace
}  // namespace fastckpt

// Input: which (1); then a raw size (3) and stored bytes, or what RoundTrip() takes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fastckpt;
  Input input(data, size);
  if (input.Take(1) % 2 == 0) {
    RoundTrip(input);
    return 0;
  }
  const size_t raw_size = input.Take(3) % (kChunkSize + 2);
  const Bytes stored(input.data(), input.data() + input.size());
  DecodeOnAllLevels(stored, raw_size);
  return 0;
}

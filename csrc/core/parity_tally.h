// Parity and leaf digests of a file, summed up while its bytes are on their way into it.
//
// A row of parity is a sum (parity.h), so it does not matter in which order its leaves come: each is
// multiplied by the number that its place in the group asks for, and added. That costs more than
// Horner's rule, which has a whole group at hand; but what is written is in the core's cache already,
// and nothing is read again.

#ifndef FASTCKPT_CORE_PARITY_TALLY_H_
#define FASTCKPT_CORE_PARITY_TALLY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "status.h"

namespace fastckpt {

class ParityTally {
 public:
  // Of a file of `size` bytes, laid out as ParityRequest has it. `parity` has leaf q of row j at
  // parity + (j * groups + q) * kLeafSize; `leaves` the digests of all leaves. Both must outlive this,
  // and mean something after Finish().
  struct Plan {
    uint64_t size = 0;
    uint64_t groups = 0;
    size_t rows = 0;
    uint8_t* parity = nullptr;
    uint64_t* leaves = nullptr;
  };

  // Numbers in range?
  static Status Check(const Plan& plan);

  // The plan must have passed Check().
  explicit ParityTally(const Plan& plan);

  // Adds bytes that are written to `offset`. To be called once for each byte, from any thread and in
  // any order. What lies behind the end of the file is not part of it.
  Status Add(const uint8_t* data, size_t size, uint64_t offset);

  // All is added: what was not is zero.
  void Finish();

 private:
  // A leaf of which a part is added.
  struct Open {
    std::vector<uint8_t> data;
    size_t have = 0;
  };

  static constexpr uint64_t kStripe = 8;  // groups that are locked together
  static constexpr size_t kLocks = 64;

  void AddLeaves(const uint8_t* data, uint64_t first, uint64_t count);
  void AddPart(const uint8_t* data, size_t size, uint64_t leaf, size_t at);
  size_t SizeOf(uint64_t leaf) const;

  const Plan plan_;
  std::array<std::mutex, kLocks> row_locks_;  // of the groups whose stripe has this number

  std::mutex open_lock_;
  std::unordered_map<uint64_t, Open> open_;  // guarded by open_lock_
};

}  // namespace fastckpt

#endif  // FASTCKPT_CORE_PARITY_TALLY_H_

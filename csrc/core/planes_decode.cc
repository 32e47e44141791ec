#include <cstring>
#include <memory>
#include <new>

#include "bytes.h"
#include "planes.h"
#include "planes_kernels.h"
#include "planes_plan.h"
#include "planes_tile.h"

namespace fastckpt {

namespace planes {

namespace {

uint16_t Load16(const uint8_t* from) {
  uint16_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

Status Damaged(const char* what) { return Status::InvalidArgument(what); }

// The largest that a tile table can state.
constexpr size_t kMostTileBytes = (kPlanesMasked - 1) * 8;

class Decoder {
 public:
  Status Run(const uint8_t* stored, size_t stored_size, uint8_t* raw, size_t size);

 private:
  Status ReadHead();
  Status DecodeBlock(size_t first_byte, size_t size);
  Status ReadPlanes();
  Status ReadNesting(const uint8_t* row, PlanePlan* plan, size_t* symbols);
  Status DecodeTile(const uint8_t* tile, size_t tile_size, bool masked, size_t first, size_t n,
                    uint8_t* to);
  void JoinMasked(const Mask& mask, size_t first, size_t n, uint8_t* to);

  size_t left() const { return stored_size_ - at_; }

  const uint8_t* stored_ = nullptr;
  size_t stored_size_ = 0;
  uint8_t* raw_ = nullptr;
  size_t size_ = 0;
  Kernels kernels_ = kPortableKernels;

  size_t at_ = 0;  // in the stored bytes
  size_t block_size_ = 0;
  Shifts shifts_;

  // Of the block at hand.
  unsigned kind_ = 0;
  size_t plane_count_ = 0;
  size_t word_ = 0;
  PlanePlan plans_[kMaxPlanes];
  const uint8_t* sources_[kMaxPlanes] = {};  // the values of each plane in the tile at hand

  Lane values_[kMaxPlanes];
  Lane spread_[kMaxPlanes];
  Lane levels_[kPlanesMaxLevels];
  std::unique_ptr<uint8_t[]> copy_;
};

Status Decoder::ReadHead() {
  if (stored_size_ < kPlanesHeadSize || stored_size_ % 8 != 0)
    return Damaged("too short, or no multiple of 8 bytes");
  if (stored_[0] != kPlanesLayout) return Damaged("unknown layout");
  const unsigned log2 = stored_[1];
  if (log2 < kPlanesBlockLog2 || log2 > kPlanesBlockLog2Max) return Damaged("wrong size of blocks");
  if (stored_[2] != 0 || stored_[3] != 0 || Load32(stored_ + 20) != 0)
    return Damaged("reserved bytes are not zero");
  if (Load32(stored_ + 4) != size_) return Damaged("wrong raw size");
  block_size_ = size_t{1} << log2;
  shifts_.row_length = Load32(stored_ + 8);
  shifts_.phase = Load32(stored_ + 12);
  shifts_.row_count = Load32(stored_ + 16);
  if (shifts_ ? shifts_.phase >= shifts_.row_length : shifts_.phase != 0 || shifts_.row_count != 0)
    return Damaged("wrong place of the first element in its row");
  const size_t blocks = (size_ + block_size_ - 1) / block_size_;
  at_ = kPlanesHeadSize;
  const uint64_t tables = 4 * uint64_t{blocks} + shifts_.row_count + uint64_t{shifts_.row_length};
  if (left() < tables) return Damaged("the tables do not fit");
  shifts_.rows = stored_ + at_ + 4 * blocks;
  shifts_.columns = shifts_.rows + shifts_.row_count;
  at_ = AlignEight(at_ + static_cast<size_t>(tables));
  return Status::Ok();
}

Status Decoder::Run(const uint8_t* stored, size_t stored_size, uint8_t* raw, size_t size) {
  stored_ = stored;
  stored_size_ = stored_size;
  raw_ = raw;
  size_ = size;
  kernels_ = CurrentKernels();
  Status status = ReadHead();
  for (size_t block = 0; status.ok() && block * block_size_ < size_; ++block) {
    const size_t first = block * block_size_;
    const size_t here = std::min(block_size_, size_ - first);
    const uint32_t place = Load32(stored_ + kPlanesHeadSize + 4 * block);
    if (place == 0) {
      std::memset(raw_ + first, 0, here);
    } else if (place != at_) {
      return Damaged("a block is not where the one before it ends");
    } else {
      status = DecodeBlock(first, here);
    }
  }
  if (status.ok() && at_ != stored_size_) return Damaged("bytes behind the last block");
  return status;
}

Status Decoder::ReadNesting(const uint8_t* row, PlanePlan* plan, size_t* symbols) {
  Nesting& nesting = plan->nesting;
  if (row[1] < 1 || row[1] > kPlanesMaxLevels || row[2] > 1)
    return Damaged("wrong number of levels");
  nesting.levels = row[1];
  nesting.closed = row[2] == 1;
  plan->listed = size_t{row[3]} + 1;
  const uint32_t widths = Load32(row + 4);
  for (size_t level = 0; level < 8; ++level) {
    const uint8_t width = (widths >> (4 * level)) & 15;
    if (level < nesting.levels ? width < 1 || width > kPlanesMaxWidth : width != 0)
      return Damaged("wrong width of a level");
    if (level < nesting.levels) nesting.widths[level] = width;
  }
  *symbols += plan->listed;
  return Status::Ok();
}

// Head, rows of the planes, and symbols.
Status Decoder::ReadPlanes() {
  if (left() < kPlanesBlockHeadSize) return Damaged("the head of a block does not fit");
  const uint8_t* head = stored_ + at_;
  if (head[0] >= kPlanesKinds) return Damaged("unknown kind of elements");
  if (Load64(head) >> 8 != 0) return Damaged("reserved bytes are not zero");
  kind_ = head[0];
  word_ = WordSize(kind_);
  plane_count_ = PlaneCount(kind_);
  at_ += kPlanesBlockHeadSize;
  if (left() < plane_count_ * kPlanesPlaneRowSize)
    return Damaged("the planes of a block do not fit");
  size_t symbols = 0;
  for (size_t p = 0; p < plane_count_; ++p, at_ += kPlanesPlaneRowSize) {
    const uint8_t* row = stored_ + at_;
    PlanePlan& plan = plans_[p];
    plan.mode = row[0];
    plan.count = row[1];
    plan.base = row[2];
    if (row[0] == kPlanesModeNested) {
      const Status status = ReadNesting(row, &plan, &symbols);
      if (!status.ok()) return status;
    } else if (row[0] > kPlanesModeNested || row[3] != 0 || Load32(row + 4) != 0 ||
               plan.count > (row[0] == kPlanesModePacked ? kPlanesMaxWidth : 0) ||
               (row[0] == kPlanesModeRaw && plan.base != 0)) {
      return Damaged("wrong row of a plane");
    }
  }
  if (left() < AlignEight(symbols)) return Damaged("the symbols of a block do not fit");
  const uint8_t* from = stored_ + at_;
  at_ += AlignEight(symbols);
  for (size_t p = 0; p < plane_count_; ++p) {
    PlanePlan& plan = plans_[p];
    if (plan.nested()) {
      std::memcpy(plan.nesting.symbols, from, plan.listed);
      from += plan.listed;
      if (!CompleteSymbols(plan.listed, &plan.nesting)) return Damaged("a symbol stands twice");
    } else if (plan.constant()) {
      std::memset(values_[p].values, plan.base, kPlanesTile);
    }
  }
  return Status::Ok();
}

Status Decoder::DecodeBlock(size_t first_byte, size_t size) {
  Status status = ReadPlanes();
  if (!status.ok()) return status;
  const size_t elements = size / word_;
  const size_t first = first_byte / word_;
  if (shifts_ && elements != 0 && !shifts_.Covers(first + elements)) return Damaged("rows without a shift");
  const size_t tiles = (elements + kPlanesTile - 1) / kPlanesTile;
  if (left() < AlignEight(2 * tiles)) return Damaged("the tile table does not fit");
  const uint8_t* table = stored_ + at_;
  at_ += AlignEight(2 * tiles);
  for (size_t tile = 0; tile < tiles; ++tile) {
    const uint16_t row = Load16(table + 2 * tile);
    const size_t tile_size = size_t{8} * (row & (kPlanesMasked - 1));
    if (left() < tile_size) return Damaged("a tile does not fit");
    const uint8_t* from = stored_ + at_;
    at_ += tile_size;
    if (left() < kMargin) {
      // Kernels read a little too far: near the end, not from the caller's bytes.
      if (copy_ == nullptr) copy_.reset(new (std::nothrow) uint8_t[kMostTileBytes + kMargin]);
      if (copy_ == nullptr) return Status::NoMemory();
      std::memcpy(copy_.get(), from, tile_size);
      std::memset(copy_.get() + tile_size, 0, kMargin);
      from = copy_.get();
    }
    const size_t start = tile * kPlanesTile;
    status = DecodeTile(from, tile_size, (row & kPlanesMasked) != 0, first + start,
                        std::min(kPlanesTile, elements - start),
                        raw_ + first_byte + start * word_);
    if (!status.ok()) return status;
  }
  const size_t rest = size - elements * word_;
  if (left() < AlignEight(rest)) return Damaged("the rest of an element does not fit");
  std::memcpy(raw_ + first_byte + elements * word_, stored_ + at_, rest);
  at_ += AlignEight(rest);
  return Status::Ok();
}

Status Decoder::DecodeTile(const uint8_t* tile, size_t tile_size, bool masked, size_t first,
                           size_t n, uint8_t* to) {
  size_t m = n;
  size_t used = 0;
  Mask mask;
  if (masked) {
    if (tile_size == 0) {
      std::memset(to, 0, n * word_);
      return Status::Ok();
    }
    used = MaskSize(n);
    if (tile_size < used) return Damaged("the mask of a tile does not fit");
    std::memcpy(mask.bits, tile, used);
    m = mask.Stored(n);
  }
  for (size_t p = 0; p < plane_count_; ++p) {
    const PlanePlan& plan = plans_[p];
    sources_[p] = values_[p].values;
    if (plan.nested()) continue;
    const size_t size = plan.FlatSize(m);
    if (tile_size - used < size) return Damaged("a plane of a tile does not fit");
    const uint8_t* from = tile + used;
    used += size;
    if (plan.mode == kPlanesModeRaw)
      sources_[p] = from;
    else if (plan.count != 0)
      kernels_.unpack(from, m, plan.count, plan.base, values_[p].values);
  }
  for (size_t p = 0; p < plane_count_; ++p) {
    const PlanePlan& plan = plans_[p];
    if (!plan.nested()) continue;
    const size_t size = kernels_.unnest(tile + used, tile_size - used, m, plan.nesting, levels_,
                                        values_[p].values);
    if (size == kDamaged) return Damaged("a nested plane of a tile does not fit");
    used += size;
  }
  if (AlignEight(used) != tile_size) return Damaged("bytes behind the planes of a tile");
  if (masked) {
    JoinMasked(mask, first, n, to);
    return Status::Ok();
  }
  if (shifts_) {
    // What is raw or constant must stay as it is.
    std::memcpy(spread_[0].values, sources_[0], n);
    ApplyShifts<true>(shifts_, first, n, spread_[0].values);
    sources_[0] = spread_[0].values;
  }
  kernels_.join(kind_, sources_, n, to);
  return Status::Ok();
}

void Decoder::JoinMasked(const Mask& mask, size_t first, size_t n, uint8_t* to) {
  for (size_t p = 0; p < plane_count_; ++p) {
    Scatter(mask, n, sources_[p], spread_[p].values);
    sources_[p] = spread_[p].values;
  }
  if (shifts_) ApplyShifts<true>(shifts_, first, n, spread_[0].values);
  kernels_.join(kind_, sources_, n, to);
  // Shifts are not for elements that are not stored.
  for (size_t group = 0; group < GroupCount(n); ++group)
    if (!mask.Has(group)) {
      const size_t start = group * kPlanesGroup;
      std::memset(to + start * word_, 0, std::min(kPlanesGroup, n - start) * word_);
    }
}

}  // namespace

}  // namespace planes

Status DecodePlanes(const uint8_t* stored, size_t stored_size, uint8_t* raw, size_t size) {
  if (size > kChunkSize) return Status::InvalidArgument("larger than a chunk");
  // Kept: the first touch of fresh pages would take longer than decoding.
  static thread_local std::unique_ptr<planes::Decoder> decoder;
  if (decoder == nullptr) decoder.reset(new (std::nothrow) planes::Decoder());
  if (decoder == nullptr) return Status::NoMemory();
  return decoder->Run(stored, stored_size, raw, size);
}

}  // namespace fastckpt

#include <algorithm>
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

// One run of so many values in kSample* is looked at before the planes of a block are chosen.
constexpr size_t kRun = 64;
constexpr size_t kSampleFirst = 8;   // plane 0, which is worth it
constexpr size_t kSampleOthers = 32;
// Below this many elements, all are looked at.
constexpr size_t kFewElements = 8192;

// What an encoder knows of a tile.
struct TileFacts {
  bool zero = false;
  bool masked = false;
};

void Store16(uint8_t* to, uint16_t value) { std::memcpy(to, &value, sizeof value); }
void Store32(uint8_t* to, uint32_t value) { std::memcpy(to, &value, sizeof value); }

class Encoder {
 public:
  Encoder(const PlanesChunk& chunk, uint8_t* out) : chunk_(chunk), out_(out) {}

  // The number of stored bytes, 0 if they would not be fewer.
  size_t Run();

 private:
  static constexpr size_t kMostTiles = kChunkSize / kPlanesTile;

  struct Block {
    size_t first_byte;
    size_t size;
    unsigned kind;
    size_t word;
    size_t elements;
    size_t tiles;
  };

  Block BlockAt(size_t number) const;
  size_t ChooseBlockLog2() const;
  bool IsZero(const Block& block) const;
  void SurveyTile(const Block& block, size_t tile, uint64_t* any, uint64_t* all);
  void SurveyBlock(const Block& block);
  void MakeMask(const Block& block, size_t tile, Mask* mask) const;
  void Count(const Block& block, size_t from_plane, size_t to_plane, size_t one_in);
  void ChoosePlanes(const Block& block);
  void ChoosePlane(const Block& block, size_t p, size_t one_in);
  void WriteBlock(const Block& block);
  uint8_t* WriteHead(const Block& block, uint8_t* at);
  uint8_t* WriteTile(const Block& block, size_t tile, uint8_t* at);

  size_t ElementsIn(const Block& block, size_t tile) const {
    return std::min(kPlanesTile, block.elements - tile * kPlanesTile);
  }
  const uint8_t* TileAt(const Block& block, size_t tile) const {
    return chunk_.raw + block.first_byte + tile * kPlanesTile * block.word;
  }

  const PlanesChunk chunk_;
  uint8_t* const out_;
  const Kernels& kernels_ = CurrentKernels();
  size_t at_ = 0;
  size_t block_log2_ = kPlanesBlockLog2;
  Shifts shifts_;

  // Of the block at hand.
  TileFacts facts_[kMostTiles];
  size_t stored_ = 0;  // elements in groups that may be stored
  uint64_t any_ = 0;   // bits that are set in some element
  uint64_t all_ = 0;   // and in all of them
  PlanePlan plans_[kMaxPlanes];
  Histogram histograms_[kMaxPlanes];

  Lane values_[kMaxPlanes];
};

Encoder::Block Encoder::BlockAt(size_t number) const {
  Block block;
  block.first_byte = number << block_log2_;
  block.size = std::min(size_t{1} << block_log2_, chunk_.size - block.first_byte);
  block.kind = chunk_.kinds[block.first_byte >> kPlanesBlockLog2];
  block.word = WordSize(block.kind);
  block.elements = block.size / block.word;
  block.tiles = (block.elements + kPlanesTile - 1) / kPlanesTile;
  return block;
}

bool AllZero(const Kernels& kernels, const uint8_t* bytes, size_t size) {
  uint64_t any = 0;
  uint64_t all = 0;
  size_t zeros = 0;
  // In steps, so that the first number ends it.
  constexpr size_t kStep = 4096;
  size_t at = 0;
  for (; any == 0 && at + kStep <= size; at += kStep)
    kernels.survey(bytes + at, kStep / 8, &any, &all, &zeros);
  for (; any == 0 && at < size; ++at) any |= bytes[at];
  return any == 0;
}

bool Encoder::IsZero(const Block& block) const {
  return AllZero(kernels_, chunk_.raw + block.first_byte, block.size);
}

// One block where most of the chunk is zero: then heads are what takes room.
size_t Encoder::ChooseBlockLog2() const {
  constexpr size_t kStep = 4096;
  const size_t steps = chunk_.size / kStep;
  size_t zero = 0;
  for (size_t step = 0; step < steps; ++step)
    zero += AllZero(kernels_, chunk_.raw + step * kStep, kStep) ? 1 : 0;
  if (4 * zero < 3 * steps || steps == 0) return kPlanesBlockLog2;
  const size_t blocks = PlanesBlockCount(chunk_.size);
  for (size_t block = 1; block < blocks; ++block)
    if (chunk_.kinds[block] != chunk_.kinds[0]) return kPlanesBlockLog2;
  return kPlanesBlockLog2Max;
}

void Encoder::MakeMask(const Block& block, size_t tile, Mask* mask) const {
  const uint8_t* raw = TileAt(block, tile);
  const size_t bytes = ElementsIn(block, tile) * block.word;
  const size_t group_bytes = kPlanesGroup * block.word;
  std::memset(mask->bits, 0, sizeof mask->bits);
  for (size_t group = 0, at = 0; at < bytes; ++group, at += group_bytes) {
    const size_t size = std::min(group_bytes, bytes - at);
    uint64_t any = 0;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) any |= Load64(raw + at + i);
    any |= LoadSome(raw + at + i, size - i);
    if (any != 0) mask->bits[group / 8] = static_cast<uint8_t>(mask->bits[group / 8] | (1U << (group % 8)));
  }
}

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

void Encoder::SurveyTile(const Block& block, size_t tile, uint64_t* any, uint64_t* all) {
  const size_t n = ElementsIn(block, tile);
  const uint8_t* raw = TileAt(block, tile);
  const size_t words = n * block.word / 8;
  size_t zeros = 0;
  kernels_.survey(raw, words, any, all, &zeros);
  Fold(block.word, any, all);
  for (size_t at = words * 8; at < n * block.word; at += block.word) {
    const uint64_t element = LoadSome(raw + at, block.word);
    *any |= element;
    *all &= element;
    zeros += element == 0 ? 1 : 0;
  }
  TileFacts& facts = facts_[tile];
  facts = TileFacts();
  facts.zero = *any == 0;
  stored_ += facts.zero ? 0 : n;
  // A mask has to save what it takes, and there must be groups that it leaves out.
  const size_t worthwhile = MaskSize(n) / 4;
  if (facts.zero || zeros < worthwhile) return;
  Mask mask;
  MakeMask(block, tile, &mask);
  const size_t kept = mask.Stored(n);
  facts.masked = n - kept >= worthwhile * kPlanesGroup;
  if (facts.masked) stored_ -= n - kept;
}

void Encoder::SurveyBlock(const Block& block) {
  any_ = 0;
  all_ = ~uint64_t{0};
  stored_ = 0;
  for (size_t tile = 0; tile < block.tiles; ++tile) {
    uint64_t any = 0;
    uint64_t all = 0;
    SurveyTile(block, tile, &any, &all);
    if (facts_[tile].zero) continue;
    any_ |= any;
    all_ &= all;
  }
}

// Counts the values of planes [from_plane, to_plane) in one run of `one_in`.
void Encoder::Count(const Block& block, size_t from_plane, size_t to_plane, size_t one_in) {
  for (size_t p = from_plane; p < to_plane; ++p) histograms_[p].Clear();
  uint8_t* planes[kMaxPlanes];
  for (size_t p = 0; p < kMaxPlanes; ++p) planes[p] = values_[p].values;
  for (size_t tile = 0; tile < block.tiles; ++tile) {
    if (facts_[tile].zero) continue;
    const size_t n = ElementsIn(block, tile);
    Mask mask;
    if (facts_[tile].masked) MakeMask(block, tile, &mask);
    // Runs that begin elsewhere in each tile: not always in the same columns of a matrix.
    for (size_t run = (5 * tile) % one_in; run * kRun < n; run += one_in) {
      const size_t start = run * kRun;
      size_t size = std::min(kRun, n - start);
      kernels_.split(block.kind, TileAt(block, tile) + start * block.word, size, planes);
      if (shifts_ && from_plane == 0)
        ApplyShifts<false>(shifts_, block.first_byte / block.word + tile * kPlanesTile + start, size,
                           planes[0]);
      if (facts_[tile].masked) {
        Mask part = {};
        std::memcpy(part.bits, mask.bits + start / 64, kRun / 64);
        for (size_t p = from_plane; p < to_plane; ++p) Compact(part, size, planes[p]);
        size = part.Stored(size);
      }
      for (size_t p = from_plane; p < to_plane; ++p) histograms_[p].Add(planes[p], size);
    }
  }
}

void Encoder::ChoosePlane(const Block& block, size_t p, size_t one_in) {
  PlanePlan& plan = plans_[p];
  plan = PlanePlan();
  const unsigned bits = PlaneBits(block.kind, p);
  const bool shifted = shifts_ && p == 0;
  const auto field = [&block, p](uint64_t element) {
    return WithFields(block.kind, [element, p](auto fields) {
      using Fields = decltype(fields);
      return Fields::Field(static_cast<typename Fields::Word>(element), p);
    });
  };
  const uint8_t varying = static_cast<uint8_t>(field(any_) ^ field(all_));
  PlaneFacts facts;
  facts.flat_bits = shifted ? bits : varying == 0 ? 0 : 32U - static_cast<unsigned>(__builtin_clz(varying));
  facts.values = stored_;
  if (facts.flat_bits < 8) {
    plan.mode = kPlanesModePacked;
    plan.count = static_cast<uint8_t>(facts.flat_bits);
    plan.base = shifted ? uint8_t{0} : static_cast<uint8_t>((field(all_) >> plan.count) << plan.count);
  }
  if (facts.flat_bits <= 1) return;
  const uint8_t flat_mode = plan.mode;
  facts.exact = one_in == 1;
  histograms_[p].Sum(facts.counts);
  const Verdict verdict = ChooseNesting(facts, &plan);
  // A sample finds planes that are worth it; for the lesser ones it is too small to choose by.
  if (verdict == Verdict::kFlat || facts.exact || (verdict == Verdict::kNested && p == 0)) return;
  Count(block, p, p + 1, 1);
  facts.exact = true;
  histograms_[p].Sum(facts.counts);
  if (ChooseNesting(facts, &plan) == Verdict::kFlat) plan.mode = flat_mode;
}

void Encoder::ChoosePlanes(const Block& block) {
  const size_t planes = PlaneCount(block.kind);
  const bool few = stored_ <= kFewElements;
  const size_t first = few ? 1 : kSampleFirst;
  const size_t others = few ? 1 : kSampleOthers;
  Count(block, 0, 1, first);
  if (planes > 1) Count(block, 1, planes, others);
  for (size_t p = 0; p < planes; ++p) ChoosePlane(block, p, p == 0 ? first : others);
}

uint8_t* PadEight(const uint8_t* origin, uint8_t* at) {
  while ((at - origin) % 8 != 0) *at++ = 0;
  return at;
}

// Head, rows of the planes, and symbols.
uint8_t* Encoder::WriteHead(const Block& block, uint8_t* at) {
  std::memset(at, 0, kPlanesBlockHeadSize);
  at[0] = static_cast<uint8_t>(block.kind);
  at += kPlanesBlockHeadSize;
  const size_t planes = PlaneCount(block.kind);
  for (size_t p = 0; p < planes; ++p, at += kPlanesPlaneRowSize) {
    const PlanePlan& plan = plans_[p];
    std::memset(at, 0, kPlanesPlaneRowSize);
    at[0] = plan.mode;
    at[1] = plan.count;
    at[2] = plan.base;
    if (!plan.nested()) continue;
    at[1] = static_cast<uint8_t>(plan.nesting.levels);
    at[2] = plan.nesting.closed ? 1 : 0;
    at[3] = static_cast<uint8_t>(plan.listed - 1);
    uint32_t widths = 0;
    for (size_t level = 0; level < plan.nesting.levels; ++level)
      widths |= uint32_t{plan.nesting.widths[level]} << (4 * level);
    Store32(at + 4, widths);
  }
  for (size_t p = 0; p < planes; ++p) {
    if (!plans_[p].nested()) continue;
    std::memcpy(at, plans_[p].nesting.symbols, plans_[p].listed);
    at += plans_[p].listed;
  }
  return PadEight(out_, at);
}

uint8_t* Encoder::WriteTile(const Block& block, size_t tile, uint8_t* at) {
  const size_t planes = PlaneCount(block.kind);
  const size_t n = ElementsIn(block, tile);
  const bool masked = facts_[tile].masked;
  size_t m = n;
  Mask mask;
  if (masked) {
    MakeMask(block, tile, &mask);
    std::memcpy(at, mask.bits, MaskSize(n));
    at += MaskSize(n);
    m = mask.Stored(n);
  }
  uint8_t* places[kMaxPlanes];
  uint8_t* to[kMaxPlanes];
  for (size_t p = 0; p < planes; ++p) {
    to[p] = values_[p].values;
    places[p] = at;
    if (plans_[p].nested()) continue;
    // What is stored as it is comes straight to its place.
    if (plans_[p].mode == kPlanesModeRaw && !masked && !(shifts_ && p == 0)) to[p] = at;
    at += plans_[p].FlatSize(m);
  }
  kernels_.split(block.kind, TileAt(block, tile), n, to);
  if (shifts_)
    ApplyShifts<false>(shifts_, block.first_byte / block.word + tile * kPlanesTile, n, to[0]);
  for (size_t p = 0; p < planes; ++p) {
    const PlanePlan& plan = plans_[p];
    if (masked && !plan.constant()) Compact(mask, n, to[p]);
    if (plan.mode == kPlanesModeRaw && to[p] != places[p]) std::memcpy(places[p], to[p], m);
    if (plan.mode == kPlanesModePacked && plan.count != 0)
      kernels_.pack(to[p], m, plan.count, places[p]);
    if (plan.nested()) at += kernels_.nest(to[p], m, plan.nesting, at);
  }
  return PadEight(out_, at);
}

void Encoder::WriteBlock(const Block& block) {
  SurveyBlock(block);
  ChoosePlanes(block);
  uint8_t* at = WriteHead(block, out_ + at_);
  uint8_t* table = at;
  std::memset(table, 0, AlignEight(2 * block.tiles));
  at += AlignEight(2 * block.tiles);
  for (size_t tile = 0; tile < block.tiles; ++tile) {
    uint8_t* const start = at;
    if (!facts_[tile].zero) at = WriteTile(block, tile, at);
    const bool masked = facts_[tile].zero || facts_[tile].masked;
    Store16(table + 2 * tile, static_cast<uint16_t>(static_cast<size_t>(at - start) / 8 |
                                                    (masked ? kPlanesMasked : 0)));
    at_ = static_cast<size_t>(at - out_);
    if (at_ >= chunk_.size) return;
  }
  const size_t rest = block.size - block.elements * block.word;
  std::memcpy(at, chunk_.raw + block.first_byte + block.elements * block.word, rest);
  at_ = static_cast<size_t>(PadEight(out_, at + rest) - out_);
}

size_t Encoder::Run() {
  block_log2_ = ChooseBlockLog2();
  const size_t block_size = size_t{1} << block_log2_;
  const size_t blocks = (chunk_.size + block_size - 1) / block_size;
  at_ = AlignEight(kPlanesHeadSize + 4 * blocks);
  std::memset(out_, 0, at_);
  out_[0] = static_cast<uint8_t>(kPlanesLayout);
  out_[1] = static_cast<uint8_t>(block_log2_);
  Store32(out_ + 4, static_cast<uint32_t>(chunk_.size));
  for (size_t number = 0; number < blocks; ++number) {
    const Block block = BlockAt(number);
    if (IsZero(block)) continue;
    Store32(out_ + kPlanesHeadSize + 4 * number, static_cast<uint32_t>(at_));
    WriteBlock(block);
    if (at_ >= chunk_.size) return 0;
  }
  return at_ < chunk_.size ? at_ : 0;
}

}  // namespace

}  // namespace planes

Status EncodePlanes(const PlanesChunk& chunk, uint8_t* out, size_t* stored) {
  *stored = 0;
  if (chunk.size > kChunkSize) return Status::InvalidArgument("larger than a chunk");
  for (size_t block = 0; block < PlanesBlockCount(chunk.size); ++block)
    if (chunk.kinds[block] >= kPlanesKinds)
      return Status::InvalidArgument("unknown kind of elements");
  if (chunk.size == 0) return Status::Ok();
  const std::unique_ptr<planes::Encoder> encoder(new (std::nothrow) planes::Encoder(chunk, out));
  if (encoder == nullptr) return Status::NoMemory();
  *stored = encoder->Run();
  return Status::Ok();
}

}  // namespace fastckpt

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "bytes.h"
#include "planes.h"
#include "planes_block.h"
#include "planes_kernels.h"
#include "planes_plan.h"
#include "planes_shift.h"
#include "planes_tile.h"

namespace fastckpt {

namespace planes {

namespace {

// One run of values in so many is looked at before the planes of a block are chosen.
constexpr size_t kRun = 64;
constexpr size_t kSampleFirst = 8;  // of plane 0, which is worth it
constexpr size_t kSampleOthers = 32;
// Below this many elements, all are looked at.
constexpr size_t kFewElements = 8192;

void Store16(uint8_t* to, uint16_t value) { std::memcpy(to, &value, sizeof value); }
void Store32(uint8_t* to, uint32_t value) { std::memcpy(to, &value, sizeof value); }

class Encoder {
 public:
  // The number of stored bytes, 0 if they would not be fewer.
  size_t Run(const PlanesChunk& chunk, uint8_t* out);

 private:
  Block BlockAt(size_t number) const;
  size_t ChooseBlockLog2() const;
  void Count(const Block& block, size_t from_plane, size_t to_plane, size_t one_in);
  void ChoosePlanes(const Block& block);
  void ChoosePlane(const Block& block, size_t p, size_t one_in);
  void WriteBlock(const Block& block);
  uint8_t* WriteHead(const Block& block, uint8_t* at);
  uint8_t* WriteTile(const Block& block, size_t tile, uint8_t* at);

  PlanesChunk chunk_;
  uint8_t* out_ = nullptr;
  Kernels kernels_ = kPortableKernels;
  size_t at_ = 0;
  size_t block_log2_ = kPlanesBlockLog2;
  Shifts shifts_;

  // Of the block at hand.
  BlockSurvey survey_;
  PlanePlan plans_[kMaxPlanes];
  Histogram histograms_[kMaxPlanes];

  Lane values_[kMaxPlanes];
  ShiftFinder finder_;
};

Block Encoder::BlockAt(size_t number) const {
  const size_t first_byte = number << block_log2_;
  const size_t size = std::min(size_t{1} << block_log2_, chunk_.size - first_byte);
  return MakeBlock(chunk_.raw, first_byte, size, chunk_.kinds[first_byte >> kPlanesBlockLog2]);
}

// One block where most of the chunk is zero, if its head takes less than those of the blocks do.
size_t Encoder::ChooseBlockLog2() const {
  constexpr size_t kStep = 4096;
  const size_t steps = chunk_.size / kStep;
  size_t zero = 0;
  for (size_t step = 0; step < steps; ++step)
    zero += AllZero(kernels_, chunk_.raw + step * kStep, kStep) ? 1 : 0;
  if (4 * zero < 3 * steps || steps == 0) return kPlanesBlockLog2;
  const size_t blocks = PlanesBlockCount(chunk_.size);
  size_t used = 0;
  for (size_t number = 0; number < blocks; ++number) {
    if (chunk_.kinds[number] != chunk_.kinds[0]) return kPlanesBlockLog2;
    const Block block = BlockAt(number);
    used += AllZero(kernels_, block.raw, block.size) ? 0 : 1;
  }
  const Block whole = MakeBlock(chunk_.raw, 0, chunk_.size, chunk_.kinds[0]);
  const Block part = BlockAt(0);
  const size_t symbols = 24;  // as many as a plane of exponents mostly has
  const size_t head =
      kPlanesBlockHeadSize + PlaneCount(whole.kind) * kPlanesPlaneRowSize + symbols;
  const size_t many = 4 * blocks + used * (head + AlignEight(2 * part.tiles));
  const size_t one = 4 + (used == 0 ? 0 : head + AlignEight(2 * whole.tiles));
  return one < many ? kPlanesBlockLog2Max : kPlanesBlockLog2;
}

// Counts the values of planes [from_plane, to_plane) in one run of `one_in`.
void Encoder::Count(const Block& block, size_t from_plane, size_t to_plane, size_t one_in) {
  for (size_t p = from_plane; p < to_plane; ++p) histograms_[p].Clear();
  uint8_t* planes[kMaxPlanes];
  for (size_t p = 0; p < kMaxPlanes; ++p) planes[p] = values_[p].values;
  for (size_t tile = 0; tile < block.tiles; ++tile) {
    if (survey_.zero(tile)) continue;
    const size_t n = block.ElementsIn(tile);
    Mask mask;
    if (survey_.masked(tile)) MakeMask(block, tile, &mask);
    // Runs that begin elsewhere in each tile: not always in the same columns of a matrix.
    for (size_t run = (5 * tile) % one_in; run * kRun < n; run += one_in) {
      const size_t start = run * kRun;
      size_t size = std::min(kRun, n - start);
      kernels_.split(block.kind, block.Tile(tile) + start * block.word, size, planes);
      if (shifts_ && from_plane == 0)
        ApplyShifts<false>(shifts_, block.first + tile * kPlanesTile + start, size,
                           planes[0]);
      if (survey_.masked(tile)) {
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
  const uint8_t varying = static_cast<uint8_t>(field(survey_.any()) ^ field(survey_.all()));
  PlaneFacts facts;
  facts.flat_bits = 0;
  for (unsigned left = varying; left != 0; left >>= 1) ++facts.flat_bits;
  if (shifted) facts.flat_bits = bits;
  facts.values = survey_.stored();
  if (facts.flat_bits < 8) {
    plan.mode = kPlanesModePacked;
    plan.count = static_cast<uint8_t>(facts.flat_bits);
    if (!shifted)
      plan.base = static_cast<uint8_t>((field(survey_.all()) >> plan.count) << plan.count);
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
  const bool few = survey_.stored() <= kFewElements;
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
  const size_t n = block.ElementsIn(tile);
  const bool masked = survey_.masked(tile);
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
  kernels_.split(block.kind, block.Tile(tile), n, to);
  if (shifts_)
    ApplyShifts<false>(shifts_, block.first + tile * kPlanesTile, n, to[0]);
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
  survey_.Look(kernels_, block);
  ChoosePlanes(block);
  uint8_t* at = WriteHead(block, out_ + at_);
  uint8_t* table = at;
  std::memset(table, 0, AlignEight(2 * block.tiles));
  at += AlignEight(2 * block.tiles);
  for (size_t tile = 0; tile < block.tiles; ++tile) {
    uint8_t* const start = at;
    if (!survey_.zero(tile)) at = WriteTile(block, tile, at);
    const bool masked = survey_.zero(tile) || survey_.masked(tile);
    Store16(table + 2 * tile, static_cast<uint16_t>(static_cast<size_t>(at - start) / 8 |
                                                    (masked ? kPlanesMasked : 0)));
    at_ = static_cast<size_t>(at - out_);
    if (at_ >= chunk_.size) return;
  }
  const size_t rest = block.size - block.elements * block.word;
  std::memcpy(at, block.raw + block.elements * block.word, rest);
  at_ = static_cast<size_t>(PadEight(out_, at + rest) - out_);
}

size_t Encoder::Run(const PlanesChunk& chunk, uint8_t* out) {
  chunk_ = chunk;
  out_ = out;
  kernels_ = CurrentKernels();
  block_log2_ = kPlanesBlockLog2;
  block_log2_ = ChooseBlockLog2();
  const size_t block_size = size_t{1} << block_log2_;
  const size_t blocks = (chunk_.size + block_size - 1) / block_size;
  shifts_ = finder_.Find(kernels_, chunk_);
  const size_t tables = kPlanesHeadSize + 4 * blocks;
  at_ = AlignEight(tables + shifts_.row_count + shifts_.row_length);
  std::memset(out_, 0, at_);
  out_[0] = static_cast<uint8_t>(kPlanesLayout);
  out_[1] = static_cast<uint8_t>(block_log2_);
  Store32(out_ + 4, static_cast<uint32_t>(chunk_.size));
  if (shifts_) {
    Store32(out_ + 8, shifts_.row_length);
    Store32(out_ + 12, shifts_.phase);
    Store32(out_ + 16, shifts_.row_count);
    std::memcpy(out_ + tables, shifts_.rows, shifts_.row_count);
    std::memcpy(out_ + tables + shifts_.row_count, shifts_.columns, shifts_.row_length);
  }
  for (size_t number = 0; number < blocks; ++number) {
    const Block block = BlockAt(number);
    if (AllZero(kernels_, block.raw, block.size)) continue;
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
  // Kept: the first touch of fresh pages would take as long as encoding a chunk.
  static thread_local std::unique_ptr<planes::Encoder> encoder;
  if (encoder == nullptr) encoder.reset(new (std::nothrow) planes::Encoder());
  if (encoder == nullptr) return Status::NoMemory();
  *stored = encoder->Run(chunk, out);
  return Status::Ok();
}

}  // namespace fastckpt

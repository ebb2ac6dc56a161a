// The ring of stages through which products of warpgroups are fed: the copy engine brings rows and weights, which lie in
// global memory as the warpgroups read them, and barriers in shared memory count their bytes. Four warps that do nothing
// else issue the copies, a dozen for a chunk of the inner dimension, as soon as a stage is free; the chunks are theirs in
// turn, since a warp's copies are issued one after the other. The warps that multiply spend no instruction on them. The
// weights of the next step start while these finish the one before.
//
// Rows and weights stand in core matrices, 8 rows (or outputs) x 16 bytes (8 channels) that are 128 bytes together. A
// stage holds, for each step of the inner dimension, two blocks of 8 channels of all rows, and behind all rows the
// weights of all units.
#pragma once

#include "feed.cuh"

namespace pxfast {
namespace cuda {

constexpr int kCoreBytes = 128;
constexpr int kHalfUnits = kUnitsPerTile / 2;  // that one product takes
constexpr int kFeeders = kFeedingThreads / 32;
static_assert(3 * kGroupChunk <= 32, "every copy of a chunk has a lane of its own");
static_assert(kMaxStages % kFeeders == 0, "a stage is always the same feeder's");

// How a pass of warpgroups uses the ring.
struct Stages {
  int rows;          // that a stage has room for
  int weight_bytes;  // of one step of the inner dimension
  int weights_at, bytes, count;

  PXFAST_DEVICE Stages(const Step& step, const Pass& pass, int ring_bytes)
      : rows(step.per_row ? kRowTile : kGroupPixelTile),
        weight_bytes((pass.tile_units > kHalfUnits ? 2 : 1) * kHalfUnits * kUnitBytes<Bf16>),
        weights_at(kGroupChunk * rows * kInner * 2),
        bytes(weights_at + kGroupChunk * weight_bytes),
        count(ring_bytes / bytes < kMaxStages ? kFeeders : kMaxStages) {}
};

// A warp's place in the ring. Each counts the phases of the barriers it waits for; all begin every pass with the first
// stage, when all stages are empty.
struct Ring {
  unsigned char* memory;
  CopyBarrier *full, *empty;  // of each stage
  uint32_t phases;            // a bit for each stage: the parity of the phase that is waited for next
  uint32_t busy;              // a feeder's own stages that were filled and are not yet known to be empty
  int stage;

  PXFAST_DEVICE void begin_pass() { stage = 0; }
  PXFAST_DEVICE void advance(const Stages& stages, int by = 1) { stage = (stage + by) & (stages.count - 1); }
  PXFAST_DEVICE unsigned char* at(const Stages& stages) const { return memory + stage * stages.bytes; }

  // Waits until the stage is there, or until it is empty.
  PXFAST_DEVICE void wait(CopyBarrier* barriers, int which) {
    wait_for_barrier(&barriers[which], phases >> which & 1);
    phases ^= 1u << which;
  }
  PXFAST_DEVICE void claim() {
    if (busy >> stage & 1) wait(empty, stage);
    busy |= 1u << stage;
  }
  PXFAST_DEVICE void drain() {
    for (int i = 0; busy != 0; ++i, busy >>= 1)
      if (busy & 1) wait(empty, i);
  }
};

// Steps of the inner dimension in a chunk.
PXFAST_DEVICE int chunk_steps(int inner, int chunk) {
  return inner - chunk * kGroupChunk < kGroupChunk ? inner - chunk * kGroupChunk : kGroupChunk;
}
PXFAST_DEVICE int chunks_of(int inner) { return (inner + kGroupChunk - 1) / kGroupChunk; }

// What feeds one tile: this warp's chunks of it. A lane has a copy of its own in each, of rows or of weights.
class GroupFeed {
 public:
  PXFAST_DEVICE GroupFeed(const Launch& launch, const Step& step, const Pass& pass, const Tile& tile, int images,
                          const Bf16* caches, Ring& ring)
      : pass_(pass),
        tile_(tile),
        ring_(ring),
        stages_(step, pass, launch.ring_bytes),
        inner_(pass.taps * step.tap_inner),
        tap_inner_(step.tap_inner),
        images_(images),
        column_stride_(step.scale == Scale::kDown ? 2 : 1),
        lane_(thread_index_again() & 31),
        step_(lane_ < 2 * kGroupChunk ? lane_ >> 1 : lane_ - 2 * kGroupChunk),
        first_(((thread_index_again() - kThreads) / 32 - ring.stage) & (kFeeders - 1)),
        cursor_(step_ + first_ * kGroupChunk, step.tap_inner) {
    block_ = CacheOrder<true>::block_stride(step.in_columns, images);
    cells_ = caches + (lane_ & 1) * block_;
    to_ = lane_ < 2 * kGroupChunk ? lane_ * stages_.rows * 16 : stages_.weights_at + step_ * stages_.weight_bytes;
    weights_ = launch.block + step.weights + (uint64_t)tile.unit * kUnitBytes<Bf16>;
    weight_stride_ = (uint32_t)step.units * kUnitBytes<Bf16>;
  }

  // Starts the weights of the first chunks, as many as the ring holds; it is at its first stage, and all are empty.
  PXFAST_DEVICE int start_weights() {
    const int chunks = chunks_of(inner_), some = chunks < stages_.count ? chunks : stages_.count;
    for (int c = first_; c < some; c += kFeeders) {
      ring_.advance(stages_, c == first_ ? first_ : kFeeders);
      ring_.claim();
      copy_weights(c);
    }
    return some;
  }

  // Everything else; the first `started` chunks of the tile have their weights already.
  PXFAST_DEVICE void run(int started) {
    const int chunks = chunks_of(inner_), begin = ring_.stage;
    // of a lane that copies weights, past those
    for (int c = first_; c < started && lane_ >= 2 * kGroupChunk; c += kFeeders)
      cursor_.advance(kFeeders * kGroupChunk, tap_inner_);
    for (int c = first_; c < chunks; c += kFeeders) {
      ring_.stage = begin;
      ring_.advance(stages_, c);
      if (c >= started) ring_.claim();
      const int count = chunk_steps(inner_, c);
      if (lane_ == 0)
        expect_bytes(&ring_.full[ring_.stage], count * (tile_.rows * kInner * 2 + tile_.units * kUnitBytes<Bf16>));
      sync_warp();
      if (c >= started) copy_weights(c);
      copy_rows(c);
    }
    ring_.stage = begin;
    ring_.advance(stages_, chunks);
  }

 private:
  const Pass& pass_;
  const Tile& tile_;
  Ring& ring_;
  const Stages stages_;
  const int inner_, tap_inner_, images_, column_stride_, lane_;
  const int step_;   // of a chunk, that this lane copies rows or weights of
  const int first_;  // chunk of this warp
  Cursor cursor_;
  uint32_t block_, to_, weight_stride_;
  const Bf16* cells_;
  const unsigned char* weights_;

  PXFAST_DEVICE void copy_weights(int chunk) {
    if (lane_ < 2 * kGroupChunk || lane_ >= 3 * kGroupChunk) return;
    if (step_ < chunk_steps(inner_, chunk))
      copy_bulk(ring_.at(stages_) + to_,
                weights_ + (uint64_t)(pass_.inner[cursor_.tap] + cursor_.step) * weight_stride_,
                tile_.units * kUnitBytes<Bf16>, &ring_.full[ring_.stage]);
    cursor_.advance(kFeeders * kGroupChunk, tap_inner_);
  }

  PXFAST_DEVICE void copy_rows(int chunk) {
    if (lane_ >= 2 * kGroupChunk) return;
    if (step_ < chunk_steps(inner_, chunk)) {
      CopyBarrier* full = &ring_.full[ring_.stage];
      unsigned char* to = ring_.at(stages_) + to_;
      const Bf16* from = cells_ + pass_.cell[cursor_.tap] + (uint32_t)(2 * cursor_.step) * block_;
      if (column_stride_ == 1) {
        copy_bulk(to, from + (uint32_t)tile_.row * kBlock, tile_.rows * 16, full);
      } else {  // column by column
        for (int done = 0; done < tile_.rows;) {
          const int row = tile_.row + done, image = row % images_, left = tile_.rows - done;
          const int some = images_ - image < left ? images_ - image : left;
          const int position = row / images_ * column_stride_ * images_ + image;
          copy_bulk(to + done * 16, from + (uint32_t)position * kBlock, some * 16, full);
          done += some;
        }
      }
    }
    cursor_.advance(kFeeders * kGroupChunk, tap_inner_);
  }
};

}  // namespace cuda
}  // namespace pxfast

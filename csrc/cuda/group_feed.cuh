// The ring of stages through which a product of warpgroups is fed: the copy engine brings rows and weights, which lie in
// global memory as the warpgroups read them, and a barrier in shared memory counts their bytes. One warp issues a dozen
// copies for a chunk of the inner dimension; the others spend no instruction on it.
//
// Rows and weights stand in core matrices, 8 rows (or outputs) x 16 bytes (8 channels) that are 128 bytes together. A
// stage holds, for each step of the inner dimension, two blocks of 8 channels of all rows, and behind all rows the
// weights of all units.
#pragma once

#include "feed.cuh"

namespace pxfast {
namespace cuda {

constexpr int kCoreBytes = 128;
constexpr int kGroupWeightBytes = kUnitsPerTile * kUnitBytes<Bf16>;  // of one step of the inner dimension in a stage
constexpr int kGroupStageBytes = kGroupChunk * (kRowTile * kInner * 2 + kGroupWeightBytes);
static_assert(kGroupPixelTile <= kRowTile, "a stage holds either tile");
static_assert(3 * kGroupChunk <= 32, "every copy of a chunk has a lane of its own");

// Where the ring stands between one tile and the next.
struct Ring {
  unsigned char* stages;
  CopyBarrier* full;  // one for each stage
  Slot slot;          // that the next chunk fills
};

class GroupFeed {
 public:
  // tile_rows: that a stage has room for.
  PXFAST_DEVICE GroupFeed(const Launch& launch, const Step& step, const Pass& pass,
                          const Tile& tile, int images, const Bf16* caches, Ring& ring, int tile_rows)
      : launch_(launch),
        pass_(pass),
        tile_(tile),
        ring_(ring),
        next_slot_(ring.slot),
        inner_(pass.taps * step.tap_inner),
        tap_inner_(step.tap_inner),
        images_(images),
        column_stride_(step.scale == Scale::kDown ? 2 : 1),
        lane_(thread_index() & 31),
        step_(lane_ < 2 * kGroupChunk ? lane_ >> 1 : lane_ - 2 * kGroupChunk),
        cursor_(step_, step.tap_inner) {
    chunks = (inner_ + kGroupChunk - 1) / kGroupChunk;
    weights_at = tile_rows * kInner * 2 * kGroupChunk;
    const bool rows = lane_ < 2 * kGroupChunk;
    block_ = CacheOrder<true>::block_stride(step.in_columns, images);
    cells_ = caches + (lane_ & 1) * block_;
    to_ = rows ? lane_ * tile_rows * 16 : weights_at + step_ * kGroupWeightBytes;
    weights_ = launch.block + step.weights + (uint64_t)tile.unit * kUnitBytes<Bf16>;
    weight_stride_ = (uint32_t)step.units * kUnitBytes<Bf16>;
  }

  int chunks;      // of the inner dimension, kGroupChunk steps each
  int weights_at;  // in a stage

  // Starts the first chunks, all that the ring holds. Nobody may be at the ring any more, who has not fenced since.
  PXFAST_DEVICE void begin() {
    if (thread_index() < 32) fence_global_copies();  // the cells that other blocks have written
    for (int i = 0; i < launch_.stages && next_ < chunks; ++i) load();
  }

  // Until a chunk is there; returns its stage.
  PXFAST_DEVICE const unsigned char* wait() {
    wait_for_barrier(&ring_.full[ring_.slot.stage], ring_.slot.parity);
    return ring_.stages + ring_.slot.stage * launch_.stage_bytes;
  }
  PXFAST_DEVICE void advance() { ring_.slot.advance(launch_.stages); }

  // Whether chunks are left to start, and the start of one, in the stage of the oldest, which everyone is done with.
  PXFAST_DEVICE bool more() const { return next_ < chunks; }
  PXFAST_DEVICE void load() {
    if (thread_index() < 32) issue();
    ++next_;
    next_slot_.advance(launch_.stages);
  }

  // Steps of the inner dimension in a chunk.
  PXFAST_DEVICE int count(int at) const { return inner_ - at * kGroupChunk < kGroupChunk ? inner_ - at * kGroupChunk : kGroupChunk; }

 private:
  const Launch& launch_;
  const Pass& pass_;
  const Tile& tile_;
  Ring& ring_;
  Slot next_slot_;
  const int inner_, tap_inner_, images_, column_stride_, lane_;
  const int step_;  // of a chunk, that this lane copies rows or weights of
  Cursor cursor_;
  int next_ = 0;  // chunk to be started
  uint32_t block_, to_, weight_stride_;
  const Bf16* cells_;
  const unsigned char* weights_;

  // The copies of a chunk, one for each lane but where the rows' columns do not lie together.
  PXFAST_DEVICE void issue() {
    const int count = this->count(next_);
    CopyBarrier* full = &ring_.full[next_slot_.stage];
    unsigned char* to = ring_.stages + next_slot_.stage * launch_.stage_bytes + to_;
    if (lane_ == 0) expect_bytes(full, count * (tile_.rows * kInner * 2 + tile_.units * kUnitBytes<Bf16>));
    sync_warp();
    if (lane_ < 3 * kGroupChunk && step_ < count) {
      if (lane_ >= 2 * kGroupChunk) {
        copy_bulk(to, weights_ + (uint64_t)(pass_.inner[cursor_.tap] + cursor_.step) * weight_stride_,
                  tile_.units * kUnitBytes<Bf16>, full);
      } else {
        const Bf16* from = cells_ + pass_.cell[cursor_.tap] + (uint32_t)(2 * cursor_.step) * block_;
        if (column_stride_ == 1) {
          copy_bulk(to, from + (uint32_t)tile_.row * kBlock, tile_.rows * 16, full);
        } else {
          for (int done = 0; done < tile_.rows;) {
            const int row = tile_.row + done, image = row % images_, left = tile_.rows - done;
            const int some = images_ - image < left ? images_ - image : left;
            const int position = row / images_ * column_stride_ * images_ + image;
            copy_bulk(to + done * 16, from + (uint32_t)position * kBlock, some * 16, full);
            done += some;
          }
        }
      }
    }
    cursor_.advance(kGroupChunk, tap_inner_);
  }
};

}  // namespace cuda
}  // namespace pxfast

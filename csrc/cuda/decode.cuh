// The decode loop: per row the vertical stream for the whole row, per pixel the horizontal stream, the head, the
// choice; or rows guessed and repaired. A team of blocks decodes its own images; teams never wait for each other.
#pragma once

#include "choose.cuh"
#include "finish.cuh"
#include "group_tile.cuh"

namespace pxfast {
namespace cuda {

// What stands in a block's shared memory before the ring of stages.
struct alignas(128) SharedState {
  Step step[2];  // the one that runs, and the next one
  Pass pass[2];
  CopyBarrier full[kMaxStages], empty[kMaxStages];
};
constexpr int kSumsBytes = kRowTile * kUnitsPerTile * kUnit * (int)sizeof(float);  // of a tile

// kGroups: products are made by warpgroups, from weights packed for them and caches ordered for them; kFeedingThreads
// behind the kThreads others feed them.
template <class Element, bool kGroups>
class Decoder {
 public:
  PXFAST_DEVICE explicit Decoder(const Launch& launch)
      : launch_(launch),
        program_(launch.program),
        team_(launch),
        shared_(*reinterpret_cast<SharedState*>(shared_memory())),
        sums_(shared_memory() + sizeof(SharedState)),
        ring_{sums_ + (kGroups ? kSumsBytes : 0), shared_.full, shared_.empty, 0, 0, 0},
        thread_(thread_index()) {}

  PXFAST_DEVICE void run() {
    if constexpr (kGroups) {
      if (thread_ == 0) {
        for (int i = 0; i < kMaxStages; ++i) {
          start_barrier(&ring_.full[i], 1);
          start_barrier(&ring_.empty[i], kWarps);
        }
      }
      sync_block();
    }
    run_row();
  }

 private:
  // The row's vertical stream, then its pixels: one after the other, or all that are open at once. Large functions have
  // a single call each, since all are inlined.
  //
  // Guessing rows: evaluate all columns at once, keep the prefix that agrees with the guess and its first correction,
  // repeat from there with the evaluated values as the next guess. The fixed point is the sequential result, bit for
  // bit. The images of a team go on together, from the first column that is open in any of them.
  PXFAST_DEVICE void run_row() {
    const int width = program_.width, row = launch_.row;
    if (launch_.speculative && !feeds()) Choose<Element, kGroups>(team_, sums_).guess(row);
    int sweep = 0;
    bool per_row = true;
    for (int begin = 0; begin < width;) {
      // the count of the sweep before: nobody reads it any more, everyone has been through the steps since. It may
      // still be read behind the last sweep of a row, where it is the width as well.
      if (team_.member == 0 && thread_ == 0) store_shared_between_blocks(team_.open() + sweep, width);
      run_steps(per_row, begin);
      if (per_row) {
        per_row = false;
        continue;
      }
      const int end = end_of(false, begin);
      if (!feeds()) Choose<Element, kGroups>(team_, sums_).columns(row, begin, end, team_.open() + sweep);
      wait_for_team();
      begin = launch_.speculative ? load_shared_between_blocks(team_.open() + sweep) : end;
      sweep ^= 1;
    }
  }
  // The columns that steps run for at once begin with `begin`, and end here.
  PXFAST_DEVICE int end_of(bool per_row, int begin) const {
    return per_row || launch_.speculative ? program_.width : begin + 1;
  }

  const Launch& launch_;
  const Program& program_;
  const Team<Element, kGroups> team_;
  SharedState& shared_;
  unsigned char* sums_;  // of the tile at hand; the ring itself where warps read that
  Ring ring_;
  const int thread_;
  int pass_ = 0;               // the half of shared_.pass that describes the pass at hand
  unsigned int arrivals_ = 0;  // that the next meeting of the team begins with
  int started_ = 0;            // chunks of the step to come whose weights are on their way

  // Whether this thread is one of those that feed the others.
  PXFAST_DEVICE bool feeds() const { return kGroups && thread_ >= kThreads; }
  // Whether it is one of the warp that looks after the steps to come.
  PXFAST_DEVICE bool prepares() const {
    return kGroups ? thread_ >= kThreads && thread_ < kThreads + 32 : thread_ < 32;
  }
  // Meeting of all threads but those that feed.
  PXFAST_DEVICE void sync_computing() {
    if constexpr (kGroups) {
      sync_some<1, kThreads>();
    } else {
      sync_block();
    }
  }

  PXFAST_DEVICE void wait_for_team() {
    if (kGroups && !feeds()) fence_global_copies();  // the copy engine reads what this thread has written
    if (kHasClusters && launch_.cluster > 1) {
      sync_cluster();
    } else {
      sync_block();
      if (launch_.members > 1) {
        if (thread_ == 0) {
          unsigned int* count = launch_.arrivals + team_.index * kArrivalStride;
          arrivals_ += (unsigned int)launch_.members;
          arrive(count);
          wait_for_arrivals(count, arrivals_);
        }
        sync_block();
      }
    }
    if (feeds()) fence_global_copies();  // and what the others have
  }

  // Copies a step's description into one half of shared_.step, and describes its first pass; by the warp that prepares,
  // for which the description is there then, for the others behind the next meeting of the block.
  PXFAST_DEVICE void fetch_step(int index, int half) {
    const unsigned char* from = launch_.block + program_.step_offset + (uint64_t)index * sizeof(Step);
    for (int i = thread_ & 31; i < (int)(sizeof(Step) / 16); i += 32)
      copy_async(reinterpret_cast<unsigned char*>(&shared_.step[half]) + 16 * i, from + 16 * i);
    commit_copies();
  }
  PXFAST_DEVICE void prepare_step(int half, int begin, int end) {
    wait_copies<0>();
    sync_warp();
    const Step& step = shared_.step[half];
    const int first = first_column(begin, step.level);
    describe_pass(step, launch_.row >> step.level, first, 0, last_column(end, step.level));
  }

  // Every step of a stream for the row's columns from `begin` on, at stride 1.
  PXFAST_DEVICE void run_steps(bool per_row, int begin) {
    const int end = end_of(per_row, begin), level = active_level(launch_.row, begin, end);
    int half = 0;
    pass_ ^= 1;
    if (prepares()) {
      fetch_step(program_.first[per_row][level], half);
      prepare_step(half, begin, end);
    }
    sync_block();
    for (;;) {
      const Step& step = shared_.step[half];
      if (prepares() && step.next[level] >= 0) fetch_step(step.next[level], half ^ 1);
      run_step(step, first_column(begin, step.level), last_column(end, step.level));
      pass_ ^= 1;
      const bool last = step.next[level] < 0;  // read now: its place is the next but one's behind the meeting
      if (!last) {
        if (prepares()) prepare_step(half ^ 1, begin, end);
        if constexpr (kGroups)
          if (feeds()) start_weights(shared_.step[half ^ 1]);
      }
      wait_for_team();
      if (last) return;
      half ^= 1;
    }
  }

  // One step for the columns [begin, end) of its own level; its first pass has been described.
  PXFAST_DEVICE void run_step(const Step& step, int begin, int end) {
    const int stride = column_stride(step);
#pragma unroll 1
    for (int first = begin; first < begin + stride && first < end; ++first) {
      if (first > begin) {
        pass_ ^= 1;
        if (prepares()) describe_pass(step, launch_.row >> step.level, first, first - begin, end);
        sync_block();
      }
      run_pass(step, shared_.pass[pass_]);
    }
  }

  // Columns of either parity have different taps in a transposed convolution.
  static PXFAST_DEVICE int column_stride(const Step& step) { return step.scale == Scale::kUp ? 2 : 1; }

  static PXFAST_DEVICE Tile tile_of(const Step& step, const Pass& pass, int task) {
    Tile tile;
    const int row_tile = pass.unit_tiles == 1 ? task : task / pass.unit_tiles;
    tile.row = row_tile * pass.tile_rows;
    tile.rows = pass.rows - tile.row < pass.tile_rows ? pass.rows - tile.row : pass.tile_rows;
    tile.unit = (task - row_tile * pass.unit_tiles) * pass.tile_units;
    tile.units = step.units - tile.unit < pass.tile_units ? step.units - tile.unit : pass.tile_units;
    return tile;
  }

  PXFAST_DEVICE void run_pass(const Step& step, const Pass& pass) {
    if constexpr (kGroups) {
      if (feeds()) {
        feed_pass(step, pass);
        return;
      }
      ring_.begin_pass();
    }
    for (int task = team_.member; task < pass.tasks; task += launch_.members) {
      run_tile(step, pass, tile_of(step, pass, task));
      sync_computing();  // nobody needs the sums any more, or the ring where that is their place
    }
  }

  // The weights of the next step's first tile, while the others finish this one's last.
  PXFAST_DEVICE void start_weights(const Step& step) {
    const Pass& pass = shared_.pass[pass_];
    sync_some<2, kFeedingThreads>();  // the pass is described, and every feeder's stages are empty
    ring_.begin_pass();
    if (team_.member < pass.tasks) {
      const Tile tile = tile_of(step, pass, team_.member);
      started_ = GroupFeed(launch_, step, pass, tile, team_.images, team_.caches(), ring_).start_weights();
    }
  }
  PXFAST_DEVICE void feed_pass(const Step& step, const Pass& pass) {
    ring_.begin_pass();
    for (int task = team_.member; task < pass.tasks; task += launch_.members) {
      const Tile tile = tile_of(step, pass, task);
      GroupFeed(launch_, step, pass, tile, team_.images, team_.caches(), ring_).run(started_);
      started_ = 0;
    }
    ring_.drain();  // the next pass may divide the ring in other stages
  }

  // Fills the half of shared_.pass at hand, a lane for each tap and one for the rest, for every column of the step from
  // `first` on, or every second one, below `end`. offset: of `first` behind the step's first column.
  PXFAST_DEVICE void describe_pass(const Step& step, int row, int first, int offset, int end) {
    static_assert(kMaxTaps + 6 <= 32, "a lane for each tap, one for the rest, and five for the results");
    const int lane = thread_ & 31, stride = column_stride(step), columns = (end - first + stride - 1) / stride;
    const Tap& tap = step.tap[lane < step.taps ? lane : 0];
    const bool exists = lane < step.taps && in_position(row, step.scale) + tap.row >= 0 &&
                        (tap.row_parity < 0 || tap.row_parity == (row & 1)) &&
                        (tap.column_parity < 0 || tap.column_parity == (first & 1));
    const uint32_t existing = ballot(exists);
    Pass& pass = shared_.pass[pass_];
    if (exists) {
      const int before = count_bits(existing & ((1u << lane) - 1));
      pass.cell[before] = CacheOrder<kGroups>::cell(tap.cache, tap.slots, step.in_columns, step.channels, team_.images,
                                                    in_position(row, step.scale) + tap.row,
                                                    in_position(first, step.scale) + tap.column);
      pass.inner[before] = tap.inner;
    } else if (lane == step.taps) {
      pass.taps = count_bits(existing);
      pass.out_stride = stride;
      pass.first = first;
      pass.offset = offset;
      pass.row = row;
      pass.rows = columns * team_.images;
      // enough tasks for all blocks of the team, if there are so many units; else of as many units as a tile takes
      pass.tile_rows = step.per_row ? kRowTile : kGroups ? kGroupPixelTile : kPixelTile;
      if (!kGroups && !step.per_row && step.units * ((pass.rows + 15) / 16) <= launch_.members) pass.tile_rows = 16;
      const int row_tiles = (pass.rows + pass.tile_rows - 1) / pass.tile_rows;
      int tile_units = (step.units * row_tiles + launch_.members - 1) / launch_.members;
      if (tile_units > kUnitsPerTile) tile_units = kUnitsPerTile;
      pass.unit_tiles = (step.units + tile_units - 1) / tile_units;
      pass.tile_units = (step.units + pass.unit_tiles - 1) / pass.unit_tiles;
      pass.unit_tiles = (step.units + pass.tile_units - 1) / pass.tile_units;  // none is empty
      pass.tasks = row_tiles * pass.unit_tiles;
    }
    sync_warp();  // the results' lanes read what the one before them has written
    Finish<Element, kGroups>::describe(team_, step, pass, lane - step.taps - 1);
  }

  // The blocks of 16 rows x one unit that this warp finishes of a tile. Found again behind the products, during which
  // registers are fewest.
  struct Blocks {
    const Place<kGroups> place;
    const int tiles, units, stride;  // tiles of 16 rows

    PXFAST_DEVICE Blocks(const Step& step, const Tile& tile)
        : place(step, thread_index_again() >> 5),
          tiles(place.tiles(tile.rows - place.row)),
          units(tiles > 0 ? tile.units - place.unit : 0),
          stride(step.per_row ? 1 : Place<kGroups>::kSlicesHere) {}

    PXFAST_DEVICE int first() const { return settle(stride == 1 ? 0 : place.slice); }
    PXFAST_DEVICE int after(int b) const { return settle(b + stride); }

   private:
    PXFAST_DEVICE int settle(int b) const {
      if constexpr (kGroups) {
        return b < units ? b : kBlocksPerWarp;
      } else {
        while (b < kBlocksPerWarp && (place.tile_of(b) >= tiles || place.unit_of(b) >= units)) b += stride;
        return b;
      }
    }
  };
  PXFAST_DEVICE static void take_rows(Finish<Element, kGroups>& finish, const Blocks& blocks, const Tile& tile, int b) {
    finish.take_rows(tile.row + blocks.place.row + 16 * blocks.place.tile_of(b), tile.row + tile.rows);
  }
  PXFAST_DEVICE static int unit_of(const Blocks& blocks, const Tile& tile, int b) {
    return tile.unit + blocks.place.unit + blocks.place.unit_of(b);
  }

  PXFAST_DEVICE void run_tile(const Step& step, const Pass& pass, const Tile& tile) {
    const Beside first = multiply(step, pass, tile);
    finish_tile(step, pass, tile, first);
  }

  // Leaves the tile's sums in shared memory. Where warpgroups multiply, what is added to those of this warp's first
  // block is on its way meanwhile.
  PXFAST_DEVICE Beside multiply(const Step& step, const Pass& pass, const Tile& tile) {
    const Blocks blocks(step, tile);
    Beside first{};
    float sums[kBlocksPerWarp][8];
    if constexpr (kGroups) {
      if (const int b = blocks.first(); b < kBlocksPerWarp) {
        Finish<Element, kGroups> finish(team_, step, pass);
        take_rows(finish, blocks, tile, b);
        first = finish.fetch(unit_of(blocks, tile, b));
      }
      const Stages stages(step, pass, launch_.ring_bytes);
      const int inner = pass.taps * step.tap_inner;
      const bool per_row = uniform(step.per_row) != 0, wide = uniform(pass.tile_units) > kHalfUnits;
      if (per_row) {
        first.keep_residual();
        if (wide) {
          multiply_tile_by_groups<2, true>(stages, ring_, inner, sums);
        } else {
          multiply_tile_by_groups<1, true>(stages, ring_, inner, sums);
        }
      } else if (wide) {
        multiply_tile_by_groups<2, false>(stages, ring_, inner, sums);
      } else {
        multiply_tile_by_groups<1, false>(stages, ring_, inner, sums);
      }
    } else {
      multiply_tile<Element>(launch_, step, pass, tile, team_.images, team_.caches(), ring_.memory, blocks.place,
                             blocks.tiles, blocks.units, sums);
    }
    const Blocks again(step, tile);
    keep_sums(sums_, sums, again.place, again.tiles, again.units);
    return first;
  }

  PXFAST_DEVICE void finish_tile(const Step& step, const Pass& pass, const Tile& tile, const Beside& first) {
    const Blocks blocks(step, tile);
    Finish<Element, kGroups> finish(team_, step, pass);
    finish.aim();
    if constexpr (kGroups) take_rows(finish, blocks, tile, 0);  // the same ones for all blocks
    const bool sliced = !step.per_row;
    if (sliced) sync_computing();
    Beside next = first;
#pragma unroll 1
    for (int b = blocks.first(); b < kBlocksPerWarp;) {
      const int here = b;
      b = blocks.after(b);
      if constexpr (!kGroups) {
        take_rows(finish, blocks, tile, here);
        next = finish.fetch(unit_of(blocks, tile, here));
      }
      const Beside now = next;
      if constexpr (kGroups)
        if (b < kBlocksPerWarp) next = finish.fetch(unit_of(blocks, tile, b));
      float sums[8];
      load_sums<kGroups>(sums_, sliced, here, sums);
      finish.publish(unit_of(blocks, tile, here), sums, now);
    }
  }
};

}  // namespace cuda
}  // namespace pxfast

// The decode loop: per row the vertical stream for the whole row, per pixel the horizontal stream, the head, the
// choice; or rows guessed and repaired. A team of blocks decodes its own images; teams never wait for each other.
#pragma once

#include "elementwise.cuh"
#include "group_tile.cuh"
#include "head.h"
#include "warp.cuh"

namespace pxfast {
namespace cuda {

// What stands in a block's shared memory before the ring of stages.
struct alignas(128) SharedState {
  Step step[2];  // the one that runs, and the next one
  Pass pass;
  CopyBarrier full[kMaxStages];
};

// kGroups: products are made by warpgroups, from weights packed for them and caches ordered for them.
template <class Element, bool kGroups>
class Decoder {
 public:
  PXFAST_DEVICE explicit Decoder(const Launch& launch)
      : launch_(launch),
        program_(launch.program),
        shared_(*reinterpret_cast<SharedState*>(shared_memory())),
        ring_{shared_memory() + sizeof(SharedState), shared_.full, {}},
        thread_(thread_index()),
        team_(block_index() / launch.members),
        member_(block_index() % launch.members) {
    const int64_t first = first_image(launch.images, launch.teams, team_);
    images_ = (int)(first_image(launch.images, launch.teams, team_ + 1) - first);
    first_image_ = first;
    memory_ = launch.workspace + launch.room.total * team_;
    caches_ = reinterpret_cast<Element*>(memory_ + launch.room.caches);
    parameters_ = reinterpret_cast<float*>(memory_ + launch.room.parameters);
    open_ = reinterpret_cast<int*>(memory_ + launch.room.open);
  }

  PXFAST_DEVICE void run() {
    if constexpr (kGroups) {
      if (thread_ == 0) {
        for (int i = 0; i < launch_.stages; ++i) start_barrier(&ring_.full[i], 1);
      }
      sync_block();
    }
    run_rows();
  }

 private:
  // Per row the vertical stream, then the pixels: one after the other, or all that are open at once. Large functions have
  // a single call each, since all are inlined.
  //
  // Guessing rows: evaluate all columns at once, keep the prefix that agrees with the guess and its first correction,
  // repeat from there with the evaluated values as the next guess. The fixed point is the sequential result, bit for
  // bit. The images of a team go on together, from the first column that is open in any of them.
  PXFAST_DEVICE void run_rows() {
    const int width = program_.width;
    for (int row = launch_.row_begin; row < launch_.row_end; ++row) {
      if (launch_.speculative) guess_input(row);
      int sweep = 0;
      bool per_row = true;
      for (int begin = 0; begin < width;) {
        // the count of the sweep before: nobody reads it any more, everyone has been through the steps since. It may
        // still be read behind the last sweep of a row, where it is the width as well.
        if (member_ == 0 && thread_ == 0) store_shared_between_blocks(open_ + sweep, width);
        const int end = per_row || launch_.speculative ? width : begin + 1;
        run_steps(per_row, row, begin, end);
        if (per_row) {
          per_row = false;
          continue;
        }
        choose_columns(row, begin, end, open_ + sweep);
        wait_for_team();
        begin = launch_.speculative ? load_shared_between_blocks(open_ + sweep) : end;
        sweep ^= 1;
      }
    }
  }

  const Launch& launch_;
  const Program& program_;
  SharedState& shared_;
  Ring ring_;
  const int thread_, team_, member_;
  int images_;
  int64_t first_image_;
  unsigned char* memory_;
  Element* caches_;
  float* parameters_;
  int* open_;
  unsigned int arrivals_ = 0;  // that the next meeting of the team begins with

  PXFAST_DEVICE void wait_for_team() {
    if constexpr (kGroups) fence_global_copies();  // the copy engine reads what this thread has written
    if (kHasClusters && launch_.cluster > 1) {
      sync_cluster();
      return;
    }
    sync_block();
    if (launch_.members == 1) return;
    if (thread_ == 0) {
      unsigned int* count = launch_.arrivals + team_ * kArrivalStride;
      arrivals_ += (unsigned int)launch_.members;
      arrive(count);
      wait_for_arrivals(count, arrivals_);
    }
    sync_block();
  }

  // Copies a step's description into one half of shared_.step; complete after the next wait and meeting of the block.
  PXFAST_DEVICE void fetch_step(int index, int half) {
    const unsigned char* from = launch_.block + program_.step_offset + (uint64_t)index * sizeof(Step);
    if (thread_ < (int)(sizeof(Step) / 16))
      copy_async(reinterpret_cast<unsigned char*>(&shared_.step[half]) + 16 * thread_, from + 16 * thread_);
    commit_copies();
  }

  // Every step of a stream for the columns [begin, end) of a row, both at stride 1.
  PXFAST_DEVICE void run_steps(bool per_row, int row, int begin, int end) {
    const int level = active_level(row, begin, end);
    int half = 0;
    fetch_step(program_.first[per_row][level], half);
    wait_copies<0>();
    sync_block();
    for (;;) {
      const Step& step = shared_.step[half];
      const int next = step.next[level];
      if (next >= 0) fetch_step(next, half ^ 1);
      run_step(step, row >> step.level, first_column(begin, step.level), last_column(end, step.level));
      wait_copies<0>();
      wait_for_team();
      if (next < 0) return;
      half ^= 1;
    }
  }

  // One step for the columns [begin, end) of its own level.
  PXFAST_DEVICE void run_step(const Step& step, int row, int begin, int end) {
    // columns of either parity have different taps in a transposed convolution
    const int stride = step.scale == Scale::kUp ? 2 : 1;
#pragma unroll 1
    for (int first = begin; first < begin + stride && first < end; ++first)
      run_pass(step, row, begin, first, stride, (end - first + stride - 1) / stride);
  }

  PXFAST_DEVICE void run_pass(const Step& step, int row, int begin, int first, int stride, int columns) {
    sync_block();  // the last pass is no longer read
    describe_pass(step, row, first, stride, columns);
    sync_block();
    const Pass& pass = shared_.pass;
    // enough tasks for all blocks of the team, if there are so many units; else of as many units as a tile takes
    int tile_rows = step.per_row ? kRowTile : kGroups ? kGroupPixelTile : kPixelTile;
    if (!kGroups && !step.per_row && step.units * ((pass.rows + 15) / 16) <= launch_.members) tile_rows = 16;
    const int row_tiles = (pass.rows + tile_rows - 1) / tile_rows;
    int tile_units = (step.units * row_tiles + launch_.members - 1) / launch_.members;
    if (tile_units > kUnitsPerTile) tile_units = kUnitsPerTile;
    const int unit_tiles = (step.units + tile_units - 1) / tile_units;
    tile_units = (step.units + unit_tiles - 1) / unit_tiles;
    for (int task = member_; task < row_tiles * unit_tiles; task += launch_.members) {
      Tile tile;
      tile.row = task / unit_tiles * tile_rows;
      tile.rows = pass.rows - tile.row < tile_rows ? pass.rows - tile.row : tile_rows;
      tile.unit = task % unit_tiles * tile_units;
      tile.units = step.units - tile.unit < tile_units ? step.units - tile.unit : tile_units;
      if (tile.units > 0) run_tile(step, pass, tile, row, begin);
    }
  }

  // Fills shared_.pass, a lane of the first warp for each tap, and one for the rest.
  PXFAST_DEVICE void describe_pass(const Step& step, int row, int first, int stride, int columns) {
    static_assert(kMaxTaps < 32, "a lane for each tap, and one more");
    if (thread_ >= 32) return;
    const Tap& tap = step.tap[thread_ < step.taps ? thread_ : 0];
    const bool exists = thread_ < step.taps && in_position(row, step.scale) + tap.row >= 0 &&
                        (tap.row_parity < 0 || tap.row_parity == (row & 1)) &&
                        (tap.column_parity < 0 || tap.column_parity == (first & 1));
    const uint32_t existing = ballot(exists);
    Pass& pass = shared_.pass;
    if (exists) {
      const int before = count_bits(existing & ((1u << thread_) - 1));
      pass.cell[before] =
          CacheOrder<kGroups>::cell(tap.cache, tap.slots, step.in_columns, step.channels, images_,
                                    in_position(row, step.scale) + tap.row, in_position(first, step.scale) + tap.column);
      pass.inner[before] = tap.inner;
    } else if (thread_ == step.taps) {
      pass.taps = count_bits(existing);
      pass.out_stride = stride;
      pass.first = first;
      pass.row = row;
      pass.rows = columns * images_;
    }
  }

  PXFAST_DEVICE void run_tile(const Step& step, const Pass& pass, const Tile& tile, int row, int begin) {
    using Here = Place<kGroups>;
    const Here place(step, thread_ >> 5);
    const int tiles = place.tiles(tile.rows - place.row);
    const int units = tiles > 0 ? tile.units - place.unit : 0;
    {
      float sums[kBlocksPerWarp][8];
      if constexpr (kGroups) {
        const bool per_row = uniform(step.per_row) != 0, wide = uniform(tile.units) > kUnitsPerWarp;
        GroupFeed feed(launch_, step, pass, tile, images_, caches_, ring_, per_row ? kRowTile : kGroupPixelTile);
        if (per_row) {
          if (wide) {
            multiply_tile_by_groups<2, true>(feed, sums);
          } else {
            multiply_tile_by_groups<1, true>(feed, sums);
          }
        } else if (wide) {
          multiply_tile_by_groups<2, false>(feed, sums);
        } else {
          multiply_tile_by_groups<1, false>(feed, sums);
        }
      } else {
        multiply_tile<Element>(launch_, step, pass, tile, images_, caches_, ring_.stages, place, tiles, units, sums);
      }
      keep_sums(ring_.stages, sums, place, tiles, units);
    }
    if (!step.per_row) sync_block();
#pragma unroll 1
    for (int b = step.per_row ? 0 : place.slice; b < kBlocksPerWarp; b += step.per_row ? 1 : Here::kSlicesHere) {
      const int i = place.tile_of(b), j = place.unit_of(b);
      if (i >= tiles || j >= units) continue;
      float sums[8];
      load_sums<kGroups>(ring_.stages, !step.per_row, b, sums);
      finish(step, pass, tile.row + place.row + 16 * i, tile.row + tile.rows, tile.unit + place.unit + j, row, begin, sums);
    }
    sync_block();  // the ring is free
  }

  // The epilogue of 16 rows x one unit: this lane's outputs of rows g and g + 8, two neighbouring columns in each half.
  PXFAST_DEVICE void finish(const Step& step, const Pass& pass, int first_row, int rows, int unit, int row, int begin,
                            const float (&sums)[8]) {
    const int lane = thread_ & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int m = first_row + g + 8 * r;
      if (m >= rows) continue;
      // place of this row among the images of the columns from pass.first on
      const int position = pass.out_stride == 1 ? m : m / images_ * pass.out_stride * images_ + m % images_;
      float v[2][2];
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int c = 0; c < 2; ++c) v[h][c] = sums[4 * h + 2 * r + c] * step.multiplier;
      for (int i = 0; i < step.biases; ++i) {
        if (row < step.bias_row[i]) continue;
        if (step.bias_column[i] > 0 && pass.first + position / images_ < step.bias_column[i]) continue;
        const float* bias = reinterpret_cast<const float*>(launch_.block + step.bias[i]) + unit * kUnit + 2 * t;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Float2 pair = load_constant(reinterpret_cast<const Float2*>(bias + kBlock * h));
          v[h][0] += pair.x, v[h][1] += pair.y;
        }
      }
      const int64_t from_begin = (int64_t)(pass.first - begin) * images_ + position;
      if (step.epilogue == Epilogue::kOutput) {
        float* to = parameters_ + from_begin * program_.head_stride + unit * kUnit + 2 * t;
#pragma unroll
        for (int h = 0; h < 2; ++h)
          store_shared_between_blocks(reinterpret_cast<Float2*>(to + kBlock * h), Float2{v[h][0], v[h][1]});
      } else if (step.epilogue == Epilogue::kHidden) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int n = unit * kUnit + h * kBlock + 2 * t;
          if (n < program_.padded_filters) store_concat_elu(step, pass, position, n, v[h][0], v[h][1]);
        }
      } else {
        float* residuals = reinterpret_cast<float*>(memory_ + launch_.room.residual[step.per_row][step.level]) +
                           from_begin * program_.padded_filters;
        if (step.epilogue == Epilogue::kGate) {
          const int n = unit * kBlock + 2 * t;
          Float2 x = load_shared_between_blocks(reinterpret_cast<const Float2*>(residuals + n));
          x.x = fused_multiply_add(v[0][0], sigmoid<Element>(v[1][0]), x.x);
          x.y = fused_multiply_add(v[0][1], sigmoid<Element>(v[1][1]), x.y);
          store_shared_between_blocks(reinterpret_cast<Float2*>(residuals + n), x);
          publish(step, pass, position, n, x.x, x.y);
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int n = unit * kUnit + h * kBlock + 2 * t;
            if (n >= program_.padded_filters) continue;
            store_shared_between_blocks(reinterpret_cast<Float2*>(residuals + n), Float2{v[h][0], v[h][1]});
            publish(step, pass, position, n, v[h][0], v[h][1]);
          }
        }
      }
    }
  }

  // Where a position's channels go in a cache that a step writes.
  struct Cell {
    Element* first;
    uint32_t block;  // elements from one block of channels to the next

    PXFAST_DEVICE Element* at(int channel) const {
      return first + (uint32_t)(channel / kBlock) * block + channel % kBlock;
    }
  };
  PXFAST_DEVICE Cell cell(const Target& target, const Pass& pass, const Step& step, int channels, int position) {
    using Cells = CacheOrder<kGroups>;
    const int columns = (program_.width >> step.level) + 2;
    return {caches_ + Cells::cell(target.cache, target.slots, columns, channels, images_, pass.row, pass.first) +
                (uint32_t)position * Cells::image_stride(channels),
            Cells::block_stride(columns, images_)};
  }

  PXFAST_DEVICE void store_concat_elu(const Step& step, const Pass& pass, int position, int n, float x, float y) {
    float positive[2], negative[2];
    elu_both<Element>(x, positive[0], negative[0]);
    elu_both<Element>(y, positive[1], negative[1]);
    const Cell to = cell(step.concat_elu, pass, step, 2 * program_.padded_filters, position);
    Arithmetic<Element>::store(to.at(positive_half(n)), positive[0], positive[1]);
    Arithmetic<Element>::store(to.at(negative_half(n)), negative[0], negative[1]);
  }

  PXFAST_DEVICE void publish(const Step& step, const Pass& pass, int position, int n, float x, float y) {
    const int channels = (program_.padded_filters + kInner - 1) / kInner * kInner;
    if (step.concat_elu.slots > 0) store_concat_elu(step, pass, position, n, x, y);
    if (step.raw.slots > 0) Arithmetic<Element>::store(cell(step.raw, pass, step, channels, position).at(n), x, y);
    if (step.elu.slots > 0) {
      float first, second, unused;
      elu_both<Element>(x, first, unused);
      elu_both<Element>(y, second, unused);
      Arithmetic<Element>::store(cell(step.elu, pass, step, channels, position).at(n), first, second);
    }
  }

  // ---- pixels ----

  PXFAST_DEVICE int64_t pixel_index(int row, int column, int image) const {
    return (first_image_ + image) * program_.channels * program_.height * program_.width +
           (int64_t)row * program_.width + column;
  }

  // Picks the pixels of the columns [begin, end), a warp each, and shows them to the input cache. open, if any, becomes
  // the column behind the first one whose pixel differs from what stood in the output.
  PXFAST_DEVICE void choose_columns(int row, int begin, int end, int* open) {
    HeadScratch& scratch = reinterpret_cast<HeadScratch*>(ring_.stages)[thread_ >> 5];
    const WarpGroup group{thread_ & 31};
    const int64_t plane = (int64_t)program_.height * program_.width;
    for (int task = member_ * kWarps + (thread_ >> 5); task < (end - begin) * images_;
         task += launch_.members * kWarps) {
      const int column = begin + task / images_, image = task % images_;
      const int64_t pixel = pixel_index(row, column, image);
      const float* parameters = stage_parameters(group, parameters_ + (int64_t)task * program_.head_stride);
      const PixelChooser pixel_chooser(launch_.chooser, first_image_ + image,
                                       (uint32_t)((row * program_.width + column) * program_.channels));
      if (program_.head == HeadKind::kSoftmax) {
        choose_softmax(group, program_, reinterpret_cast<const float*>(launch_.block + program_.table_offset),
                       parameters, launch_.input + pixel, pixel_chooser, plane, scratch);
      } else {
        choose_logistic(group, program_, parameters, launch_.input + pixel, pixel_chooser, plane, scratch);
      }
      bool changed = false;
      if (group.lane() == 0) {
        for (int c = 0; c < program_.channels; ++c) {
          uint8_t* to = launch_.output + pixel + c * plane;
          changed |= load_shared_between_blocks(to) != scratch.chosen[c];
          store_shared_between_blocks(to, scratch.chosen[c]);
        }
        if (open != nullptr && changed) atomic_min(open, column + 1);
      }
      if (group.lane() <= program_.channels) show(row, column, image, group.lane(), scratch.chosen[group.lane()]);
      group.sync();  // scratch is written again
    }
  }

  // The head's parameters of a pixel, into this warp's part of shared memory.
  PXFAST_DEVICE const float* stage_parameters(const WarpGroup& group, const float* from) {
    float* to = reinterpret_cast<float*>(ring_.stages + kWarps * sizeof(HeadScratch)) + (thread_ >> 5) * program_.head_stride;
    for (int i = group.lane(); i < program_.head_stride; i += group.lanes()) to[i] = load_shared_between_blocks(from + i);
    group.sync();
    return to;
  }

  // The first guess of a row is the input itself.
  PXFAST_DEVICE void guess_input(int row) {
    const int64_t plane = (int64_t)program_.height * program_.width;
    for (int task = member_ * kThreads + thread_; task < program_.width * images_;
         task += launch_.members * kThreads) {
      const int column = task / images_, image = task % images_;
      for (int c = 0; c < program_.channels; ++c) {
        const int64_t at = pixel_index(row, column, image) + c * plane;
        const uint8_t value = launch_.input[at];
        store_shared_between_blocks(launch_.output + at, value);
        show(row, column, image, c, value);
      }
      show(row, column, image, program_.channels, 0);
    }
  }

  // One channel of a pixel for the network to see, or behind the last one that of ones.
  PXFAST_DEVICE void show(int row, int column, int image, int channel, int chosen) {
    using Cells = CacheOrder<kGroups>;
    Element* to = caches_ +
                  Cells::cell(program_.input_cache, program_.input_slots, program_.width + 2, kInner, images_, row, column) +
                  (uint32_t)image * Cells::image_stride(kInner) + channel;  // of the first block of channels
    store_one(to, channel < program_.channels ? network_view(chosen) : kOne);
  }
  static PXFAST_DEVICE void store_one(float* to, float value) { *to = value; }
  static PXFAST_DEVICE void store_one(Bf16* to, float value) { to->bits = (uint16_t)pack_bf16(value, 0.0f); }
};

}  // namespace cuda
}  // namespace pxfast
